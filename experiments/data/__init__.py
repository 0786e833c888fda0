"""Data sets, and batches of their examples."""

from experiments.data.examples import CLASSES as CLASSES
from experiments.data.examples import Batch as Batch
from experiments.data.examples import Data as Data
from experiments.data.examples import Examples as Examples
from experiments.data.examples import Share as Share
from experiments.data.examples import batches as batches
from experiments.data.examples import check_sizes as check_sizes
from experiments.data.examples import epoch_order as epoch_order
from experiments.data.examples import load_data as load_data
from experiments.data.examples import steps_per_epoch as steps_per_epoch
