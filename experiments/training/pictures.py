"""The picture of a run."""

from collections.abc import Sequence
from pathlib import Path

from experiments.results.plots import save_panels
from experiments.results.records import Record
from experiments.tasks import classification
from experiments.tasks.task import Task


def save_curves(path: Path, records: Sequence[Record], title: str, task: Task = classification.TASK) -> None:
    """The curves of one run as a picture."""
    save_panels(path, task.panels(records), title)
