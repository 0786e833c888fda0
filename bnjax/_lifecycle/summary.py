"""A table of the norms of a model."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from bnjax._lifecycle.report import table

Range = tuple[float, float] | None


class NormRow(NamedTuple):
    """One norm of a model.

    Attributes:
      path: of the module, joined by "/"; the root is "".
      kind: a name of `bnjax.NORMS`, or the name of a class that is none of those.
      axis: the feature axes, as the module has them.
      momentum: the fraction of the running state that is kept; `None` without a running state, and for an exact pool.
      axis_name: the axis of devices that is measured over, too.
      parameters: the shapes of the parameters, by name.
      mean: the least and the largest running mean; `None` without one.
      var: likewise of the running variance.
      called: whether the example reached it.
    """

    path: str
    kind: str
    axis: Any
    momentum: Any
    axis_name: Any
    parameters: dict[str, tuple[int, ...]]
    mean: Range
    var: Range
    called: bool = True


@dataclasses.dataclass(frozen=True)
class Summary:
    """The norms of a model; `str` makes a table of it.

    Attributes:
      rows: one for each norm.
    """

    rows: tuple[NormRow, ...]

    def __str__(self) -> str:
        head = ("path", "kind", "axis", "momentum", "axis_name", "parameters", "mean", "var", "")
        return table([head, *map(_cells, self.rows)])


def norm_row(path: str, kind: str, attributes: Any, parameters: Any, stats: Mapping[str, Any], called: bool) -> NormRow:
    """A row, from the attributes of a module and its variables."""
    axis = getattr(attributes, "axis", getattr(attributes, "feature_axes", None))
    shapes = {name: tuple(np.shape(leaf)) for name, leaf in parameters.items()}
    return NormRow(
        path, kind, axis, getattr(attributes, "momentum", None), getattr(attributes, "axis_name", None), shapes,
        _range(stats.get("mean")), _range(stats.get("var")), called,
    )  # fmt: skip


def _range(leaf: Any) -> Range:
    if leaf is None or isinstance(leaf, jax.ShapeDtypeStruct) or not np.size(leaf):
        return None
    value = np.abs(leaf) if np.iscomplexobj(leaf) else np.asarray(leaf, np.float64)
    return float(value.min()), float(value.max())


def _cells(row: NormRow) -> tuple[str, ...]:
    parameters = ", ".join(f"{name} {'x'.join(map(str, shape)) or '1'}" for name, shape in row.parameters.items())
    plain = ["" if value is None else str(value) for value in (row.axis, row.momentum, row.axis_name)]
    ranges = ["" if r is None else f"{r[0]:.3g} to {r[1]:.3g}" for r in (row.mean, row.var)]
    return (row.path or "(root)", row.kind, *plain, parameters, *ranges, "" if row.called else "not called")
