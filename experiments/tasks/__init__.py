"""Tasks, one kind of work a file: a new one is its file and a line in `TASKS`."""

from collections.abc import Callable, Iterable
from functools import partial

from experiments.cli.errors import UserError, short
from experiments.config import Config
from experiments.config.own import called, chosen_or_own
from experiments.results.curves import Score
from experiments.tasks import classes, classification, language_model, sequence_to_sequence
from experiments.tasks.task import Task

TASKS: dict[str, Callable[[Config], Task]] = {
    "classification": classification.make,
    "language_model": language_model.make,
    "masked_language_model": partial(language_model.make, masked=True),
    "sequence_to_sequence": sequence_to_sequence.make,
}


def task_of(config: Config) -> Task:
    """The task of `config.task`.

    Raises:
      UserError: a name that is not in `TASKS`, or something of the user's own that is no task.
    """
    found = chosen_or_own(TASKS, config.task, "config.task")
    task = called(found, config, config.task, "config.task") if callable(found) else found
    if not isinstance(task, Task):
        raise UserError(
            f"`config.task={config.task}` must be an `experiments.tasks.task.Task`, or a function of a config that "
            f"returns one, but it is {short(task)}."
        )
    return task


def score_of(task: Task) -> Score:
    """By which number runs of a task are compared."""
    if task.score is not None:
        return task.score
    return classes.ERROR if "accuracy" in task.formats else classes.LOSS


def check_fits(config: Config, arrays: Iterable[str]) -> None:
    """Refuses data that have not the arrays that the task of a config needs.

    Raises:
      UserError: it names the tasks that they have arrays for.
    """
    there = set(arrays)
    if there >= set(needs := task_of(config).needs):
        return
    fit = [name for name, make in TASKS.items() if there >= set(make(config).needs)]
    other = f"; the task can be {' or '.join(f'`{n}`' for n in fit)} with them" if fit else ""
    raise UserError(
        f"`config.task={config.task}` needs data with {_names(needs)}, but `config.data.name={config.data.name}` has "
        f"{_names(sorted(there))}{other}."
    )


def _names(names: Iterable[str]) -> str:
    return " and ".join(f"`{name}`" for name in names)
