"""Tasks, one kind of work a file: a new one is its file and a line in `TASKS`."""

from collections.abc import Sequence
from pathlib import Path

from experiments.cli.errors import chosen
from experiments.results.plots import save_panels
from experiments.results.records import Record
from experiments.tasks import classification
from experiments.tasks.task import Task

TASKS: dict[str, Task] = {"classification": classification.TASK}


def task_of(name: str) -> Task:
    """The task of `config.task`.

    Raises:
      UserError: a name that is not in `TASKS`.
    """
    return chosen(TASKS, name, "config.task")


def save_curves(path: Path, records: Sequence[Record], title: str, task: Task = classification.TASK) -> None:
    """The curves of one run as a picture."""
    save_panels(path, task.panels(records), title)
