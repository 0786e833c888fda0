"""What the tasks share in which each target is one of some classes: cross entropy, accuracy, and their curves."""

from collections.abc import Callable, Mapping, Sequence

import optax
from jax import Array
from jax.nn import logsumexp

from experiments.results.curves import Line, Panel, Score
from experiments.results.records import AVERAGED, RECALIBRATED, Record, splits
from experiments.tasks.task import Sums, View

LABELS = {
    "train": "training",
    "eval": "held out",
    RECALIBRATED: "held out, recalibrated",
    AVERAGED: "held out, averaged",
}
FORMATS = {"loss": "7.4f", "accuracy": ".4f"}


def measure(logits: Array, view: View, train: bool = False, smoothing: float = 0.0) -> Sums:
    """Sums of cross entropies and of right guesses, over the targets (n, ...) that count.

    In training, labels may be smoothed (arXiv:1512.00567): the loss is the cross entropy with a distribution that has
    `1 - smoothing` on the target and `smoothing` spread evenly over all classes.
    """
    weight = view.weight.astype(logits.dtype)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, view.targets)
    if train and smoothing:
        losses = (1 - smoothing) * losses + smoothing * (logsumexp(logits, axis=-1) - logits.mean(-1))
    correct = logits.argmax(-1) == view.targets
    return {"loss": (weight * losses).sum(), "correct": (weight * correct).sum(), "count": weight.sum()}


def means(sums: Mapping[str, float]) -> dict[str, float]:
    """The mean loss and the accuracy."""
    return {"loss": sums["loss"] / sums["count"], "accuracy": sums["correct"] / sums["count"]}


def logits_shape(view: View, classes: int) -> tuple[int, ...]:
    """A number for every class, of each target."""
    return (*view.targets.shape, classes)


def panel(title: str, records: Sequence[Record], value: Callable[[Record, str], float], log: bool = True) -> Panel:
    """A line for every split that the records have; `value(record, split)` is what it shows."""
    there = splits(records[0]) if records else ("train", "eval")
    lines = [Line(LABELS[s], [records], lambda r, s=s: value(r, s)) for s in there]  # type: ignore[misc]
    return Panel(title, lines, log=log)


def percent_wrong(record: Record, split: str, metric: str = "accuracy") -> float:
    """What is not right, in percent."""
    return 100 * (1 - record[f"{split}/{metric}"])


def loss(record: Record, split: str) -> float:
    """The mean loss."""
    return record[f"{split}/loss"]


ERROR = Score("error", percent_wrong, percent=True, target=5.0)
LOSS = Score("loss", loss)


def verdict(record: Record, what: str, metric: str = "accuracy") -> str:
    """A sentence with a metric of the held-out examples, and of other ways to evaluate where they are there."""
    ways = {RECALIBRATED: "recalibrated statistics", AVERAGED: "averaged weights"}
    there = {way: f"{split}/{metric}" for split, way in ways.items() if f"{split}/{metric}" in record}
    more = "".join(f", with {way} {record[name]:.4f}" for way, name in there.items())
    return f"{what} on the held-out examples: {record[f'eval/{metric}']:.4f}{more}."
