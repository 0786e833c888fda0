"""Normalization for `flax.nnx`: drop-in for Flax's modules, with more abilities."""

from bnjax.nnx._batch import BatchMoments as BatchMoments
from bnjax.nnx._batch import BatchNorm as BatchNorm
from bnjax.nnx._sample import GroupNorm as GroupNorm
from bnjax.nnx._sample import InstanceNorm as InstanceNorm
from bnjax.nnx._sample import LayerNorm as LayerNorm
from bnjax.nnx._sample import RMSNorm as RMSNorm
from bnjax.nnx._weights import SpectralNorm as SpectralNorm
from bnjax.nnx._weights import WeightNorm as WeightNorm
