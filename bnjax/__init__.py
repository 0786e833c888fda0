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

__version__ = "0.1.0"
