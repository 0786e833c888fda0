"""`from_torch` and `from_keras`: arrays into the variables of a Flax model, checked."""

from __future__ import annotations

import dataclasses
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bnjax._lifecycle.compare import is_exact
from bnjax._lifecycle.convert import check
from bnjax._lifecycle.convert.layers import Layer, layers_of
from bnjax._lifecycle.convert.match import DOUBTFUL, matched, side_by_side
from bnjax._lifecycle.convert.model import Model
from bnjax._lifecycle.convert.offsets import offset_of
from bnjax._lifecycle.convert.order import set_orders
from bnjax._lifecycle.convert.origin import Origin
from bnjax._lifecycle.convert.renamed import Rename, renamed
from bnjax._lifecycle.convert.rows import rows_of
from bnjax._lifecycle.convert.units import Unit
from bnjax._lifecycle.convert.values import values_for
from bnjax._lifecycle.fold import like
from bnjax._lifecycle.graph import Graph
from bnjax._lifecycle.report import Report


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
            raise ValueError("`expect` must be a pair of a batch and the output for it, both as the Flax model has them.")
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
    lost: dict[str, str]

    @classmethod
    def of(cls, model: Model, example: Any) -> Parts:
        """Traces a model."""
        graph, values, seen = model.traced(example)
        layers, lost = layers_of(graph, values, seen)
        set_orders(graph, layers, set(graph.inputs) - set(values.values()))
        for layer in layers:
            layer.offset = offset_of(layer)
        return cls(model, graph, layers, lost)

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
        pairs, left, doubtful = renamed(ask.verb, origin, parts.layers, ask.rename), [], False
        keeps = ask.keeps
    else:
        every = lambda layer: all(ask.keeps(leaf.name) for leaf in layer.leaves.values())  # noqa: E731
        pairs, left, doubtful = matched(
            ask.verb, origin.dialect, parts.layers, origin.units, every, in_order=origin.run is not None
        )
        keeps = ask.keeps
    if doubtful and ask.expect is None:
        lists = side_by_side(origin.dialect, parts.layers, origin.units)
        raise ValueError(f"`{ask.verb}` cannot tell which layer is which: {DOUBTFUL}\n{lists}")
    new = written(ask, origin, parts, pairs, keeps)
    errors = checked(ask, origin, parts, pairs, new)
    return new, Report(rows_of(parts.layers, pairs, left, errors, keeps))


def written(
    ask: Ask, origin: Origin, parts: Parts, pairs: Sequence[tuple[Layer, Unit]], keeps: Callable[[str], bool]
) -> dict[str, Any]:
    """The leaves of the model with other values.

    Raises:
      ValueError: a leaf that nothing sets; a value that does not fit.
    """
    wholes: dict[str, np.ndarray] = {}
    done: dict[str, int] = defaultdict(int)
    for layer, unit in pairs:
        for role, value in values_for(ask.verb, origin.dialect, layer, unit).items():
            leaf = layer.leaves[role]
            if keeps(leaf.name):
                continue
            old = parts.model.leaves[leaf.name]
            whole = wholes.setdefault(leaf.name, np.zeros(old.shape, np.result_type(old.dtype, value.dtype)))
            leaf.put(whole, value)
            done[leaf.name] += value.size
    unset = [name for name, old in parts.model.leaves.items() if done[name] != np.size(old) and not keeps(name)]
    if unset:
        why = "; ".join(f"{name!r}: {reason}" for name, reason in parts.lost.items())
        raise ValueError(
            f"`{ask.verb}` has nothing for {', '.join(map(repr, unset[:8]))}{' and more' if len(unset) > 8 else ''}. "
            f"Name what goes there by `rename`, or leave it as it is by `keep`, a regular expression.{why and ' ' + why}"
        )
    return {**parts.model.leaves, **{name: _like(ask.verb, name, parts.model.leaves[name], t) for name, t in wholes.items()}}


def _like(verb: str, name: str, old: Any, value: np.ndarray) -> Any:
    """The value with dtype and place of the old one, rounded once."""
    if isinstance(old, jax.ShapeDtypeStruct):
        new: Any = jnp.asarray(value.astype(old.dtype))
        new = new if old.sharding is None else jax.device_put(new, old.sharding)
    else:
        new = like(old, value)
    if np.isfinite(value.astype(np.float64)).all() and not np.isfinite(np.asarray(new).astype(np.float64)).all():
        raise ValueError(f"`{verb}` would overflow at {name!r}: its dtype is {old.dtype}; give a model of a wider dtype.")
    return new


def checked(
    ask: Ask, origin: Origin, parts: Parts, pairs: Sequence[tuple[Layer, Unit]], new: Mapping[str, Any]
) -> dict[int, float]:
    """Compares with what the source computes, and with what is expected."""
    most = check.MOST if is_exact(parts.graph.dtypes) else check.MOST_LOW
    errors: dict[int, float] = {}
    any_kept = any(ask.keeps(name) for name in parts.model.leaves)
    with jax.default_matmul_precision("highest"):
        if origin.run is not None:
            calls: dict[str, list[tuple[Any, Any]]] = defaultdict(list)
            output = parts.model.watched(new, ask.example, lambda path, x, y: calls[path].append((x, y)))
            errors = check.errors(ask.verb, pairs, calls, origin, most)
            if not any_kept:
                check.output_error(
                    ask.verb, output, origin.run.output, most,
                    "found the same in all layers, but what the model does with the last of them differs: the outputs differ by",
                )  # fmt: skip
        if ask.expect is not None:
            batch, wanted = ask.expect
            output = parts.model.watched(new, batch, lambda path, x, y: None)
            said = "matched the layers by the order of their definition, and the output is not that of `expect`: it differs by"
            error = check.output_error(ask.verb, output, wanted, most, said)
            if not error <= most:
                raise ValueError(f"`expect` must have an output like that of the model, {jax.tree.map(np.shape, output)}.")
    return errors
