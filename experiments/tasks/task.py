"""What a kind of work is to the training program."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from jax import Array

from experiments.results.curves import Panel, Score
from experiments.results.records import Record

Sums = dict[str, Array]  # over what counts in a batch; they can be added over batches, and over devices


class View(NamedTuple):
    """A batch as a task sees it: all arrays have a row for each example."""

    inputs: Any
    """What the model is called with: an array, or arrays by their names."""
    mask: Any
    """What of the inputs counts, true or false: of each example (n,), or of each position (n, length), as `inputs`."""
    targets: Any
    """What the outputs of the model should be."""
    weight: Array
    """Which outputs count: true or false, of the shape of the losses."""


class Task(NamedTuple):
    """What is minimized, measured and shown."""

    needs: Sequence[str]
    """The arrays that the data must have."""
    view: Callable[[Mapping[str, Array], Array | None], View]
    """`view(batch, keys)`: what the model gets and what it should give. `keys` (n,) are random keys, one for each
    example, of a task that is `random`; else None."""
    measure: Callable[[Any, View, bool], Sums]
    """`measure(outputs, view, train)`: sums, among them `loss`, what is minimized, and `count`, that of the weights."""
    means: Callable[[Mapping[str, float]], dict[str, float]]
    """`means(sums)`: the metrics, of sums over all batches; `loss` is among them."""
    formats: Mapping[str, str]
    """The metrics by name, and how their numbers are written in a line."""
    verdict: Callable[[Record], str]
    """`verdict(record)`: a sentence on the last record of a run."""
    panels: Callable[[Sequence[Record]], list[Panel]]
    """`panels(records)`: the curves of a run."""
    score: Score | None = None
    """By which number runs are compared; by default the error if `accuracy` is a metric, else the loss."""
    random: bool = False
    """Whether `view` draws random numbers."""
    outputs: Callable[[View, int], tuple[int, ...]] | None = None
    """`outputs(view, classes)`: the shape that the outputs must have, where it is known."""
    options: Mapping[str, Any] = {}
    """Keywords for the function that builds a model, where it takes them."""

    def line(self, record: Record, split: str) -> str:
        """The metrics of a split, `train` or `eval`, in a line."""
        values = (f"{name} {record[f'{split}/{name}']:{form}}" for name, form in self.formats.items())
        return f"{split} {' '.join(values)}"
