"""The report of what went where."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from bnjax._lifecycle.convert.layers import Layer
from bnjax._lifecycle.convert.layouts import from_flax
from bnjax._lifecycle.convert.match import Matched
from bnjax._lifecycle.convert.torch_names import name_of
from bnjax._lifecycle.convert.units import PARTS_OF, Unit
from bnjax._lifecycle.convert.values import per_output
from bnjax._lifecycle.report import Row

# In Flax's sense.
DEFAULTS = {"torch": {"epsilon": 1e-5, "momentum": 0.9}, "keras": {"epsilon": 1e-3, "momentum": 0.99}}
NAMES = {"torch": "PyTorch", "keras": "Keras"}
BETWEEN = ", "  # the names of slices


def rows_of(
    dialect: str,
    layers: Sequence[Layer],
    matched: Matched,
    numbers: Sequence[Unit],
    errors: Mapping[int, float],
    keeps: Callable[[str], bool],
) -> list[Row]:
    """One row for each layer of the model, then one for each of the source that goes nowhere.

    Args:
      dialect: "torch" or "keras".
      layers: of the model.
      matched: what goes into them.
      numbers: of the source, what is no weight.
      errors: the differences of outputs, by the ids of layers.
      keeps: whether a leaf stays as it is.
    """
    found = {id(layer): unit for layer, unit in matched.pairs}
    slices: dict[str, list[Layer]] = defaultdict(list)
    for layer in layers:
        slices[layer.path].append(layer)
    rows = [
        _row(dialect, path, same, [found.get(id(layer)) for layer in same], errors, keeps)
        for path, same in slices.items()
    ]
    rows += [Row(f"source: {unit.name}", "unknown", False, "it goes nowhere") for unit in matched.left]
    return rows + [Row(f"source: {unit.name}", "integers", False, "it is no weight") for unit in numbers]


def _row(
    dialect: str,
    path: str,
    same: Sequence[Layer],
    units: Sequence[Unit | None],
    errors: Mapping[int, float],
    keeps: Callable[[str], bool],
) -> Row:
    layer, known = same[0], [unit for unit in units if unit is not None]
    kind = layer.seen.cls if layer.kind in ("own", "value") else layer.kind
    kept = [leaf.name for leaf in layer.leaves.values() if keeps(leaf.name)]
    if not known or len(kept) == len(layer.leaves):
        return Row(path, kind, False, "it is kept as it was")
    evidence: dict[str, object] = {"from": BETWEEN.join(unit.name for unit in known)}
    if any(id(one) in errors for one in same):
        evidence["error"] = max(errors[id(one)] for one in same if id(one) in errors)
    if dialect == "torch" and not PARTS_OF.match(known[0].name) and (arrays := _unusual(layer, known[0])):
        evidence["arrays"] = arrays
    if layer.as_is:
        evidence["as_is"] = True
    if layer.offset:
        evidence["offset"] = layer.offset
    steps = [int(unit.tensors["steps"]) for unit in known if "steps" in unit.tensors]
    if steps:
        evidence["steps"] = steps[0]
    return Row(path, kind, True, "; ".join(_said(dialect, layer, known[0], kept)), evidence)


def _unusual(layer: Layer, unit: Unit) -> dict[str, tuple[str, tuple[int, ...]]]:
    """The names within the layer, and the shapes, that `to_torch` would not give by itself."""
    if "length" in unit.tensors and not per_output(layer):
        return {}  # the weight was put together
    usual, found = {}, {}
    for role, value in unit.tensors.items():
        if role in layer.leaves:
            found[role] = unit.names[role].removeprefix(unit.name).removeprefix("."), value.shape
            usual[role] = name_of(layer, role, unit.tensors), _shape(layer, role)
    return found if found != usual or "length" in found else {}


def _shape(layer: Layer, role: str) -> tuple[int, ...]:
    """That of an array as `to_torch` gives it."""
    blank = np.broadcast_to(np.float32(0), layer.leaves[role].shape)
    return from_flax("torch", dataclasses.replace(layer, rows=None, columns=None), role, blank).shape


def _said(dialect: str, layer: Layer, unit: Unit, kept: Sequence[str]) -> list[str]:
    """What is to be known of a layer."""
    said = [f"{name!r} is kept as it was" for name in kept]
    for name, default in DEFAULTS[dialect].items():
        own, theirs = layer.seen.settings.get(name), unit.settings.get(name)
        if own is None or (theirs is None and unit.settings):
            continue
        if theirs is None and not np.isclose(own, default, rtol=1e-6):
            said.append(f"{name} is {own:g}; {NAMES[dialect]}'s default is {default:g}")
        elif theirs is not None and not np.isclose(own, theirs, rtol=1e-6):
            said.append(f"{name} is {own:g}, and in the source {theirs:g}: write `{name}={theirs:g}`")
    if not unit.settings and dialect == "torch" and _pads_otherwise(layer):
        said.append("padding is 'SAME', which in PyTorch is another for even sizes: see `expect`")
    if "mean" in layer.leaves and "steps" in unit.tensors:
        said.append("the variance is PyTorch's, which is unbiased")
    missing = [
        leaf.name for role, leaf in layer.leaves.items() if role not in unit.tensors and role in ("weight", "bias")
    ]
    return said + [f"the source has nothing for {name!r}, which is now neutral" for name in missing]


def _pads_otherwise(layer: Layer) -> bool:
    """Whether Flax's padding depends on the size of the image."""
    strides = layer.seen.settings.get("strides") or 1
    return layer.seen.settings.get("padding") == "SAME" and bool(np.max(strides) > 1)
