"""Normalization for `flax.nnx`: drop-in for Flax's modules, with more abilities."""

from typing import TYPE_CHECKING as _TYPE_CHECKING

from bnjax._modules.arguments import explain as _explain
from bnjax._modules.lazy import lazy_names as _lazy_names
from bnjax.nnx._batch import BatchMoments as BatchMoments
from bnjax.nnx._batch import BatchNorm as BatchNorm
from bnjax.nnx._batch_family import BatchChannelNorm as BatchChannelNorm
from bnjax.nnx._batch_family import BatchRenorm as BatchRenorm
from bnjax.nnx._batch_family import DecorrelatedBatchNorm as DecorrelatedBatchNorm
from bnjax.nnx._batch_family import DomainBatchNorm as DomainBatchNorm
from bnjax.nnx._batch_family import EvoNormB0 as EvoNormB0
from bnjax.nnx._batch_family import ExampleWeightedBatchNorm as ExampleWeightedBatchNorm
from bnjax.nnx._batch_family import IterativeNorm as IterativeNorm
from bnjax.nnx._batch_family import SplitBatchNorm as SplitBatchNorm
from bnjax.nnx._batch_family import SwitchableNorm as SwitchableNorm
from bnjax.nnx._make import make_norm as make_norm
from bnjax.nnx._masks import norm_params_mask as norm_params_mask
from bnjax.nnx._recurrent import BatchNormLSTMCell as BatchNormLSTMCell
from bnjax.nnx._recurrent import LayerNormGRUCell as LayerNormGRUCell
from bnjax.nnx._recurrent import LayerNormLSTMCell as LayerNormLSTMCell
from bnjax.nnx._remat import remat as remat
from bnjax.nnx._sample import GroupNorm as GroupNorm
from bnjax.nnx._sample import InstanceNorm as InstanceNorm
from bnjax.nnx._sample import LayerNorm as LayerNorm
from bnjax.nnx._sample import RMSNorm as RMSNorm
from bnjax.nnx._sample_family import DynamicErf as DynamicErf
from bnjax.nnx._sample_family import DynamicTanh as DynamicTanh
from bnjax.nnx._sample_family import EvoNormS0 as EvoNormS0
from bnjax.nnx._sample_family import FilterResponseNorm as FilterResponseNorm
from bnjax.nnx._sample_family import GlobalResponseNorm as GlobalResponseNorm
from bnjax.nnx._sample_family import LocalResponseNorm as LocalResponseNorm
from bnjax.nnx._sample_family import PartialRMSNorm as PartialRMSNorm
from bnjax.nnx._sample_family import PixelNorm as PixelNorm
from bnjax.nnx._sample_family import PositionalNorm as PositionalNorm
from bnjax.nnx._sample_family import ScaleNorm as ScaleNorm
from bnjax.nnx._weights import ScaledWeightStandardization as ScaledWeightStandardization
from bnjax.nnx._weights import SpectralNorm as SpectralNorm
from bnjax.nnx._weights import WeightNorm as WeightNorm
from bnjax.nnx._weights import WeightStandardization as WeightStandardization

# What happens to a norm after it is built: imported when it is first used.
if _TYPE_CHECKING:
    from bnjax.nnx.lifecycle import Diagnosis as Diagnosis
    from bnjax.nnx.lifecycle import Report as Report
    from bnjax.nnx.lifecycle import Summary as Summary
    from bnjax.nnx.lifecycle import adapt as adapt
    from bnjax.nnx.lifecycle import doctor as doctor
    from bnjax.nnx.lifecycle import fold as fold
    from bnjax.nnx.lifecycle import freeze as freeze
    from bnjax.nnx.lifecycle import from_keras as from_keras
    from bnjax.nnx.lifecycle import from_torch as from_torch
    from bnjax.nnx.lifecycle import frozen_labels as frozen_labels
    from bnjax.nnx.lifecycle import recalibrate as recalibrate
    from bnjax.nnx.lifecycle import summary as summary
    from bnjax.nnx.lifecycle import swap as swap
    from bnjax.nnx.lifecycle import tent as tent
    from bnjax.nnx.lifecycle import to_torch as to_torch
    from bnjax.nnx.lifecycle import unfreeze as unfreeze
    from bnjax.nnx.lifecycle import upgrade as upgrade

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
    "unfreeze",
    "to_torch",
    "upgrade",
)
__getattr__, __dir__ = _lazy_names(__name__, "bnjax.nnx.lifecycle", _LIFECYCLE, globals())

_explain(vars(), "Args")
