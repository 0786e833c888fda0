"""`from_torch` and `from_keras`: arrays into the variables of a Flax model, checked."""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bnjax._lifecycle.compare import is_exact
from bnjax._lifecycle.convert import check
from bnjax._lifecycle.convert.layers import LOST, Layer, layers_of
from bnjax._lifecycle.convert.match import Matched, Matching, Pairs
from bnjax._lifecycle.convert.model import Model
from bnjax._lifecycle.convert.offsets import offset_of
from bnjax._lifecycle.convert.order import set_orders
from bnjax._lifecycle.convert.origin import Origin
from bnjax._lifecycle.convert.renamed import Rename, renamed
from bnjax._lifecycle.convert.rows import rows_of
from bnjax._lifecycle.convert.values import values_for
from bnjax._lifecycle.fold import like
from bnjax._lifecycle.graph import Graph
from bnjax._lifecycle.report import Report

AFTER = (
    "found the same in all layers, but the models do something else with what these give; or layers of one shape and "
    "one input are called in another order, which `rename` puts right. The output"
)


@dataclasses.dataclass(frozen=True)
class Ask:
    """What a user asked for; see `from_torch`."""

    verb: str
    example: Any
    rename: Rename | None = None
    keep: str | None = None
    expect: tuple[Any, Any] | None = None

    def __post_init__(self) -> None:
        if self.keep is not None and not isinstance(self.keep, str):
            raise ValueError(f"`keep` must be a regular expression, but it is {self.keep!r}.")
        if self.keep is not None:
            try:
                re.compile(self.keep)
            except re.error as error:
                raise ValueError(f"`keep` must be a regular expression, but it is {self.keep!r}: {error}.") from error
        if self.expect is not None and (not isinstance(self.expect, tuple) or len(self.expect) != 2):
            raise ValueError(
                "`expect` must be a pair of a batch and the output for it, both as the Flax model has them."
            )
        if self.rename is not None and not callable(self.rename):
            raise ValueError(f"`rename` must be a function of a name, but it is a {type(self.rename).__name__}.")

    def keeps(self, leaf: str) -> bool:
        """Whether a leaf stays as it is."""
        return self.keep is not None and re.search(self.keep, leaf) is not None


@dataclasses.dataclass
class Parts:
    """A Flax model, as far as weights are concerned."""

    model: Model
    graph: Graph
    layers: list[Layer]

    @classmethod
    def of(cls, model: Model, example: Any, dialect: str) -> Parts:
        """Traces a model, for weights from or for PyTorch or Keras."""
        graph, values, seen = model.traced(example)
        layers = layers_of(graph, values, seen, model.leaves)
        if dialect == "torch":
            set_orders(graph, layers, set(graph.inputs) - set(values.values()))
        for layer in layers:
            layer.plus = offset_of(layer)
        return cls(model, graph, layers)

    @property
    def most(self) -> float:
        """How much outputs may differ, relative to the largest entry."""
        return check.MOST if is_exact(self.graph.dtypes) else check.MOST_LOW

    @property
    def sequences_first(self) -> bool:
        """Whether an example of rank 3 has channels, because the first layer is a convolution."""
        return bool(self.layers) and self.layers[0].kind in ("conv", "conv_transpose")


def imported(parts: Parts, origin: Origin, ask: Ask) -> tuple[dict[str, Any], Report]:
    """The variables with the arrays of the source in them, and a report.

    Raises:
      ValueError: what does not fit, is ambiguous, or computes something else.
    """
    if ask.rename is not None:
        found = Matched(renamed(origin, parts.layers, ask.rename), [])
    else:
        whole = lambda layer: all(ask.keeps(leaf.name) for leaf in layer.leaves.values())  # noqa: E731
        matching = Matching(ask.verb, origin.dialect, parts.layers, origin.units, whole)
        found = matching.matched(in_order=origin.run is not None)
        if found.doubt and origin.run is None and ask.expect is None:
            lists = matching.side_by_side()
            raise ValueError(f"`{ask.verb}` cannot tell which layer is which: {found.doubt}\n{lists}")
    pairs, new, errors = _settled(ask, origin, parts, found.pairs)
    used = {id(unit) for _, unit in pairs}
    numbers = [unit for unit in origin.units if not unit.is_weight and id(unit) not in used]
    return new, Report(rows_of(origin.dialect, parts.layers, found._replace(pairs=pairs), numbers, errors, ask.keeps))


def _settled(ask: Ask, origin: Origin, parts: Parts, pairs: Pairs) -> tuple[Pairs, dict[str, Any], dict[int, float]]:
    """The pairs, with branches exchanged that the source computes in another order; the leaves; the differences."""
    while True:
        new = written(ask, origin, parts, pairs)
        try:
            return pairs, new, checked(ask, origin, parts, pairs, new)
        except check.DifferenceError as differs:
            other = check.swapped(pairs, differs, origin, parts.most) if ask.rename is None else None
            if other is None:
                raise
            pairs = other  # which is right one layer further


def written(ask: Ask, origin: Origin, parts: Parts, pairs: Pairs) -> dict[str, Any]:
    """The leaves of the model with other values.

    Raises:
      ValueError: a leaf that nothing sets; a value that does not fit.
    """
    wholes: dict[str, np.ndarray] = {}
    done: dict[str, int] = defaultdict(int)
    leaves = parts.model.leaves
    for layer, unit in pairs:
        layer.offset = layer.plus - unit.offset
        named = ask.rename is not None
        for role, value in values_for(ask.verb, origin.dialect, layer, unit, ask.keeps, named=named).items():
            leaf = layer.leaves[role]
            old = leaves[leaf.name]
            whole = wholes.setdefault(leaf.name, np.zeros(old.shape, np.result_type(old.dtype, value.dtype)))
            leaf.put(whole, value)
            done[leaf.name] += value.size
    unset = [name for name, old in leaves.items() if done[name] != np.size(old) and not ask.keeps(name)]
    if unset:
        lost = {layer.path: f" ({layer.seen.cls})" for layer in parts.layers if layer.kind == LOST}
        shown = ", ".join(f"{name!r}{lost.get(name, '')}" for name in unset[:8])
        raise ValueError(
            f"`{ask.verb}` has nothing for {shown}{' and more' if len(unset) > 8 else ''}. Name what goes there by "
            "`rename`, or leave it as it is by `keep`, a regular expression."
        )
    shapes = [name for name in leaves if name not in wholes and isinstance(leaves[name], jax.ShapeDtypeStruct)]
    if shapes:
        raise ValueError(
            f"`variables` must have numbers for what `keep` leaves as it is, but has a shape for {shapes[0]!r}; give "
            "what `init` returns."
        )
    return {**leaves, **{name: _like(ask.verb, name, leaves[name], whole) for name, whole in wholes.items()}}


def _like(verb: str, name: str, old: Any, value: np.ndarray) -> Any:
    """The value with dtype and place of the old one, rounded once."""
    if isinstance(old, jax.ShapeDtypeStruct):
        with np.errstate(over="ignore"):  # which is refused
            new: Any = jnp.asarray(value.astype(old.dtype))
        new = new if old.sharding is None else jax.device_put(new, old.sharding)
    else:
        new = like(old, value)
    if np.isfinite(value.astype(np.float64)).all() and not np.isfinite(np.asarray(new).astype(np.float64)).all():
        raise ValueError(
            f"`{verb}` would overflow at {name!r}: its dtype is {old.dtype}; give a model of a wider dtype."
        )
    return new


def checked(ask: Ask, origin: Origin, parts: Parts, pairs: Pairs, new: Mapping[str, Any]) -> dict[int, float]:
    """Compares with what the source computes, and with what is expected; returns the difference by layer.

    Raises:
      ValueError: a difference.
    """
    most = parts.most
    errors: dict[int, float] = {}
    with jax.default_matmul_precision("highest"):
        if origin.run is not None:
            calls: dict[str, list[tuple[Any, Any]]] = defaultdict(list)
            output = parts.model.watched(new, ask.example, lambda path, x, y: calls[path].append((x, y)))
            jax.effects_barrier()
            # What comes after a layer that is kept computes something else, and should.
            kept = {id(t) for t in parts.layers if any(ask.keeps(leaf.name) for leaf in t.leaves.values())}
            before = {id(t) for t in itertools.takewhile(lambda t: id(t) not in kept, parts.layers)}
            compared = [pair for pair in pairs if id(pair[0]) in before]
            errors = check.errors(ask.verb, compared, calls, origin, most)
            if not kept:
                check.output(f"`{ask.verb}` {AFTER}", output, origin.run.output, most)
        if ask.expect is not None:
            batch, wanted = ask.expect
            output = parts.model.watched(new, batch, lambda path, x, y: None)
            said = f"`{ask.verb}` matched the layers, and what comes out is not that of `expect`: the output"
            if np.isnan(check.output(said, output, wanted, most)):
                shapes = jax.tree.map(np.shape, output)
                raise ValueError(f"`expect` must have an output like that of the model, with the shapes {shapes}.")
    return errors
