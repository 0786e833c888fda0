"""What a kind of work is to the training program."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from jax import Array

from experiments.results.curves import Panel
from experiments.results.records import Record

Sums = dict[str, Array]  # over the examples that count; they can be added over batches, and over devices


class Task(NamedTuple):
    """What is minimized, measured and shown."""

    measure: Callable[[Array, Mapping[str, Array]], Sums]
    """`measure(outputs, batch)`: sums, among them `loss`, what is minimized, and `count`, of so many examples."""
    means: Callable[[Mapping[str, float]], dict[str, float]]
    """`means(sums)`: the metrics, of sums over all batches."""
    formats: Mapping[str, str]
    """The metrics by name, and how their numbers are written in a line."""
    verdict: Callable[[Record], str]
    """`verdict(record)`: a sentence on the last record of a run."""
    panels: Callable[[Sequence[Record]], list[Panel]]
    """`panels(records)`: the curves of a run."""

    def line(self, record: Record, split: str) -> str:
        """The metrics of a split, `train` or `eval`, in a line."""
        values = (f"{name} {record[f'{split}/{name}']:{form}}" for name, form in self.formats.items())
        return f"{split} {' '.join(values)}"
