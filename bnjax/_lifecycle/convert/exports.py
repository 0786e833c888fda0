"""`to_torch`: the variables of a Flax model as the arrays of PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from bnjax._lifecycle.convert.imports import Parts
from bnjax._lifecycle.convert.layers import LOST, Layer
from bnjax._lifecycle.convert.layouts import from_flax
from bnjax._lifecycle.convert.renamed import path_and_change
from bnjax._lifecycle.convert.rows import BETWEEN
from bnjax._lifecycle.convert.torch_names import full_name, joined, name_of
from bnjax._lifecycle.convert.values import per_output, put_together
from bnjax._lifecycle.report import Report, Row

Rename = Callable[[str], Any] | Report


def exported(parts: Parts, rename: Rename | None) -> dict[str, np.ndarray]:
    """The arrays by PyTorch's names, each in C order.

    Raises:
      ValueError: variables that cannot be converted; one name for two arrays.
    """
    if rename is not None and not callable(rename) and not isinstance(rename, Report):
        raise ValueError(f"`rename` must be a function of a path or a `Report`, but it is a {type(rename).__name__}.")
    if isinstance(rename, Report) and not any(_of_report(layer, rename) for layer in parts.layers):
        raise ValueError("`rename` is a report of another model: it has no layer of this one.")
    lost = [f"{layer.path!r} ({layer.seen.cls})" for layer in parts.layers if layer.kind == LOST]
    if lost and (rename is None or isinstance(rename, Report)):
        raise ValueError(
            f"`to_torch` does not know what {', '.join(lost[:8])} is to PyTorch. Name all arrays by `rename`, a "
            "function that gives for each path a name, or a name and a function of the array, or None to leave it out."
        )
    arrays: dict[str, np.ndarray] = {}
    for layer in parts.layers:
        for name, value in _arrays(layer, parts, rename):
            if name in arrays:
                raise ValueError(f"`rename` gives the name {name!r} twice, the second time for {layer.shown!r}.")
            arrays[name] = contiguous(value)
    return joined(arrays)


def _arrays(layer: Layer, parts: Parts, rename: Rename | None) -> Iterator[tuple[str, np.ndarray]]:
    """The arrays of a layer with their names."""
    if rename is not None and not isinstance(rename, Report):
        for role, leaf in layer.leaves.items():
            name, change = path_and_change(leaf.shown, rename(leaf.shown))
            if name is not None:
                value = _value(layer, role, parts)
                yield name, value if change is None else np.asarray(change(contiguous(value)))
        return
    unit, evidence = _unit(layer, parts, rename)
    known = evidence.get("arrays", {})
    layer.offset = evidence.get("offset", 0.0) if evidence else layer.plus
    layer.as_is = evidence.get("as_is", False)
    values = {role: _value(layer, role, parts) for role in layer.leaves}
    if "length" in values and not (per_output(layer) and (not evidence or "length" in known)):
        values = _without_length(layer, values, parts)
    for role, value in values.items():
        relative, shape = known.get(role, (name_of(layer, role, values), None))
        yield full_name(unit, relative), value if shape is None else value.reshape(shape)
    if layer.kind == "batch" and "mean" in values:
        yield full_name(unit, "num_batches_tracked"), np.asarray(evidence.get("steps", 0), np.int64)


def contiguous(value: np.ndarray) -> np.ndarray:
    """A copy in C order, which safetensors takes for granted; `np.ascontiguousarray` would make a number a vector."""
    return np.array(value, order="C")


def _value(layer: Layer, role: str, parts: Parts) -> np.ndarray:
    leaf = layer.leaves[role]
    value = from_flax("torch", layer, role, leaf.get(parts.model.leaves[leaf.name]))
    return value.reshape(-1, *(1,) * (len(layer.leaves["weight"].shape) - 1)) if role == "length" else value


def _without_length(layer: Layer, values: dict[str, np.ndarray], parts: Parts) -> dict[str, np.ndarray]:
    """Weight norm put together, where PyTorch has none, or other lengths."""
    leaves = [layer.leaves[role] for role in ("weight", "length")]
    kernel, length = (leaf.get(parts.model.leaves[leaf.name]) for leaf in leaves)
    axes = layer.seen.length_axes or ()
    shape = [n if a in axes else 1 for a, n in enumerate(kernel.shape)]
    weight = from_flax("torch", layer, "weight", put_together(kernel, length.reshape(shape)))
    return {role: value for role, value in values.items() if role != "length"} | {"weight": weight}


def _of_report(layer: Layer, report: Report | None) -> Row | None:
    return next((row for row in report or () if row.path == layer.path and "from" in row.evidence), None)


def _unit(layer: Layer, parts: Parts, report: Report | None) -> tuple[str, dict[str, Any]]:
    """The layer of PyTorch that a layer came from, and what is known of it."""
    row = _of_report(layer, report)
    if row is None:
        return layer.name, {}  # nobody's, such as a new head
    same = [one for one in parts.layers if one.path == layer.path]
    return row.evidence["from"].split(BETWEEN)[same.index(layer)], row.evidence
