"""Normalization for `flax.linen`: drop-in for Flax's modules, with more abilities."""

from bnjax.linen._batch import BatchNorm as BatchNorm
from bnjax.linen._remat import remat as remat
from bnjax.linen._sample import GroupNorm as GroupNorm
from bnjax.linen._sample import InstanceNorm as InstanceNorm
from bnjax.linen._sample import LayerNorm as LayerNorm
from bnjax.linen._sample import RMSNorm as RMSNorm
from bnjax.linen._weights import SpectralNorm as SpectralNorm
from bnjax.linen._weights import WeightNorm as WeightNorm
