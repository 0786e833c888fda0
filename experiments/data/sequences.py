"""Made sequences of numbers, and what to make of them: the same again, backwards, or sorted."""

from collections.abc import Callable
from functools import partial

import numpy as np

from experiments.config import DataConfig
from experiments.data.examples import Data, Examples

NUMBERS, TRAIN, HELD_OUT = 10, 8192, 1024

CHANGES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "copy": lambda numbers: numbers,
    "reverse": lambda numbers: numbers[::-1],
    "sort": np.sort,
}


def load(config: DataConfig, change: Callable[[np.ndarray], np.ndarray]) -> Data:
    """Sequences of numbers, `config.length` at most and half of it at least.

    A short sequence that is held out may be in the training data, too. NumPy keeps the streams of `RandomState` as
    they are.
    """
    random = np.random.RandomState(0)
    train, held_out = (_made(random, n, config.length, change) for n in (TRAIN, HELD_OUT))
    return Data(train, held_out, classes=1 + NUMBERS)


def _made(random: np.random.RandomState, n: int, length: int, change: Callable[[np.ndarray], np.ndarray]) -> Examples:
    source = random.randint(1, 1 + NUMBERS, (n, length)).astype(np.int32)
    lengths = random.randint((length + 1) // 2, length + 1, n)
    mask = np.arange(length) < lengths[:, None]
    target = np.zeros_like(source)
    for row, numbers, m in zip(target, source, lengths, strict=True):
        row[:m] = change(numbers[:m])
    return {"source": source * mask, "source_mask": mask, "target": target, "target_mask": mask}


SETS = {name: partial(load, change=change) for name, change in CHANGES.items()}
