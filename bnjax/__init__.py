"""Normalization for JAX and Flax: measure, combine, normalize.

Pure functions; `bnjax.linen` and `bnjax.nnx` wrap them as modules that replace Flax's own.
"""

from bnjax._moments import Moments as Moments
from bnjax._moments import all_reduce as all_reduce
from bnjax._moments import ema as ema
from bnjax._moments import merge as merge
from bnjax._moments import moments as moments
from bnjax._moments import reduce as reduce
from bnjax._normalize import normalize as normalize

from bnjax._batch import batch_norm as batch_norm
from bnjax._remat import remat as remat
from bnjax._sample import group_norm as group_norm
from bnjax._sample import instance_norm as instance_norm
from bnjax._sample import layer_norm as layer_norm
from bnjax._sample import rms_norm as rms_norm
from bnjax._weights import spectral_norm as spectral_norm
from bnjax._weights import weight_norm as weight_norm
from bnjax._accumulate import accumulate as accumulate
from bnjax._accumulate import micro_batches as micro_batches
from bnjax._sharding import batch_sharding as batch_sharding
from bnjax._sharding import data_mesh as data_mesh
from bnjax._sharding import replicate as replicate
from bnjax._state import sync_batch_stats as sync_batch_stats
from bnjax._state import update_batch_stats as update_batch_stats

from bnjax._renorm import batch_renorm as batch_renorm
from bnjax._evo import evo_norm_b0 as evo_norm_b0
from bnjax._evo import evo_norm_s0 as evo_norm_s0
from bnjax._response import filter_response_norm as filter_response_norm
from bnjax._response import global_response_norm as global_response_norm
from bnjax._response import local_response_norm as local_response_norm
from bnjax._scaling import dynamic_tanh as dynamic_tanh
from bnjax._scaling import partial_rms_norm as partial_rms_norm
from bnjax._scaling import pixel_norm as pixel_norm
from bnjax._scaling import positional_norm as positional_norm
from bnjax._scaling import scale_norm as scale_norm
from bnjax._scaling import scaled_activation as scaled_activation
from bnjax._domains import domain_batch_norm as domain_batch_norm
from bnjax._mixtures import batch_channel_norm as batch_channel_norm
from bnjax._mixtures import example_weighted_batch_norm as example_weighted_batch_norm
from bnjax._mixtures import switchable_norm as switchable_norm
from bnjax._whitening import Whitening as Whitening
from bnjax._whitening import decorrelated_batch_norm as decorrelated_batch_norm
from bnjax._whitening import iterative_norm as iterative_norm
from bnjax._weights import scaled_weight_standardize as scaled_weight_standardize
from bnjax._weights import weight_standardize as weight_standardize
from bnjax._recurrent import resize_steps as resize_steps
from bnjax._registry import NORMS as NORMS
from bnjax._registry import NormName as NormName

__version__ = "0.1.0"
