"""Which layer of a source goes into which layer of a Flax model."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import NamedTuple

from bnjax._lifecycle.convert.layers import Layer
from bnjax._lifecycle.convert.layouts import expected
from bnjax._lifecycle.convert.units import Unit, tokens

MOST = 60  # lines of a list in an error
Key = tuple[tuple[int, ...], bool, bool]


class Matched(NamedTuple):
    """What was found.

    Attributes:
      pairs: the layers, each with what goes into it.
      left: of the source, what goes nowhere.
      doubtful: whether only the order of the definition says which is which, and another order is as good.
    """

    pairs: list[tuple[Layer, Unit]]
    left: list[Unit]
    doubtful: bool


def matched(
    verb: str, dialect: str, layers: Sequence[Layer], units: Sequence[Unit], kept: Callable[[Layer], bool], in_order: bool
) -> Matched:
    """Matches by shape; among layers of one shape by names, if those are the same, else by order.

    Args:
      verb: the caller, for errors.
      dialect: "torch" or "keras".
      layers: of the Flax model, in the order of calls.
      units: of the source.
      kept: whether all of a layer is left as it is.
      in_order: whether the units are in the order of calls, too.

    Raises:
      ValueError: layers and units do not fit together.
    """
    by_names = _named(dialect, layers, units, kept)
    if by_names is not None:
        return by_names
    targets, sources = defaultdict(list), defaultdict(list)
    for layer in layers:
        targets[_key(expected(dialect, layer), layer.leaves.keys())].append(layer)
    for unit in units:
        sources[_key(_shape(unit), unit.tensors.keys())].append(unit)
    _squeezed_too(targets, sources)
    pairs: list[tuple[Layer, Unit]] = []
    doubtful, unfit = False, False
    for key, of_model in targets.items():
        of_source = sources.pop(key, [])
        if len(of_model) != len(of_source):
            of_model = [layer for layer in of_model if not kept(layer)]
        unfit |= len(of_model) != len(of_source) and bool(of_model)
        if len(of_model) == len(of_source):
            new, clear = _in_group(of_model, of_source, in_order)
            pairs += new
            doubtful |= not clear
    left = [unit for unit in units if unit.is_weight and unit not in [u for _, u in pairs]]
    if unfit or (left and not any(map(kept, layers))):
        raise ValueError(
            f"`{verb}` cannot tell which layer is which: by shape they do not fit together. {REMEDY}\n"
            f"{side_by_side(dialect, layers, units, pairs)}"
        )
    order = {id(layer): n for n, layer in enumerate(layers)}
    return Matched(sorted(pairs, key=lambda pair: order[id(pair[0])]), left, doubtful)


REMEDY = (
    "Give `rename`, a function that gives for each name of the source a path such as 'params/conv1/kernel', or None to "
    "skip it; and `keep`, a regular expression of paths that stay as they are, such as a new head."
)
DOUBTFUL = (
    "several layers have the same shape, and the source has them in the order in which they were defined, which need not "
    "be that of the calls. Give the module in place of its arrays, or `expect=(batch, output)` for a check, or `rename`."
)


def _named(
    dialect: str, layers: Sequence[Layer], units: Sequence[Unit], kept: Callable[[Layer], bool]
) -> Matched | None:
    """By names, if each layer has a unit of the same name and of a fitting shape."""
    names = defaultdict(list)
    for unit in units:
        names[tokens(unit.name)].append(unit)
    pairs = []
    for layer in layers:
        found = names.get(tokens(layer.name), [])
        fits = len(found) == 1 and _fits(dialect, layer, found[0])
        if not fits and not kept(layer):
            return None
        pairs += [(layer, found[0])] if fits else []
    used = [unit for _, unit in pairs]
    left = [unit for unit in units if unit.is_weight and unit not in used]
    if left and not any(map(kept, layers)):
        return None
    return Matched(pairs, left, False)


def _fits(dialect: str, layer: Layer, unit: Unit) -> bool:
    return _key(expected(dialect, layer), layer.leaves.keys(), squeeze=True) == _key(
        _shape(unit), unit.tensors.keys(), squeeze=True
    )


def _shape(unit: Unit) -> tuple[int, ...]:
    role = "weight" if "weight" in unit.tensors else next(iter(unit.tensors))
    shape = unit.tensors[role].shape
    return tuple(n for n in shape if n > 1) or (1,) if role == "weight" and len(shape) == 1 else shape


def _key(shape: tuple[int, ...], roles: object, *, squeeze: bool = False) -> Key:
    """What a layer and its unit have in common."""
    shape = tuple(n for n in shape if n > 1) or (1,) if squeeze else shape
    names = set(roles)  # type: ignore[call-overload]
    return shape, "mean" in names, "value" in names


def _squeezed_too(targets: dict[Key, list[Layer]], sources: dict[Key, list[Unit]]) -> None:
    """What finds nothing of its shape may find something that differs by axes of length one: PyTorch's are moved."""
    for key in [key for key in targets if key not in sources]:
        alike = [k for k in sources if k not in targets and _key(k[0], (), squeeze=True)[0] == _squeezed(key) and k[1:] == key[1:]]
        if len(alike) == 1:
            sources[key] = sources.pop(alike[0])


def _squeezed(key: Key) -> tuple[int, ...]:
    return tuple(n for n in key[0] if n > 1) or (1,)


def _in_group(
    layers: Sequence[Layer], units: Sequence[Unit], in_order: bool
) -> tuple[list[tuple[Layer, Unit]], bool]:
    """Layers and units of one shape, matched; and whether that is sure."""
    by_name = {tokens(unit.name): unit for unit in units}
    names = [tokens(layer.name) for layer in layers]
    if len(by_name) == len(units) and set(names) == set(by_name):
        return [(layer, by_name[name]) for layer, name in zip(layers, names, strict=True)], True
    return [*zip(layers, units, strict=True)], in_order or len(layers) == 1


def side_by_side(
    dialect: str, layers: Sequence[Layer], units: Sequence[Unit], pairs: Sequence[tuple[Layer, Unit]] = ()
) -> str:
    """Both lists, in their orders; marked is what has found something."""
    done = {id(one) for pair in pairs for one in pair}
    ours = [f"{'  ' if id(t) in done else '? '}{t.shown} ({t.kind}): {_shown(expected(dialect, t))}" for t in layers]
    theirs = [f"{'  ' if id(u) in done else '? '}{u.shown}" for u in units if u.is_weight]
    lines = [*itertools.zip_longest(["the Flax model", *ours], ["the source", *theirs], fillvalue="")]
    width = max(len(left) for left, _ in lines)
    shown = [f"{left.ljust(width)} | {right}".rstrip() for left, right in lines[:MOST]]
    return "\n".join([*shown, *([f"and {len(lines) - MOST} more"] if len(lines) > MOST else [])])


def _shown(shape: tuple[int, ...]) -> str:
    return str(tuple(int(n) for n in shape))
