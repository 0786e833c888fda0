"""Sequence to sequence: each token of a target from the source and the tokens before it (arXiv:1409.3215)."""

from collections.abc import Mapping, Sequence
from functools import partial

from jax import Array

from experiments.config import Config
from experiments.results.curves import Panel, Score
from experiments.results.records import Record
from experiments.tasks import classes
from experiments.tasks.language_model import counted, shifted
from experiments.tasks.task import Sums, Task, View


def view(batch: Mapping[str, Array], keys: Array | None = None) -> View:
    """Source (n, s) and target (n, t), which the model gets shifted by one."""
    mask = {name: counted(batch, name) for name in ("source", "target")}
    inputs = {"source": batch["source"], "target": shifted(batch["target"])}
    return View(inputs, mask, batch["target"], mask["target"])


def measure(logits: Array, view: View, train: bool, smoothing: float = 0.0) -> Sums:
    """Sums over the tokens that count; and how many sequences there are, and how many have no wrong token."""
    right = (logits.argmax(-1) == view.targets) | ~view.weight
    there = view.weight.any(-1)
    whole = {"whole": (there & right.all(-1)).sum(dtype=logits.dtype), "sequences": there.sum(dtype=logits.dtype)}
    return {**classes.measure(logits, view, train, smoothing), **whole}


def means(sums: Mapping[str, float]) -> dict[str, float]:
    """The mean loss of a token, the accuracy of tokens, and that of whole sequences."""
    return {**classes.means(sums), "whole": sums["whole"] / sums["sequences"]}


wrong_sequences = partial(classes.percent_wrong, metric="whole")


def panels(records: Sequence[Record]) -> list[Panel]:
    """How many sequences have a wrong token, and the loss of a token."""
    return [
        classes.panel("Sequences with a wrong token, %", records, wrong_sequences, log=False),
        classes.panel("Loss", records, classes.loss),
    ]


def make(config: Config) -> Task:
    """The task of a config."""
    return Task(
        needs=("source", "target"),
        view=view,
        measure=partial(measure, smoothing=config.regularizers.label_smoothing),
        means=means,
        formats={**classes.FORMATS, "whole": ".4f"},
        verdict=partial(classes.verdict, what="Sequences without a wrong token", metric="whole"),
        panels=panels,
        score=Score("wrong sequences", wrong_sequences, percent=True, log=False),
        outputs=classes.logits_shape,
    )
