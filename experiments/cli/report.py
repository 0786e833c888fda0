"""Progress: a bar on a terminal, plain lines elsewhere."""

import contextlib
from collections.abc import Callable, Iterator

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn


class _Console(Console):
    def on_broken_pipe(self) -> None:  # which would end the program without a word
        raise


class Report:
    """What a running experiment tells its user."""

    def __init__(self, console: Console, progress: Progress, task: TaskID):
        self._console, self._progress, self._task = console, progress, task

    watch: Callable[[dict[str, float]], None] | None = None
    """What is called with each record of a run."""

    def record(self, values: dict[str, float]) -> None:
        """A record was added to the log of a run."""
        if self.watch is not None:
            self.watch(values)

    def advance(self, steps: int = 1) -> None:
        self._progress.advance(self._task, steps)

    def title(self, text: str) -> None:
        """Says what is being done: beside the bar, or in a line where there is none."""
        self._progress.update(self._task, description=text)
        if not self._console.is_terminal:
            self.line(text)

    def line(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def show(self, what: RenderableType) -> None:
        self._console.print(what)


@contextlib.contextmanager
def reporting(total: int, quiet: bool = False) -> Iterator[Report]:
    """A `Report` on `total` steps; `quiet` says nothing."""
    console = _Console(quiet=quiet)
    description = TextColumn("{task.description}", markup=False)  # a path may hold [/b]
    columns = (description, BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=quiet or not console.is_terminal) as progress:
        yield Report(console, progress, progress.add_task("", total=total))
