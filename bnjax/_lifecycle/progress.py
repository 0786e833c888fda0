"""Progress on passes that may be long: by rich, where it is installed and somebody looks."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

T = TypeVar("T")


def counted(items: Iterable[T], what: str) -> Iterator[T]:
    """The items, with a line on the terminal that counts them; nothing is printed where there is no terminal."""
    if not sys.stderr.isatty():
        yield from items
        return
    try:
        from rich import progress
        from rich.console import Console
    except ImportError:
        yield from items
        return
    columns: tuple[Any, ...] = (
        progress.TextColumn("{task.description}"), progress.BarColumn(), progress.MofNCompleteColumn(),
        progress.TimeElapsedColumn(),
    )  # fmt: skip
    with progress.Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        yield from bar.track(items, description=what)
