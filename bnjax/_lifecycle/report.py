"""What a verb did to each norm of a model, and why not."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, overload

import numpy as np


class Row(NamedTuple):
    """What a verb did to one norm.

    Attributes:
      path: of the module in the state, joined by "/"; the root is "". Of another leaf of the state, its own path.
      kind: what the norm is: a name of `bnjax.NORMS`, or the name of a class.
      done: whether the verb did it.
      reason: why not, or what is to be known of it.
      evidence: numbers, by name.
    """

    path: str
    kind: str
    done: bool
    reason: str = ""
    evidence: dict[str, Any] = {}  # noqa: RUF012


class Report(Sequence[Row]):
    """One row for each norm, in the order of the state. `report[path]` is the row of that path.

    >>> report = Report([Row("stem/norm", "batch", True), Row("head/norm", "batch", False, "`call` never calls it")])
    >>> report.done, report.refused
    (('stem/norm',), ('head/norm',))
    >>> report["head/norm"].reason
    '`call` never calls it'
    """

    def __init__(self, rows: Iterable[Row] = ()):
        self._rows = {row.path: row for row in rows}

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[Row]:
        return iter(self._rows.values())

    @overload
    def __getitem__(self, key: int | str) -> Row: ...
    @overload
    def __getitem__(self, key: slice) -> list[Row]: ...
    def __getitem__(self, key: int | str | slice) -> Row | list[Row]:
        if not isinstance(key, str):
            return list(self)[key]
        if key not in self._rows:
            raise KeyError(f"{key!r} is no path of this report, which has {', '.join(map(repr, self._rows)) or 'none'}")
        return self._rows[key]

    @property
    def done(self) -> tuple[str, ...]:
        """The paths of the norms to which it was done."""
        return tuple(row.path for row in self if row.done)

    @property
    def refused(self) -> tuple[str, ...]:
        """The paths of all others."""
        return tuple(row.path for row in self if not row.done)

    def to_json(self) -> str:
        """The rows as a JSON list of objects."""
        return json.dumps([row._asdict() | {"evidence": plain(row.evidence)} for row in self])

    def __str__(self) -> str:
        rows = [
            (row.path or "(root)", row.kind, "done" if row.done else "refused", said(row.reason, row.evidence))
            for row in self
        ]
        return table([("path", "kind", "", "why, or figures"), *rows])

    def __repr__(self) -> str:
        return f"<Report: {len(self.done)} done, {len(self.refused)} refused>\n{self}"


def raise_if_nothing_done(verb: str, report: Report, remedy: str) -> None:
    """Raises where a verb found nothing that it could do; lists what there is, and the reasons."""
    if report.done:
        return
    rows = [f"  {row.path or '(root)'} ({row.kind}): {row.reason}" for row in report]
    found = "\n".join(rows) if rows else "  no norm at all"
    raise ValueError(f"`{verb}` found nothing to do. {remedy}\nIt found:\n{found}")


def table(rows: Sequence[Sequence[str]]) -> str:
    """Rows of text in columns; the first row is the head."""
    widths = [max(len(row[n]) for row in rows) for n in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths).rstrip(), *lines[1:]])


def said(reason: str, evidence: Mapping[str, Any]) -> str:
    """A reason and figures, as a table has them."""
    figures = ", ".join(f"{name} {_short(value)}" for name, value in evidence.items())
    return "; ".join(filter(None, (reason, figures)))


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def plain(value: Any) -> Any:
    """Numbers of numpy and JAX as those of Python; JSON has no infinity and no NaN."""
    if isinstance(value, Mapping):
        return {name: plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    if value is None or isinstance(value, bool | int | str):
        return value
    value = np.asarray(value).tolist()
    if isinstance(value, list):
        return plain(value)
    return value if isinstance(value, bool | int) or (isinstance(value, float) and math.isfinite(value)) else str(value)
