"""Normalization for JAX and Flax: measure, combine, normalize.

Pure functions; `bnjax.linen` and `bnjax.nnx` wrap them as modules that replace Flax's own.
"""

from bnjax._core.moments import Moments as Moments
from bnjax._core.moments import all_reduce as all_reduce
from bnjax._core.moments import ema as ema
from bnjax._core.moments import merge as merge
from bnjax._core.moments import moments as moments
from bnjax._core.moments import reduce as reduce
from bnjax._core.normalize import normalize as normalize

from bnjax._norms.batch import batch_norm as batch_norm
from bnjax._core.remat import remat as remat
from bnjax._norms.group import group_norm as group_norm
from bnjax._norms.group import instance_norm as instance_norm
from bnjax._norms.layer import layer_norm as layer_norm
from bnjax._norms.layer import rms_norm as rms_norm
from bnjax._norms.weights import spectral_norm as spectral_norm
from bnjax._norms.weights import weight_norm as weight_norm
from bnjax._core.accumulate import accumulate as accumulate
from bnjax._core.accumulate import micro_batches as micro_batches
from bnjax._collectives.sharding import batch_sharding as batch_sharding
from bnjax._collectives.sharding import data_mesh as data_mesh
from bnjax._collectives.sharding import replicate as replicate
from bnjax._core.state import sync_batch_stats as sync_batch_stats
from bnjax._core.state import update_batch_stats as update_batch_stats

from bnjax._norms.renorm import batch_renorm as batch_renorm
from bnjax._norms.evonorm import evo_norm_b0 as evo_norm_b0
from bnjax._norms.evonorm import evo_norm_s0 as evo_norm_s0
from bnjax._norms.response import filter_response_norm as filter_response_norm
from bnjax._norms.response import global_response_norm as global_response_norm
from bnjax._norms.response import local_response_norm as local_response_norm
from bnjax._norms.pointwise import dynamic_tanh as dynamic_tanh
from bnjax._norms.scale import partial_rms_norm as partial_rms_norm
from bnjax._norms.scale import pixel_norm as pixel_norm
from bnjax._norms.scale import positional_norm as positional_norm
from bnjax._norms.scale import scale_norm as scale_norm
from bnjax._norms.pointwise import scaled_activation as scaled_activation
from bnjax._norms.domain import domain_batch_norm as domain_batch_norm
from bnjax._norms.batch_channel import batch_channel_norm as batch_channel_norm
from bnjax._norms.example_weighted import example_weighted_batch_norm as example_weighted_batch_norm
from bnjax._norms.switchable import switchable_norm as switchable_norm
from bnjax._norms.whitening import Whitening as Whitening
from bnjax._norms.whitening import decorrelated_batch_norm as decorrelated_batch_norm
from bnjax._norms.whitening import iterative_norm as iterative_norm
from bnjax._norms.weights import scaled_weight_standardize as scaled_weight_standardize
from bnjax._norms.weights import weight_standardize as weight_standardize
from bnjax._modules.recurrent import resize_steps as resize_steps
from bnjax._norms.registry import NORMS as NORMS
from bnjax._norms.registry import NormName as NormName

__version__ = "0.1.0"
