"""What a study measured: one number a row, in a CSV file from which pages and claims are made without training."""

import csv
import io
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.cli.errors import UserError
from experiments.results.files import write_text


class Row(NamedTuple):
    """One number. Its cell says which setting it was measured in, as `depth=30 norm=batch`."""

    study: str
    cell: str
    seed: int
    metric: str
    step: int  # of training
    value: float
    digest: str  # of everything that the cell was computed with
    commit: str
    versions: str


class Measured(NamedTuple):
    """One number of a cell, before it is known where it was measured."""

    seed: int
    metric: str
    step: int
    value: float
    more: Mapping[str, object] = {}
    """Settings beside those of the cell, where one run serves several."""


def cell_name(settings: Mapping[str, object]) -> str:
    """The settings of a cell in a line.

    >>> cell_name({"norm": "batch", "depth": 30})
    'depth=30 norm=batch'
    """
    words = [f"{name}={settings[name]}" for name in sorted(settings)]
    if wrong := [word for word in words if len(word.split()) != 1]:
        raise ValueError(f"Settings must be words without blanks, but one is {wrong[0]!r}.")
    return " ".join(words)


def settings_of(cell: str) -> dict[str, str]:
    """The settings that `cell_name` wrote.

    >>> settings_of("depth=30 norm=batch")
    {'depth': '30', 'norm': 'batch'}
    """
    return {name: value for name, _, value in (word.partition("=") for word in cell.split())}


class Evidence:
    """The rows of a study. What was not measured is missing, and is never a number."""

    def __init__(self, rows: Iterable[Row]):
        self.rows = tuple(rows)
        self._settings = {cell: settings_of(cell) for cell in {row.cell for row in self.rows}}

    def select(self, settings: Mapping[str, object], metric: str | None = None, step: int | None = None) -> list[Row]:
        """The rows of a metric whose cells have these settings."""
        wanted = {name: str(value) for name, value in settings.items()}
        cells = {cell for cell, own in self._settings.items() if wanted.items() <= own.items()}
        return [
            row for row in self.rows if row.cell in cells and metric in (None, row.metric) and step in (None, row.step)
        ]

    def by_seed(self, metric: str, settings: Mapping[str, object], step: int | None = None) -> dict[int, float]:
        """The values of the seeds, of the one cell that has these settings.

        Raises:
          LookupError: nothing was measured there.
        """
        rows = self.select(settings, metric, step)
        found = {row.seed: row.value for row in rows}
        if not rows:
            raise LookupError(f"{metric} of {cell_name(settings)}")
        if len(found) != len(rows):
            raise ValueError(
                f"`{metric}` of `{cell_name(settings)}` is in more than one cell, or at more than one step."
            )
        return found

    def values(self, metric: str, settings: Mapping[str, object], step: int | None = None) -> np.ndarray:
        """The values of `by_seed`, in the order of the seeds."""
        found = self.by_seed(metric, settings, step)
        return np.array([found[seed] for seed in sorted(found)])

    def choices(self, name: str, settings: Mapping[str, object]) -> list[str]:
        """The values that a setting has in the cells that have these other settings, numbers in their order."""
        owns = [self._settings[row.cell] for row in self.select(settings)]
        found = {own[name] for own in owns if name in own}
        return sorted(found, key=lambda v: (float(v), "") if re.fullmatch(r"[\d.e+-]+", v) else (0.0, v))

    def swapped(self, setting: str, one: str, other: str) -> "Evidence":
        """The same numbers with two values of a setting mixed up, in all cells that have both: a claim must fail."""
        names = {one: other, other: one}

        def mixed_up(cell: str) -> str:
            own = self._settings[cell]
            found = cell_name({**own, setting: names[own[setting]]}) if own.get(setting) in names else cell
            return found if found in self._settings else cell

        return Evidence(row._replace(cell=mixed_up(row.cell)) for row in self.rows)


def save(path: Path, rows: Sequence[Row]) -> None:
    """Writes rows as CSV, the values with six digits.

    A word that stands in the row above, too, is left out. So a word of no letters, as the commit outside of git, is a
    blank.
    """
    text = io.StringIO()
    above: Sequence[Any] = [None] * len(Row._fields)
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(Row._fields)
    for row in rows:
        writer.writerow(_written(value, before) for value, before in zip(row, above, strict=True))
        above = row
    write_text(path, text.getvalue())


def _written(value: Any, above: Any) -> Any:
    if isinstance(value, str):
        return "" if value == above else value or " "
    return f"{value:.6g}" if isinstance(value, float) else value


def _rows(read: Iterable[Mapping[str, str]]) -> Iterator[Row]:
    words: dict[str, str] = {}
    for line in read:
        if None in line.values():
            raise ValueError("a row has fewer words than the head")
        words |= {name: word.strip() for name, word in line.items() if word}
        numbers: dict[str, Any] = {n: kind(line[n]) for n, kind in (("seed", int), ("step", int), ("value", float))}
        yield Row(**{**words, **numbers})


def load(path: Path) -> Evidence:
    """The rows of a CSV file that `save` wrote; none where there is no file.

    Raises:
      UserError: something else stands in it.
    """
    if not path.exists():
        return Evidence(())
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return Evidence(_rows(csv.DictReader(file, strict=True)))
    except (ValueError, TypeError, KeyError, csv.Error) as error:
        raise UserError(f"`{path}` does not hold the rows of a study: {type(error).__name__}: {error}.") from error
