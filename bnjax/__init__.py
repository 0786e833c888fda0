"""Normalization for JAX and Flax: measure, combine, normalize.

Pure functions; `bnjax.linen` and `bnjax.nnx` wrap them as modules that replace Flax's own. `bnjax.family` has all other
norms, `bnjax.distributed` what concerns devices. Their names are here, too.
"""

# Before any function is jitted: see there.
from bnjax._lifecycle.context import ACTIVE as _ACTIVE  # noqa: F401

from bnjax._core.moments import Moments as Moments
from bnjax._core.moments import moments as moments
from bnjax._core.moments import merge as merge
from bnjax._core.moments import reduce as reduce
from bnjax._core.moments import all_reduce as all_reduce
from bnjax._core.moments import ema as ema
from bnjax._core.normalize import normalize as normalize

from bnjax._norms.batch import batch_norm as batch_norm
from bnjax._norms.layer import layer_norm as layer_norm
from bnjax._norms.layer import rms_norm as rms_norm
from bnjax._norms.group import group_norm as group_norm
from bnjax._norms.group import instance_norm as instance_norm
from bnjax._core.remat import remat as remat
from bnjax._norms.registry import NORMS as NORMS
from bnjax._norms.registry import NormName as NormName

# Old names, each of `bnjax.family` or `bnjax.distributed`.
from bnjax.distributed import accumulate as accumulate
from bnjax.distributed import batch_sharding as batch_sharding
from bnjax.distributed import data_mesh as data_mesh
from bnjax.distributed import micro_batches as micro_batches
from bnjax.distributed import replicate as replicate
from bnjax.distributed import sync_batch_stats as sync_batch_stats
from bnjax.distributed import update_batch_stats as update_batch_stats
from bnjax.family import Whitening as Whitening
from bnjax.family import batch_channel_norm as batch_channel_norm
from bnjax.family import batch_renorm as batch_renorm
from bnjax.family import decorrelated_batch_norm as decorrelated_batch_norm
from bnjax.family import domain_batch_norm as domain_batch_norm
from bnjax.family import dynamic_tanh as dynamic_tanh
from bnjax.family import evo_norm_b0 as evo_norm_b0
from bnjax.family import evo_norm_s0 as evo_norm_s0
from bnjax.family import example_weighted_batch_norm as example_weighted_batch_norm
from bnjax.family import filter_response_norm as filter_response_norm
from bnjax.family import global_response_norm as global_response_norm
from bnjax.family import iterative_norm as iterative_norm
from bnjax.family import local_response_norm as local_response_norm
from bnjax.family import partial_rms_norm as partial_rms_norm
from bnjax.family import pixel_norm as pixel_norm
from bnjax.family import positional_norm as positional_norm
from bnjax.family import resize_steps as resize_steps
from bnjax.family import scale_norm as scale_norm
from bnjax.family import scaled_activation as scaled_activation
from bnjax.family import scaled_weight_standardize as scaled_weight_standardize
from bnjax.family import spectral_norm as spectral_norm
from bnjax.family import switchable_norm as switchable_norm
from bnjax.family import weight_norm as weight_norm
from bnjax.family import weight_standardize as weight_standardize

__all__ = [
    "NORMS",
    "Moments",
    "NormName",
    "all_reduce",
    "batch_norm",
    "ema",
    "group_norm",
    "instance_norm",
    "layer_norm",
    "merge",
    "moments",
    "normalize",
    "reduce",
    "remat",
    "rms_norm",
]

__version__ = "0.1.0"
