"""Data sets, one a file, and batches of their examples: a new one is its file and a line in `SETS`."""

from collections.abc import Callable

import numpy as np

from experiments.cli.errors import UserError, chosen
from experiments.config import DataConfig
from experiments.data import digits, idx
from experiments.data.examples import CLASSES as CLASSES
from experiments.data.examples import Batch as Batch
from experiments.data.examples import Data as Data
from experiments.data.examples import Examples as Examples
from experiments.data.examples import Share as Share
from experiments.data.examples import batches as batches
from experiments.data.examples import check_sizes as check_sizes
from experiments.data.examples import epoch_order as epoch_order
from experiments.data.examples import steps_per_epoch as steps_per_epoch

SETS: dict[str, Callable[[DataConfig], Data]] = {"digits": digits.load, "idx": idx.load}


def load_data(config: DataConfig) -> Data:
    """The data of a config.

    Raises:
      UserError: a name that is not in `SETS`, files that are missing or broken, or more examples than there are.
    """
    data = chosen(SETS, config.name, "config.data.name")(config)
    for name, n, part in (
        ("train_examples", config.train_examples, data.train),
        ("eval_examples", config.eval_examples, data.held_out),
    ):
        if n is not None and n > len(part.label):
            raise UserError(f"`config.data.{name}` must be at most {len(part.label)}, all there are, but it is {n}.")
    train = data.train.take(config.train_examples)
    if config.shuffle_labels:
        train = train._replace(label=np.random.RandomState(1).permutation(train.label))
    return Data(train, data.held_out.take(config.eval_examples))
