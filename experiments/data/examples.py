"""Examples, and batches of them: of one shape always, the last one padded and masked."""

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from experiments.cli.errors import UserError
from experiments.config import Config, TrainConfig

Batch = dict[str, np.ndarray]  # image (n, height, width, 1), label (n,), mask (n,): false where there is no example

CLASSES = 10


class Examples(NamedTuple):
    """Images in [0, 1], (n, height, width, 1), and their labels (n,)."""

    image: np.ndarray
    label: np.ndarray

    def take(self, n: int | None) -> "Examples":
        return Examples(self.image[:n], self.label[:n])


class Data(NamedTuple):
    """What is learned from, and what is held out."""

    train: Examples
    held_out: Examples


class Share(NamedTuple):
    """What one process holds of a batch: the rows from `start` to `stop`, of `rows` in all processes together."""

    rows: int
    start: int
    stop: int


def check_sizes(config: Config, data: Data) -> None:
    """Refuses what is larger than the data.

    Raises:
      UserError: a batch of more examples than there are, or more steps than can be counted.
    """
    train, batch, epochs = len(data.train.label), config.train.batch_size, config.train.epochs
    if batch > train:
        raise UserError(
            f"`config.train.batch_size` must be at most {train}, the number of training examples, but it is {batch}."
        )
    most = max(len(data.held_out.label), TrainConfig().eval_batch_size)  # the default serves small data, too
    if config.train.eval_batch_size > most:
        raise UserError(
            f"`config.train.eval_batch_size` must be at most {most}, but it is {config.train.eval_batch_size}."
        )
    if config.eval.recalibrate > steps_per_epoch(config, data):
        raise UserError(
            f"`config.eval.recalibrate` must be at most {steps_per_epoch(config, data)}, the batches of all training "
            f"examples, but it is {config.eval.recalibrate}."
        )
    if epochs * steps_per_epoch(config, data) >= 2**31:
        raise UserError(
            f"`config.train.epochs` must make fewer than 2^31 steps, but {epochs} epochs of "
            f"{steps_per_epoch(config, data)} steps are more."
        )


def steps_per_epoch(config: Config, data: Data) -> int:
    return math.ceil(len(data.train.label) / config.train.batch_size)


def epoch_order(seed: int, epoch: int, n: int) -> np.ndarray:
    """The order of the examples in an epoch, from its number alone: an epoch can be taken up without the others."""
    return np.random.default_rng((seed, epoch)).permutation(n)


def batches(
    examples: Examples, size: int, order: np.ndarray | None = None, share: Share | None = None
) -> Iterator[Batch]:
    """All examples once, `size` at a time, or of each batch a share; filled up with zeros that `mask` marks."""
    order = np.arange(len(examples.label)) if order is None else order
    share = Share(size, 0, size) if share is None else share
    for start in range(0, len(order), size):
        rows = order[start : start + size][share.start : share.stop]
        missing = share.stop - share.start - len(rows)
        yield {
            "image": np.pad(examples.image[rows], [(0, missing), (0, 0), (0, 0), (0, 0)]),
            "label": np.pad(examples.label[rows], (0, missing)),
            "mask": np.arange(share.stop - share.start) < len(rows),
        }
