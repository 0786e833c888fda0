"""Normalization for `flax.linen`: drop-in for Flax's modules, with more abilities."""

from bnjax.linen._batch import BatchNorm as BatchNorm
from bnjax.linen._remat import remat as remat
from bnjax.linen._batch_family import BatchRenorm as BatchRenorm
from bnjax.linen._batch_family import EvoNormB0 as EvoNormB0
from bnjax.linen._make import make_norm as make_norm
from bnjax.linen._masks import norm_params_mask as norm_params_mask
from bnjax.linen._sample import GroupNorm as GroupNorm
from bnjax.linen._sample import InstanceNorm as InstanceNorm
from bnjax.linen._sample import LayerNorm as LayerNorm
from bnjax.linen._sample import RMSNorm as RMSNorm
from bnjax.linen._sample_family import DynamicTanh as DynamicTanh
from bnjax.linen._sample_family import EvoNormS0 as EvoNormS0
from bnjax.linen._sample_family import FilterResponseNorm as FilterResponseNorm
from bnjax.linen._sample_family import GlobalResponseNorm as GlobalResponseNorm
from bnjax.linen._sample_family import LocalResponseNorm as LocalResponseNorm
from bnjax.linen._sample_family import PartialRMSNorm as PartialRMSNorm
from bnjax.linen._sample_family import PixelNorm as PixelNorm
from bnjax.linen._sample_family import PositionalNorm as PositionalNorm
from bnjax.linen._sample_family import ScaleNorm as ScaleNorm
from bnjax.linen._weights import SpectralNorm as SpectralNorm
from bnjax.linen._weights import WeightNorm as WeightNorm
