"""Tasks, one kind of work a file: a new one is its file and a line in `TASKS`."""

from experiments.cli.errors import chosen
from experiments.tasks import classification
from experiments.tasks.task import Task

TASKS: dict[str, Task] = {"classification": classification.TASK}


def task_of(name: str) -> Task:
    """The task of `config.task`.

    Raises:
      UserError: a name that is not in `TASKS`.
    """
    return chosen(TASKS, name, "config.task")
