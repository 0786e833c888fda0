"""The norms beside the everyday five: batch norm's relatives, norms of examples, and norms of weights."""

from bnjax._modules.recurrent import resize_steps as resize_steps
from bnjax._norms.batch_channel import batch_channel_norm as batch_channel_norm
from bnjax._norms.domain import domain_batch_norm as domain_batch_norm
from bnjax._norms.evonorm import evo_norm_b0 as evo_norm_b0
from bnjax._norms.evonorm import evo_norm_s0 as evo_norm_s0
from bnjax._norms.example_weighted import example_weighted_batch_norm as example_weighted_batch_norm
from bnjax._norms.group import fitting_groups as fitting_groups
from bnjax._norms.pointwise import dynamic_erf as dynamic_erf
from bnjax._norms.pointwise import dynamic_tanh as dynamic_tanh
from bnjax._norms.pointwise import scaled_activation as scaled_activation
from bnjax._norms.renorm import batch_renorm as batch_renorm
from bnjax._norms.response import filter_response_norm as filter_response_norm
from bnjax._norms.response import global_response_norm as global_response_norm
from bnjax._norms.response import local_response_norm as local_response_norm
from bnjax._norms.scale import partial_rms_norm as partial_rms_norm
from bnjax._norms.scale import pixel_norm as pixel_norm
from bnjax._norms.scale import positional_norm as positional_norm
from bnjax._norms.scale import scale_norm as scale_norm
from bnjax._norms.switchable import switchable_norm as switchable_norm
from bnjax._norms.weights import scaled_weight_standardize as scaled_weight_standardize
from bnjax._norms.weights import spectral_norm as spectral_norm
from bnjax._norms.weights import weight_norm as weight_norm
from bnjax._norms.weights import weight_standardize as weight_standardize
from bnjax._norms.whitening import Whitening as Whitening
from bnjax._norms.whitening import decorrelated_batch_norm as decorrelated_batch_norm
from bnjax._norms.whitening import iterative_norm as iterative_norm

__all__ = [
    "Whitening",
    "batch_channel_norm",
    "batch_renorm",
    "decorrelated_batch_norm",
    "domain_batch_norm",
    "dynamic_erf",
    "dynamic_tanh",
    "evo_norm_b0",
    "evo_norm_s0",
    "example_weighted_batch_norm",
    "filter_response_norm",
    "fitting_groups",
    "global_response_norm",
    "iterative_norm",
    "local_response_norm",
    "partial_rms_norm",
    "pixel_norm",
    "positional_norm",
    "resize_steps",
    "scale_norm",
    "scaled_activation",
    "scaled_weight_standardize",
    "spectral_norm",
    "switchable_norm",
    "weight_norm",
    "weight_standardize",
]
