"""`from_torch` and `from_keras`: arrays into the variables of a Flax model, checked."""

from __future__ import annotations

import dataclasses
import itertools
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bnjax._lifecycle.compare import is_exact
from bnjax._lifecycle.convert import check
from bnjax._lifecycle.convert.ask import Ask, some
from bnjax._lifecycle.convert.layers import LOST, Layer, layers_of
from bnjax._lifecycle.convert.match import PARALLEL, Matched, Matching, Pairs
from bnjax._lifecycle.convert.model import Model
from bnjax._lifecycle.convert.offsets import offset_of
from bnjax._lifecycle.convert.order import set_orders
from bnjax._lifecycle.convert.origin import Origin
from bnjax._lifecycle.convert.renamed import renamed
from bnjax._lifecycle.convert.rows import rows_of
from bnjax._lifecycle.convert.values import values_for
from bnjax._lifecycle.fold import like
from bnjax._lifecycle.graph import Graph
from bnjax._lifecycle.report import Report, Row, raise_if_nothing_done

AFTER = (
    "found the same in all layers, but the models do something else with what these give; or layers of one shape and "
    "one input are called in another order, which `rename` puts right. The output"
)


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


AS_LISTED = (
    "Layers of one shape were matched in the order below, which may be another in the source: name them by `rename`, "
    "or give the module in place of its arrays."
)
NOT_COMPARED = "the outputs of both models have other shapes, so only those of the layers were compared"


class Checked(NamedTuple):
    """What was compared.

    Attributes:
      errors: the differences of the outputs of layers, by the ids of the layers.
      is_whole: whether the outputs of the models were compared, too.
    """

    errors: dict[int, float]
    is_whole: bool


def imported(parts: Parts, origin: Origin, ask: Ask) -> tuple[dict[str, Any], Report]:
    """The variables with the arrays of the source in them, and a report.

    Raises:
      ValueError: what does not fit, is ambiguous, or computes something else.
    """
    ask.check_kept(parts.model.leaves)
    if ask.rename is not None:
        found = Matched(renamed(origin, parts.layers, ask.rename), [])
    else:
        whole = lambda layer: all(ask.keeps(leaf.name) for leaf in layer.leaves.values())  # noqa: E731
        matching = Matching(ask.verb, origin.dialect, parts.layers, origin.units, whole)
        found = matching.matched({call.name for call in origin.run.calls} if origin.run else ())
        if found.doubt and origin.run is None and ask.expect is None:
            raise ValueError(_in_doubt(ask, matching, found.doubt))
    try:
        pairs, new, (errors, is_whole) = _settled(ask, origin, parts, found.pairs)
    except check.OutputError as error:
        if not found.doubt:
            raise
        raise ValueError(f"{error} {AS_LISTED}\n{matching.side_by_side()}") from error
    if found.doubt and not is_whole and not _seen_later(matching, pairs, errors):
        raise ValueError(_in_doubt(ask, matching, found.doubt))
    if ask.rename is None and not is_whole and not _seen_after(pairs, errors, check.parallel(pairs, origin)):
        raise ValueError(_in_doubt(ask, matching, PARALLEL))
    used = {name for _, unit in pairs for name in unit.names.values()}
    numbers = [unit for unit in origin.units if not unit.is_weight and used.isdisjoint(unit.names.values())]
    rows = rows_of(origin.dialect, parts.layers, found._replace(pairs=pairs), numbers, errors, ask.keeps)
    if origin.run is not None and not is_whole and not any(map(ask.keeps, parts.model.leaves)):
        rows.append(Row("(output)", "output", False, NOT_COMPARED))
    report = Report(rows)
    if parts.layers:
        raise_if_nothing_done(ask.verb, report, "`keep` leaves all as it is; give one that is found in fewer paths.")
    return new, report


def _seen_later(matching: Matching, pairs: Pairs, errors: Mapping[int, float]) -> bool:
    """Whether what layers in doubt do was seen in later outputs; of each shape all but one, which is what is left."""
    last = max((n for n, (layer, _) in enumerate(pairs) if id(layer) in errors), default=-1)
    unseen = {id(layer) for layer, _ in pairs[max(last, 0) :]}
    return all(sum(id(layer) in unseen for layer in group) < 2 for group in matching.in_doubt)


def _seen_after(pairs: Pairs, errors: Mapping[int, float], ends: Sequence[int]) -> bool:
    """Whether a layer was compared that comes after each of these places."""
    last = max((n for n, (layer, _) in enumerate(pairs) if id(layer) in errors), default=-1)
    return all(end < last for end in ends)


def _in_doubt(ask: Ask, matching: Matching, doubt: str) -> str:
    return f"`{ask.verb}` cannot tell which layer is which: {doubt}\n{matching.side_by_side()}"


def _settled(ask: Ask, origin: Origin, parts: Parts, pairs: Pairs) -> tuple[Pairs, dict[str, Any], Checked]:
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
        raise ValueError(
            f"`{ask.verb}` has nothing for {some(unset, lost)}. Name what goes there by "
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
    if np.iscomplexobj(value) and not jnp.issubdtype(old.dtype, jnp.complexfloating):
        if value.imag.any():
            raise ValueError(
                f"`source` has complex numbers for {name!r}, whose dtype is {old.dtype}; give a model whose "
                "parameters are complex, too."
            )
        value = value.real
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


def checked(ask: Ask, origin: Origin, parts: Parts, pairs: Pairs, new: Mapping[str, Any]) -> Checked:
    """Compares with what the source computes, and with what is expected.

    Raises:
      ValueError: a difference.
    """
    most = parts.most
    errors: dict[int, float] = {}
    is_whole = ask.expect is not None
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
                said = f"`{ask.verb}` {AFTER}"
                is_whole |= not np.isnan(check.output(said, output, origin.run.output, most))
        if ask.expect is not None:
            batch, wanted = ask.expect
            output = _expected(parts, new, batch)
            said = f"`{ask.verb}` matched the layers, and what comes out is not that of `expect`: the output"
            if np.isnan(check.output(said, output, wanted, most)):
                shapes = jax.tree.map(np.shape, output)
                raise ValueError(f"`expect` must have an output like that of the model, with the shapes {shapes}.")
    return Checked(errors, is_whole)


def _expected(parts: Parts, new: Mapping[str, Any], batch: Any) -> Any:
    try:
        return parts.model.watched(new, batch, lambda path, x, y: None)
    except Exception as error:  # the model ran on `example`
        raise ValueError(f"`expect` has a batch that the model does not take, other than `example`: {error}") from error
