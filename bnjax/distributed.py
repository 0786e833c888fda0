"""Statistics over devices and over micro-batches, and the boilerplate of data parallelism under `jit`."""

from bnjax._collectives.sharding import batch_sharding as batch_sharding
from bnjax._collectives.sharding import data_mesh as data_mesh
from bnjax._collectives.sharding import replicate as replicate
from bnjax._core.accumulate import accumulate as accumulate
from bnjax._core.accumulate import micro_batches as micro_batches
from bnjax._core.moments import all_reduce as all_reduce
from bnjax._core.state import sync_batch_stats as sync_batch_stats
from bnjax._core.state import update_batch_stats as update_batch_stats

__all__ = [
    "accumulate",
    "all_reduce",
    "batch_sharding",
    "data_mesh",
    "micro_batches",
    "replicate",
    "sync_batch_stats",
    "update_batch_stats",
]
