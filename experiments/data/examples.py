"""Examples, and batches of them: of one shape always, the last one padded and masked."""

import math
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np

from experiments.cli.errors import UserError
from experiments.config import Config, TrainConfig

# Arrays by their names, with as many rows as there are examples. `image` (n, height, width, channels) and `label` (n,),
# or `tokens` (n, length), or `source` and `target`, each (n, length). Where not every position of an array counts, an
# array `NAME_mask` of booleans says which do. Token 0 is no token: it fills up, begins a sequence, or hides a token.
Examples = Mapping[str, np.ndarray]

# The rows of a batch, filled up with zeros: `mask` (n,) says which rows are examples, `index` (n,) is their number
# among all examples.
Batch = dict[str, np.ndarray]

CLASSES = 10


class Data(NamedTuple):
    """What is learned from, and what is held out."""

    train: Examples
    held_out: Examples
    classes: int = CLASSES
    """Of an image; or of a token, the size of the vocabulary, with token 0."""


class Kind(NamedTuple):
    """What a program must know of the data: the name, shape and dtype of each array of one example, and the classes."""

    arrays: tuple[tuple[str, tuple[int, ...], np.dtype], ...]
    classes: int


class Share(NamedTuple):
    """What one process holds of a batch: the rows from `start` to `stop`, of `rows` in all processes together."""

    rows: int
    start: int
    stop: int


def count(examples: Examples) -> int:
    """How many examples there are."""
    return len(next(iter(examples.values())))


def take(examples: Examples, n: int | None) -> Examples:
    """The first `n` of them; all, where `n` is None."""
    return {name: array[:n] for name, array in examples.items()}


def kind_of(data: Data) -> Kind:
    """What one example of the data is."""
    return Kind(tuple((name, array.shape[1:], array.dtype) for name, array in data.train.items()), data.classes)


def check_sizes(config: Config, data: Data) -> None:
    """Refuses what is larger than the data.

    Raises:
      UserError: a batch of more examples than there are, or more steps than can be counted.
    """
    train, batch, epochs = count(data.train), config.train.batch_size, config.train.epochs
    if batch > train:
        raise UserError(
            f"`config.train.batch_size` must be at most {train}, the number of training examples, but it is {batch}."
        )
    most = max(count(data.held_out), TrainConfig().eval_batch_size)  # the default serves small data, too
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
    return math.ceil(count(data.train) / config.train.batch_size)


def epoch_order(seed: int, epoch: int, n: int) -> np.ndarray:
    """The order of the examples in an epoch, from its number alone: an epoch can be taken up without the others."""
    return np.random.default_rng((seed, epoch)).permutation(n)


def batches(
    examples: Examples, size: int, order: np.ndarray | None = None, share: Share | None = None
) -> Iterator[Batch]:
    """All examples once, `size` at a time, or of each batch a share; filled up with zeros that `mask` marks."""
    order = np.arange(count(examples)) if order is None else order
    share = Share(size, 0, size) if share is None else share
    for start in range(0, len(order), size):
        rows = order[start : start + size][share.start : share.stop]
        held = share.stop - share.start
        batch = {name: _filled(array[rows], held) for name, array in examples.items()}
        batch["mask"] = np.arange(held) < len(rows)
        batch["index"] = _filled(rows.astype(np.int32), held)
        yield batch


def _filled(array: np.ndarray, rows: int) -> np.ndarray:
    return np.pad(array, [(0, rows - len(array))] + [(0, 0)] * (array.ndim - 1))
