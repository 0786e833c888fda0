"""What Flax's linen does not promise to keep, in one place."""

from flax.core.lift import pack as pack
from flax.core.meta import AxisMetadata as AxisMetadata
from flax.linen.transforms import lift_transform as lift_transform
