"""Data sets, one a file, and batches of their examples: a new one is its file and a line in `SETS`."""

from collections.abc import Callable

import numpy as np

from experiments.cli.errors import UserError, chosen, short
from experiments.config import DataConfig
from experiments.config.own import called, chosen_or_own
from experiments.data import corruptions, digits, idx, sequences, text
from experiments.data.examples import CLASSES as CLASSES
from experiments.data.examples import Batch as Batch
from experiments.data.examples import Data as Data
from experiments.data.examples import Examples as Examples
from experiments.data.examples import Kind as Kind
from experiments.data.examples import Share as Share
from experiments.data.examples import batches as batches
from experiments.data.examples import check_sizes as check_sizes
from experiments.data.examples import count as count
from experiments.data.examples import epoch_order as epoch_order
from experiments.data.examples import kind_of as kind_of
from experiments.data.examples import steps_per_epoch as steps_per_epoch
from experiments.data.examples import take as take

SETS: dict[str, Callable[[DataConfig], Data]] = {
    "digits": digits.load,
    "idx": idx.load,
    "fashion_mnist": idx.load_fashion,
    "text": text.load,
    **sequences.SETS,
}


def load_data(config: DataConfig) -> Data:
    """The data of a config.

    Raises:
      UserError: a name that is not in `SETS`, files that are missing or broken, or more examples than there are.
    """
    data = _loaded(chosen_or_own(SETS, config.name, "config.data.name"), config)
    for name, n, part in (
        ("train_examples", config.train_examples, data.train),
        ("eval_examples", config.eval_examples, data.held_out),
    ):
        if n is not None and n > count(part):
            raise UserError(f"`config.data.{name}` must be at most {count(part)}, all there are, but it is {n}.")
    train = take(data.train, config.train_examples)
    if config.shuffle_labels:
        if "label" not in train:
            raise UserError(
                f"`config.data.shuffle_labels` needs labels, but `config.data.name={config.name}` has "
                f"{', '.join(f'`{n}`' for n in train)}; leave it out."
            )
        train = {**train, "label": np.random.RandomState(1).permutation(train["label"])}
    held_out = _damaged(data.held_out, config) if config.corruption else data.held_out
    return data._replace(train=train, held_out=take(held_out, config.eval_examples))


def _damaged(examples: Examples, config: DataConfig) -> Examples:
    chosen(corruptions.KINDS, config.corruption, "config.data.corruption")
    if "image" not in examples:
        raise UserError(
            f"`config.data.corruption` damages images, but `config.data.name={config.name}` has none; leave it out."
        )
    return {
        **examples,
        "image": corruptions.corrupted(np.asarray(examples["image"]), config.corruption, config.severity),
    }


def _loaded(load: Callable[[DataConfig], Data], config: DataConfig) -> Data:
    """What a function gives, checked.

    Raises:
      UserError: it is no `Data`, or its arrays are not of one length.
    """
    name = f"config.data.name={config.name}"
    data = called(load, config, config.name, "config.data.name") if callable(load) else load
    if not isinstance(data, Data):
        raise UserError(
            f"`{name}` must be a function of a config that returns an `experiments.data.Data`, but gave {short(data)}."
        )
    for part, examples in (("train", data.train), ("held_out", data.held_out)):
        lengths = {n: len(array) for n, array in examples.items()}
        if len(set(lengths.values())) != 1 or not count(examples):
            raise UserError(f"`{name}` must give arrays of as many examples, but `{part}` has {lengths}.")
        if taken := [n for n in ("mask", "index") if n in examples]:
            raise UserError(f"`{name}` must call `{taken[0]}` otherwise: every batch has an array of that name.")
    if data.train.keys() != data.held_out.keys():
        kinds = " and ".join(str([*part]) for part in (data.train, data.held_out))
        raise UserError(f"`{name}` must give the same arrays to train and held out, but they are {kinds}.")
    return data
