"""Normalization for `flax.linen`: drop-in for Flax's modules, with more abilities."""

from typing import TYPE_CHECKING as _TYPE_CHECKING

from bnjax._modules.arguments import explain as _explain
from bnjax._modules.lazy import lazy_names as _lazy_names
from bnjax.linen._batch import BatchNorm as BatchNorm
from bnjax.linen._batch_family import BatchChannelNorm as BatchChannelNorm
from bnjax.linen._batch_family import BatchRenorm as BatchRenorm
from bnjax.linen._batch_family import DecorrelatedBatchNorm as DecorrelatedBatchNorm
from bnjax.linen._batch_family import DomainBatchNorm as DomainBatchNorm
from bnjax.linen._batch_family import EvoNormB0 as EvoNormB0
from bnjax.linen._batch_family import ExampleWeightedBatchNorm as ExampleWeightedBatchNorm
from bnjax.linen._batch_family import IterativeNorm as IterativeNorm
from bnjax.linen._batch_family import SplitBatchNorm as SplitBatchNorm
from bnjax.linen._batch_family import SwitchableNorm as SwitchableNorm
from bnjax.linen._make import make_norm as make_norm
from bnjax.linen._masks import norm_params_mask as norm_params_mask
from bnjax.linen._recurrent import BatchNormLSTMCell as BatchNormLSTMCell
from bnjax.linen._recurrent import LayerNormGRUCell as LayerNormGRUCell
from bnjax.linen._recurrent import LayerNormLSTMCell as LayerNormLSTMCell
from bnjax.linen._remat import remat as remat
from bnjax.linen._sample import GroupNorm as GroupNorm
from bnjax.linen._sample import InstanceNorm as InstanceNorm
from bnjax.linen._sample import LayerNorm as LayerNorm
from bnjax.linen._sample import RMSNorm as RMSNorm
from bnjax.linen._sample_family import DynamicErf as DynamicErf
from bnjax.linen._sample_family import DynamicTanh as DynamicTanh
from bnjax.linen._sample_family import EvoNormS0 as EvoNormS0
from bnjax.linen._sample_family import FilterResponseNorm as FilterResponseNorm
from bnjax.linen._sample_family import GlobalResponseNorm as GlobalResponseNorm
from bnjax.linen._sample_family import LocalResponseNorm as LocalResponseNorm
from bnjax.linen._sample_family import PartialRMSNorm as PartialRMSNorm
from bnjax.linen._sample_family import PixelNorm as PixelNorm
from bnjax.linen._sample_family import PositionalNorm as PositionalNorm
from bnjax.linen._sample_family import ScaleNorm as ScaleNorm
from bnjax.linen._weights import ScaledWeightStandardization as ScaledWeightStandardization
from bnjax.linen._weights import SpectralNorm as SpectralNorm
from bnjax.linen._weights import WeightNorm as WeightNorm
from bnjax.linen._weights import WeightStandardization as WeightStandardization

# What happens to a norm after it is built: imported when it is first used.
if _TYPE_CHECKING:
    from bnjax.linen.lifecycle import Diagnosis as Diagnosis
    from bnjax.linen.lifecycle import Report as Report
    from bnjax.linen.lifecycle import Summary as Summary
    from bnjax.linen.lifecycle import adapt as adapt
    from bnjax.linen.lifecycle import doctor as doctor
    from bnjax.linen.lifecycle import fold as fold
    from bnjax.linen.lifecycle import freeze as freeze
    from bnjax.linen.lifecycle import from_keras as from_keras
    from bnjax.linen.lifecycle import from_torch as from_torch
    from bnjax.linen.lifecycle import frozen_labels as frozen_labels
    from bnjax.linen.lifecycle import recalibrate as recalibrate
    from bnjax.linen.lifecycle import summary as summary
    from bnjax.linen.lifecycle import swap as swap
    from bnjax.linen.lifecycle import tent as tent
    from bnjax.linen.lifecycle import to_torch as to_torch
    from bnjax.linen.lifecycle import upgrade as upgrade

_LIFECYCLE = (
    "Diagnosis",
    "Report",
    "Summary",
    "adapt",
    "doctor",
    "fold",
    "freeze",
    "from_keras",
    "from_torch",
    "frozen_labels",
    "recalibrate",
    "summary",
    "swap",
    "tent",
    "to_torch",
    "upgrade",
)
__getattr__, __dir__ = _lazy_names(__name__, "bnjax.linen.lifecycle", _LIFECYCLE, globals())

_explain(vars(), "Attributes")
