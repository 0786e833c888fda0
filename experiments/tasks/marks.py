"""The mark of a config: the accuracy on the held-out examples that its run is expected to reach."""

from experiments.cli.errors import UserError
from experiments.config import Config
from experiments.results.records import Record
from experiments.tasks.task import Task


def check(config: Config, task: Task) -> None:
    """Refuses a mark of what is not measured.

    Raises:
      UserError: the task has no accuracy.
    """
    if config.mark is not None and "accuracy" not in task.formats:
        measured = ", ".join(f"`{name}`" for name in task.formats)
        raise UserError(
            f"`config.mark` is an accuracy, but `config.task={config.task}` measures {measured}; leave the mark out."
        )


def sentence(mark: float | None, record: Record) -> str:
    """Whether the last record of a run reaches its mark; nothing where there is none.

    >>> sentence(0.95, {"eval/accuracy": 0.9833})
    'The mark, an accuracy of 0.95, is reached.'
    >>> sentence(0.95, {"eval/accuracy": 0.9})
    'The mark, an accuracy of 0.95, is not reached: it is 0.9000.'
    """
    if mark is None:
        return ""
    accuracy = record["eval/accuracy"]
    return f"The mark, an accuracy of {mark:g}, is " + (
        "reached." if accuracy >= mark else f"not reached: it is {accuracy:.4f}."
    )
