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


class Score(NamedTuple):
    """The number by which runs of a task are compared: the smaller, the better."""

    name: str
    value: Callable[[Record, str], float]
    """`value(record, split)`: that of a split of a record, such as `eval`."""
    percent: bool = False
    """Whether it is a part of a hundred."""
    target: float | None = None
    """How small it should get, if that can be said."""
    log: bool = True
    """Whether its curves are drawn on a logarithmic scale, where no number is below zero."""

    def on(self, examples: str) -> str:
        """What it is called where it is a number of these examples.

        >>> Score("error", lambda record, split: 0.0, percent=True).on("held-out examples")
        'Error on held-out examples, %'
        """
        return f"{self.name[0].upper()}{self.name[1:]} on {examples}{self.unit}"

    @property
    def goal(self) -> str:
        """The target in words, or nothing."""
        return "" if self.target is None else f"{self.target:g}{' %' if self.percent else ''}"

    @property
    def unit(self) -> str:
        """What stands behind the name."""
        return ", %" if self.percent else ""
