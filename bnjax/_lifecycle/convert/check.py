"""What the layers of both models compute, side by side: the first difference, and what to write."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from bnjax._lifecycle.compare import difference
from bnjax._lifecycle.convert.layers import Layer
from bnjax._lifecycle.convert.origin import Origin, Ran
from bnjax._lifecycle.convert.units import Unit, tokens

MOST, MOST_LOW = 1e-3, 0.1  # of the largest entry, in float32 and in bfloat16 or float16

Calls = Mapping[str, Sequence[tuple[Any, Any]]]  # the inputs and outputs of a Flax model's layers, by path


class Met(NamedTuple):
    """One call of a layer in both models."""

    layer: Layer
    unit: Unit
    ours: tuple[Any, Any]
    theirs: Ran


class DifferenceError(ValueError):
    """The first difference.

    Attributes:
      met: where.
      calls: what the layers of the Flax model computed.
    """

    def __init__(self, said: str, met: Met, calls: Calls):
        super().__init__(said)
        self.met, self.calls = met, calls


class OutputError(ValueError):
    """The outputs of both models differ."""


def errors(
    verb: str, pairs: Sequence[tuple[Layer, Unit]], calls: Calls, origin: Origin, most: float
) -> dict[int, float]:
    """The largest difference of the output of each layer, by the id of the layer, relative to the largest output.

    Raises:
      DifferenceError: a difference; says at which layer, and what to write.
    """
    found: dict[int, float] = {}
    before: Met | None = None
    for met in _met(pairs, calls, origin):
        error = _difference(met.ours[1], met.theirs.y, met.layer)
        if not error <= most:
            raise DifferenceError(_first(verb, met, before, error, origin, most), met, calls)
        found[id(met.layer)] = max(error, found.get(id(met.layer), 0.0))
        before = met
    return found


def swapped(
    pairs: Sequence[tuple[Layer, Unit]], differs: DifferenceError, origin: Origin, most: float
) -> list[tuple[Layer, Unit]] | None:
    """The pairs with another unit where the difference is: one that has the input which this layer has, and its shapes.

    Branches may be computed in another order in the source. All layers before agree, so the input of this one is right.
    """
    met = differs.met
    here = next(n for n, (layer, _) in enumerate(pairs) if layer is met.layer)
    at_input = _at_input(met)
    if at_input is None or at_input <= most:
        return None
    shapes = {role: t.shape for role, t in met.unit.tensors.items()}
    ran = {call.name: call for call in (origin.run.calls if origin.run else ())}
    for n, (_, unit) in enumerate(pairs[here + 1 :], here + 1):
        call = ran.get(unit.owner or unit.name)
        if call is None or shapes != {role: t.shape for role, t in unit.tensors.items()}:
            continue
        closeness = _at_input(met._replace(unit=unit, theirs=call))
        if closeness is not None and closeness <= most:
            new = list(pairs)
            new[here], new[n] = (pairs[here][0], unit), (pairs[n][0], met.unit)
            return new
    return None


def parallel(pairs: Sequence[tuple[Layer, Unit]], origin: Origin) -> list[int]:
    """Where layers end that have other names, one shape and one input: what each computes fits any of them.

    Each is told by the last of its layers in `pairs`.
    """
    ran = {call.name: call for call in (origin.run.calls if origin.run else ())}
    alike: dict[Any, list[int]] = defaultdict(list)
    for n, (layer, unit) in enumerate(pairs):
        call = ran.get(unit.owner or unit.name)
        if call is not None and tokens(layer.name) != tokens(unit.name):
            x = np.asarray(call.x)
            shapes = tuple(sorted((role, t.shape) for role, t in unit.tensors.items()))
            alike[shapes, x.shape, x.tobytes()].append(n)
    return [max(group) for group in alike.values() if len(group) > 1]


def output(said: str, ours: Any, theirs: Any, most: float) -> float:
    """The difference of the outputs of both models; not a number where they cannot be compared.

    Raises:
      OutputError: a difference; begins with `said`.
    """
    a, b = jax.tree.leaves(ours), jax.tree.leaves(theirs)
    if len(a) != len(b) or not a:
        return float("nan")
    error = max(_difference(x, y, None) for x, y in zip(a, b, strict=True))
    if np.isinf(error):
        return float("nan")
    if not error <= most:
        raise OutputError(f"{said} differs by {error:.1e} of its largest entry.")
    return error


def _met(pairs: Sequence[tuple[Layer, Unit]], calls: Calls, origin: Origin) -> list[Met]:
    """The calls in the order of the Flax model."""
    theirs: dict[str, list[Ran]] = defaultdict(list)
    for ran in origin.run.calls if origin.run else ():
        theirs[ran.name].append(ran)
    slices = defaultdict(list)
    for layer, _ in pairs:
        slices[layer.path].append(layer)
    met = []
    for layer, unit in pairs:
        own, other = calls.get(layer.path, ()), theirs.get(unit.owner or unit.name, ())
        if len(slices[layer.path]) > 1 or layer.index:
            own = [own[slices[layer.path].index(layer)]] if len(own) == len(slices[layer.path]) else ()
        if unit.sees != "neither":
            met += [Met(layer, unit, a, b) for a, b in zip(own, other, strict=False)]
    return met


def _difference(ours: Any, theirs: Any, layer: Layer | None) -> float:
    """The largest difference, whatever the order of the axes; infinite for different shapes."""
    a, b = np.asarray(ours), np.asarray(theirs)
    order = None
    if layer is not None and a.ndim == 2:
        order = layer.columns if layer.is_product or layer.rows is None else layer.rows
    candidates = [b if order is None or b.shape[-1] != len(order) else b[:, order]]
    if b.ndim > 2:
        candidates.insert(0, np.moveaxis(b, 1, -1))
    if layer is not None and a.ndim > b.ndim > 1:  # features in several axes
        candidates.append(b.reshape(a.shape) if a.size == b.size else b)
    found = [difference(c, a) for c in candidates if c.shape == a.shape]
    return min(found, default=float("inf"))


def _first(verb: str, met: Met, before: Met | None, error: float, origin: Origin, most: float) -> str:
    layer, theirs = met.layer, met.theirs
    figure = (
        f"differ by {error:.1e} of the largest entry"
        if np.isfinite(error)
        else (f"have different shapes, {np.shape(met.ours[1])} and {np.shape(theirs.y)}")
    )
    at_input = _at_input(met)
    head = (
        f"`{verb}` compared the outputs of all layers. The first ones that differ are those of {layer.shown!r} and, in "
        f"the source, of {theirs.name!r}, which {figure}."
    )
    if at_input is None:
        return f"{head} {_same_input(layer, theirs)}"
    if at_input <= most:
        return f"{head} Their inputs agree. {_same_input(layer, theirs)}"
    return f"{head} Their inputs differ already. {_between(met, before, origin)}"


def _at_input(met: Met) -> float | None:
    """The difference of the inputs, where they can be compared."""
    if met.unit.sees != "both" or not np.ndim(met.ours[0]):
        return None
    if met.layer.rows is not None and np.ndim(met.theirs.x) == 2:
        return _difference(met.ours[0], np.asarray(met.theirs.x)[:, met.layer.rows], None)
    return _difference(met.ours[0], met.theirs.x, None)


def _same_input(layer: Layer, theirs: Ran) -> str:
    """What differs in the layer itself."""
    ours, wrong = layer.seen.settings, []
    for name, value in theirs.settings.items():
        own = ours.get(name)
        if own is None or name == "momentum" or _equal(own, value):
            continue
        wrong.append(f"{name} is {own!r}, and there it is {value!r}: write `{name}={value!r}`")
    if wrong:
        return f"In the layer of the Flax model {'; '.join(wrong)}."
    if "mean" in layer.leaves:
        return (
            "It normalizes by the batch, or the layers are matched wrongly. `call` must run the model as for "
            "evaluation, such as `lambda model, x: model(x, train=False)`; else see `rename`."
        )
    return "Both have the same settings as far as can be seen, so the layers may be matched wrongly: see `rename`."


def _equal(ours: Any, theirs: Any) -> bool:
    """Whether settings are the same; one number stands for all axes."""
    if isinstance(ours, str) or isinstance(theirs, str):
        return ours == theirs
    a, b = np.asarray(ours, float), np.asarray(theirs, float)
    return bool(a.ndim == 0 or b.ndim == 0 or a.shape == b.shape) and bool(np.allclose(a, b, rtol=1e-6, atol=0))


def _between(met: Met, before: Met | None, origin: Origin) -> str:
    """What runs between the layer and the one before it that agreed."""
    calls = list(origin.run.calls) if origin.run else []
    end = next(n for n, call in enumerate(calls) if call is met.theirs)
    start = next((n + 1 for n, call in enumerate(calls) if before is not None and call is before.theirs), 0)
    ran = calls[start:end]
    text = (
        f"What stands between it and {before.layer.shown!r}, which agrees, is not the same"
        if before is not None
        else "It is the first one, so what stands before it is not the same"
    )
    if ran:
        text += "; there the source has " + ", ".join(f"{call.name!r}: {call.shown}" for call in ran)
    pads = [call for call in ran if any(p for pair in call.settings.get("padding", ()) for p in pair)]
    if pads and pads[0].shown.startswith(("MaxPool", "AvgPool")):
        text += f". Flax's 'SAME' pads otherwise than PyTorch: write `padding={pads[0].settings['padding']!r}`"
    return text + "."
