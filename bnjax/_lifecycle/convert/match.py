"""Which layer of a source goes into which layer of a Flax model."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

from bnjax._lifecycle.convert.layers import OWN, Layer
from bnjax._lifecycle.convert.layouts import expected
from bnjax._lifecycle.convert.units import Unit, tokens

MOST = 60  # lines of a list in an error
Pairs = list[tuple[Layer, Unit]]
Key = tuple[tuple[int, ...], bool, bool]  # the shape of the weight, and whether there are statistics, or a bare value

REMEDY = (
    "Give `rename`, a function that gives for each name of the source a path such as 'params/conv1/kernel', or None to "
    "skip it; and `keep`, a regular expression of paths that stay as they are, such as a new head."
)
DOUBTFUL = (
    "several layers have the same shape, and the source has them in the order in which they were defined, which need "
    "not be that of the calls. Give the module in place of its arrays, or `expect=(batch, output)` for a check, or "
    "`rename`."
)
UNCALLED = (
    "several layers have the same shape, and PyTorch does not call all of them as modules (`functional.linear(x, "
    "self.fc.weight)`), so that their order is not known; nor can the outputs of both models be compared. Give "
    "`expect=(batch, output)` for a check, or `rename`."
)
PARALLEL = (
    "several layers of the same shape have the same input, so that each fits in the place of each, and no layer after "
    "them is compared. Give `rename`, or leave out `keep`."
)
SQUARE = (
    "is of a class of its own, and its kernel is square, so that no shape tells which axis is the input. Give the "
    "module in place of its arrays, or `expect=(batch, output)` for a check, or `rename`."
)


class Matched(NamedTuple):
    """What was found.

    Attributes:
      pairs: the layers in their order, each with what goes into it.
      left: of the source, what goes nowhere.
      doubt: why it may be wrong, if nothing is computed to check it.
    """

    pairs: Pairs
    left: list[Unit]
    doubt: str = ""


class Matching:
    """Layers of a model and units of a source, to be matched.

    Args:
      verb: the caller, for errors.
      dialect: "torch" or "keras".
      layers: of the Flax model, in the order of calls.
      units: of the source.
      keeps: whether all of a layer is left as it is.
    """

    def __init__(
        self,
        verb: str,
        dialect: str,
        layers: Sequence[Layer],
        units: Sequence[Unit],
        keeps: Callable[[Layer], bool],
    ):
        self.verb, self.dialect, self.layers = verb, dialect, layers
        self.units = units
        self.in_doubt: list[list[Layer]] = []  # of one shape, and in no known order
        self.kept = {id(layer) for layer in layers if keeps(layer)}

    def matched(self, called: Collection[str] = ()) -> Matched:
        """By names, if all are the same; else by shape, and among layers of one shape by names or by order.

        Args:
          called: the names of layers of the source that were seen to be called: they are in the order of calls, too.

        Raises:
          ValueError: layers and units do not fit together.
        """
        self._as_they_are()
        pairs, doubt = self._by_names(), ""
        if pairs is None:
            pairs, doubt = self._by_shape(called)
        left = self._left(pairs)
        missing = [layer for layer in self.layers if id(layer) not in self.kept | {id(t) for t, _ in pairs}]
        if missing or len(left) > len(self.kept):
            raise ValueError(
                f"`{self.verb}` cannot tell which layer is which: by shape they do not fit together. {REMEDY}\n"
                f"{self.side_by_side(pairs)}"
            )
        order = {id(layer): n for n, layer in enumerate(self.layers)}
        return Matched(sorted(pairs, key=lambda pair: order[id(pair[0])]), left, doubt or self._square(pairs))

    def side_by_side(self, pairs: Pairs | None = None) -> str:
        """Both lists, in their orders. Where `pairs` is given, what has found nothing is marked."""
        done = {id(one) for pair in pairs or () for one in pair}
        mark = lambda one: "" if pairs is None else "  " if id(one) in done else "? "  # noqa: E731
        ours = [f"{mark(t)}{t.shown} ({t.kind}): {expected(self.dialect, t)}" for t in self.layers]
        theirs = [f"{mark(unit)}{unit.shown}" for unit in self.units if unit.is_weight or id(unit) in done]
        lines = [*itertools.zip_longest(["the Flax model", *ours], ["the source", *theirs], fillvalue="")]
        width = max(len(left) for left, _ in lines)
        shown = [f"{left.ljust(width)} | {right}".rstrip() for left, right in lines[:MOST]]
        return "\n".join([*shown, *([f"and {len(lines) - MOST} more"] if len(lines) > MOST else [])])

    def _left(self, pairs: Pairs) -> list[Unit]:
        """The weights of the source that go nowhere."""
        used = {id(unit) for _, unit in pairs}
        return [unit for unit in self.units if unit.is_weight and id(unit) not in used]

    def _key(self, layer: Layer) -> Key:
        return _key(expected(self.dialect, layer), layer.leaves)

    def _as_they_are(self) -> None:
        """A kernel in a class of somebody's own may lie as in the source: where only that fits, it does."""
        shapes = {_shape(unit) for unit in self.units}
        for layer in self.layers:
            if layer.kind == OWN and layer.is_product and expected(self.dialect, layer) not in shapes:
                layer.as_is = layer.leaves["weight"].shape in shapes

    def _by_names(self) -> Pairs | None:
        """If each layer has a unit of the same name and of a fitting shape."""
        names = defaultdict(list)
        for unit in self.units:
            names[tokens(unit.name)].append(unit)
        pairs: Pairs = []
        for layer in self.layers:
            found = names.get(tokens(layer.name), [])
            if len(found) == 1 and _squeezed(self._key(layer)) == _squeezed(_key(_shape(found[0]), found[0].tensors)):
                pairs.append((layer, found[0]))
            elif id(layer) not in self.kept:
                return None
        return pairs if len(self._left(pairs)) <= len(self.kept) else None

    def _by_shape(self, called: Collection[str]) -> tuple[Pairs, str]:
        targets, sources = defaultdict(list), defaultdict(list)
        for layer in self.layers:
            targets[self._key(layer)].append(layer)
        for unit in self.units:
            sources[_key(_shape(unit), unit.tensors)].append(unit)
        _rename_alike(targets, sources)
        pairs: Pairs = []
        doubt = ""
        for key, layers in targets.items():
            units = sources.get(key, [])
            if len(layers) != len(units):
                layers = [layer for layer in layers if id(layer) not in self.kept]
            if len(layers) == len(units):
                by_name = {tokens(unit.name): unit for unit in units}
                named = len(by_name) == len(units) and {tokens(layer.name) for layer in layers} == set(by_name)
                units = [by_name[tokens(layer.name)] for layer in layers] if named else units
                pairs += zip(layers, units, strict=True)
                in_order = all((unit.owner or unit.name) in called for unit in units)
                if not named and not in_order and len(layers) > 1:
                    doubt = UNCALLED if called else DOUBTFUL
                    self.in_doubt.append(layers)
        return pairs, doubt

    def _square(self, pairs: Pairs) -> str:
        for layer, _ in pairs:
            shape = layer.leaves["weight"].shape if layer.kind == OWN and layer.is_product else ()
            if len(shape) == 2 and shape[0] == shape[1]:
                return f"{layer.shown!r} {SQUARE}"
        return ""


def _shape(unit: Unit) -> tuple[int, ...]:
    """That of the weight; of a unit without a weight, that of what it has."""
    return unit.tensors["weight" if "weight" in unit.tensors else next(iter(unit.tensors))].shape


def _key(shape: tuple[int, ...], roles: Collection[str]) -> Key:
    return shape or (1,), "mean" in roles, "value" in roles


def _squeezed(key: Key) -> Key:
    return tuple(n for n in key[0] if n > 1) or (1,), *key[1:]


def _merged(key: Key) -> Key:
    """Of a depthwise convolution, Keras has inputs and what each makes in two axes, Flax in the last."""
    return _squeezed(((*key[0][:-2], math.prod(key[0][-2:])), *key[1:])) if len(key[0]) > 2 else key


def _rename_alike(targets: Collection[Key], sources: dict[Key, list[Unit]]) -> None:
    """What finds nothing of its shape may find what differs by axes of length one, or is depthwise."""
    for form in (_squeezed, _merged):
        for key in targets:
            alike = [k for k in sources if k not in targets and form(k) == form(key)]
            if key not in sources and len(alike) == 1:
                sources[key] = sources.pop(alike[0])
