"""What curves show, before anything is drawn: Matplotlib is not needed here."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from experiments.results.records import Record


class Line(NamedTuple):
    """A curve: one run, or the mean of several with each of them thinly behind it."""

    label: str
    runs: Sequence[Sequence[Record]]
    value: Callable[[Record], float]


class Panel(NamedTuple):
    """Lines over the training steps, and perhaps a height to reach."""

    title: str
    lines: Sequence[Line]
    log: bool = False
    target: float | None = None


def error(name: str) -> Callable[[Record], float]:
    """The error in percent, of training (`train`) or of the held-out examples (`eval`)."""
    return lambda record: 100 * (1 - record[f"{name}/accuracy"])
