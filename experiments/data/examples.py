"""Examples, and batches of them: of one shape always, the last one padded and masked."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from sklearn.datasets import load_digits

from experiments.cli.errors import UserError
from experiments.config import Config, DataConfig, TrainConfig
from experiments.data.idx import read_pair

Batch = dict[str, np.ndarray]  # image (n, height, width, 1), label (n,), mask (n,): false where there is no example

CLASSES = 10
_DIGITS_HELD_OUT = 360  # of 1797


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


def load_data(config: DataConfig) -> Data:
    """The data of a config.

    Raises:
      UserError: files that are missing or broken, or more examples than there are.
    """
    data = _digits() if config.name == "digits" else _idx(config.directory)
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


def _digits() -> Data:
    """The split never changes: NumPy keeps `RandomState`'s streams as they are."""
    images, labels = load_digits(return_X_y=True)
    images = images.reshape(-1, 8, 8, 1).astype(np.float32) / 16
    order = np.random.RandomState(0).permutation(len(labels))
    held_out, train = np.split(order, [_DIGITS_HELD_OUT])
    labels = labels.astype(np.int32)
    return Data(Examples(images[train], labels[train]), Examples(images[held_out], labels[held_out]))


def _idx(directory: str) -> Data:
    if not directory:
        raise UserError("`data.directory` must name the folder of the four idx files; --config.data.directory=...")
    parts = [_examples(*read_pair(Path(directory), part), f"{directory}/{part}") for part in ("train", "t10k")]
    train, held_out = parts
    if train.image.shape[1:] != held_out.image.shape[1:]:
        sizes = " and ".join(" by ".join(map(str, p.image.shape[1:3])) for p in parts)
        raise UserError(f"The images of `train` and `t10k` in `{directory}` are not of one size: {sizes}.")
    return Data(train, held_out)


def _examples(images: np.ndarray, labels: np.ndarray, source: str) -> Examples:
    if labels.max() >= CLASSES:
        raise UserError(f"The labels of `{source}` must be below {CLASSES}, but one is {labels.max()}.")
    if min(images.shape[1:]) < 4:
        raise UserError(f"The images of `{source}` must be 4 by 4 at least, for two poolings, but they are smaller.")
    return Examples(images[..., None].astype(np.float32) / 255, labels.astype(np.int32))


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
