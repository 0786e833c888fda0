"""What Flax's nnx does not promise to keep, in one place."""

from typing import Any

from flax import nnx
from flax.nnx.nn.dtypes import promote_dtype as promote_dtype
from flax.nnx.nn.recurrent import RNNCellBase as RNNCellBase
from flax.typing import PromoteDtypeFn as PromoteDtypeFn

OF_FLAX = "_pytree__"  # how the names begin of what Flax keeps for itself in the attributes of a module


def captures(module: nnx.Module) -> tuple[Any, ...]:
    """What `nnx.capture` collects from the module while it is called."""
    return tuple(getattr(module, "__captures__", ()))
