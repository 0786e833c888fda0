"""Classification: cross entropy and accuracy."""

from collections.abc import Mapping, Sequence

import optax
from jax import Array

from experiments.results.curves import Line, Panel, error
from experiments.results.records import MORE, RECALIBRATED, Record, has_recalibrated
from experiments.tasks.task import Sums, Task


def measure(logits: Array, batch: Mapping[str, Array]) -> Sums:
    """Sums over the examples of a batch that count: sums can be added over batches, and over devices."""
    weight = batch["mask"].astype(logits.dtype)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
    correct = logits.argmax(-1) == batch["label"]
    return {"loss": (weight * losses).sum(), "correct": (weight * correct).sum(), "count": weight.sum()}


def means(sums: Mapping[str, float]) -> dict[str, float]:
    """The mean loss and the accuracy."""
    return {"loss": sums["loss"] / sums["count"], "accuracy": sums["correct"] / sums["count"]}


def verdict(record: Record) -> str:
    again = f", with recalibrated statistics {record[MORE[1]]:.4f}" if has_recalibrated(record) else ""
    return f"Accuracy on the held-out examples: {record['eval/accuracy']:.4f}{again}."


def panels(records: Sequence[Record]) -> list[Panel]:
    """Error and loss; both scales are logarithmic."""
    splits = {"train": "training", "eval": "held out"}
    if records and has_recalibrated(records[0]):
        splits[RECALIBRATED] = "held out, recalibrated"
    errors = [Line(label, [records], error(name)) for name, label in splits.items()]
    losses = [Line(label, [records], lambda r, n=name: r[f"{n}/loss"]) for name, label in splits.items()]  # type: ignore[misc]
    return [Panel("Error, %", errors, log=True), Panel("Loss", losses, log=True)]


TASK = Task(measure, means, {"loss": "7.4f", "accuracy": ".4f"}, verdict, panels)
