"""Classification: one of some classes for each example. Cross entropy and accuracy."""

from collections.abc import Mapping, Sequence
from functools import partial

from jax import Array

from experiments.config import Config
from experiments.results.curves import Panel
from experiments.results.records import Record
from experiments.tasks import classes
from experiments.tasks.task import Task, View


def view(batch: Mapping[str, Array], keys: Array | None = None) -> View:
    """Images (n, height, width, channels), and their labels (n,)."""
    return View(batch["image"], batch["mask"], batch["label"], batch["mask"])


def panels(records: Sequence[Record]) -> list[Panel]:
    """Error and loss; both scales are logarithmic."""
    return [
        classes.panel("Error, %", records, classes.percent_wrong),
        classes.panel("Loss", records, classes.loss),
    ]


def make(config: Config) -> Task:
    """The task of a config."""
    return Task(
        needs=("image", "label"),
        view=view,
        measure=partial(classes.measure, smoothing=config.regularizers.label_smoothing),
        means=classes.means,
        formats=classes.FORMATS,
        verdict=partial(classes.verdict, what="Accuracy"),
        panels=panels,
        outputs=classes.logits_shape,
    )


TASK = make(Config())
