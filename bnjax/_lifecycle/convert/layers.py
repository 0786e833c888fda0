"""The layers of a Flax model that weights go into: what they are, what variables they have, in which order they run."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from bnjax._lifecycle.graph import Graph
from bnjax._lifecycle.leaves import Source, source

# What a layer of Flax, or somebody's own, calls a variable, and what it is to it.
ROLES = {
    "kernel": "weight", "scale": "weight", "embedding": "weight", "weight": "weight", "w": "weight", "gamma": "weight",
    "negative_slope": "weight", "bias": "bias", "b": "bias", "beta": "bias", "mean": "mean", "var": "var",
    "length": "length",
}  # fmt: skip
PRODUCTS = ("conv", "conv_transpose", "dense", "embed")
OWN = "own"  # a class of somebody's own
LOST = "lost"  # a variable that no layer is seen to have


@dataclasses.dataclass
class Seen:
    """A module that was called, as linen or nnx describe it.

    Attributes:
      kind: one of `PRODUCTS`, a name of `bnjax.NORMS`, "prelu", "own" of other classes, or why it cannot be converted.
      cls: the name of its class.
      leaves: the names of its variables.
      settings: attributes that PyTorch has, too, such as `epsilon`.
      out_axes: how many axes of the kernel, the last ones, are features that it makes.
      transposed: whether the kernel has outputs before inputs (`transpose_kernel`).
      length_axes: of the kernel, that weight norm gives a length each; none without weight norm.
      probe: of "own", computes the module with other values of its variables.
    """

    kind: str
    cls: str
    leaves: tuple[str, ...]
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    out_axes: int = 1
    transposed: bool = False
    length_axes: tuple[int, ...] | None = None
    probe: Callable[[Mapping[str, float]], Any] | None = None


@dataclasses.dataclass(frozen=True)
class Leaf:
    """A variable as one layer sees it: perhaps a slice of one that is stacked.

    Attributes:
      name: the path of the whole variable.
      shape: that the layer sees.
      axes: of the whole variable: those of stacks, from the outside, then the layer's own.
      index: the slice, one number for each axis of a stack.
    """

    name: str
    shape: tuple[int, ...]
    axes: tuple[int, ...]
    index: tuple[int, ...] = ()

    def get(self, whole: Any) -> np.ndarray:
        """The slice of the variable that the layer sees."""
        return np.transpose(np.asarray(whole), self.axes)[self.index]

    def put(self, whole: np.ndarray, value: Any) -> None:
        """Writes the slice into the variable, in place."""
        np.transpose(whole, self.axes)[self.index] = value

    @property
    def shown(self) -> str:
        """Its path, with the slice if it is one."""
        return self.name + "".join(f"[{n}]" for n in self.index)


@dataclasses.dataclass
class Layer:
    """A layer of a Flax model; of a stack, one for each slice.

    Attributes:
      path: of the module.
      seen: the module.
      leaves: its variables by role, as in `Unit`; "value" of what has no other.
      name: as PyTorch would have it, with the slice where its stack begins: "blocks.2.conv".
      index: the slice of the stack.
      rows: for each feature of its input, in Flax's order, its place in PyTorch's order; nothing where they agree.
      columns: likewise of its output.
      plus: what a module of somebody's own adds to its scale.
      offset: that, less what the source adds.
      as_is: whether the kernel of such a module lies as in the source.
    """

    path: str
    seen: Seen
    leaves: dict[str, Leaf]
    name: str
    index: tuple[int, ...] = ()
    rows: np.ndarray | None = None
    columns: np.ndarray | None = None
    plus: float = 0.0
    offset: float = 0.0
    as_is: bool = False

    @property
    def kind(self) -> str:
        """What it is."""
        return self.seen.kind

    @property
    def is_product(self) -> bool:
        """Whether its weight is a kernel, and not a scale of features."""
        if self.kind == OWN:
            return "weight" in self.leaves and len([n for n in self.leaves["weight"].shape if n > 1]) > 1
        return self.kind in PRODUCTS

    @property
    def shown(self) -> str:
        """Its path, with the slice if it is one."""
        return (self.path or "(root)") + "".join(f"[{n}]" for n in self.index)


def layers_of(
    graph: Graph, values: Mapping[str, int], seen: Mapping[str, Seen], leaves: Collection[str]
) -> list[Layer]:
    """The layers of a traced model, in the order of their first calls; then variables that no layer is seen to have.

    Args:
      graph: of the model.
      values: of its variables in it, by path.
      seen: its modules.
      leaves: the paths of those that are parameters or statistics.
    """
    names = {value: path for path, value in values.items()}
    found: dict[tuple[str, str], tuple[Source, Any]] = {}
    why: dict[str, str] = {}
    for node, tag in graph.tags():
        if tag.role == "leaf":
            found.setdefault((tag.path, tag.leaf), (source(graph, node, tag, names), node))
    layers: list[_Stacked] = []
    for path, module in seen.items():
        own: dict[str, tuple[Source, tuple[int, ...]]] = {}
        for name in module.leaves:
            leaf, node = found[path, name]
            if leaf.name:
                own[name] = leaf, graph.shapes[node.inputs[0]][len([s for s in leaf.stack if isinstance(s, str)]) :]
            else:
                why[f"{path}/{name}"] = "something is computed from it before it reaches its layer"
        layers += _with_roles(path, module, own)
    known = {leaf.name for layer in layers for leaf, _ in layer.leaves.values()}
    rest = [name for name in leaves if name not in known]
    return _in_order(layers, graph, values) + [_lost(name, graph.shapes[values[name]], why) for name in rest]


def _lost(name: str, shape: tuple[int, ...], why: Mapping[str, str]) -> Layer:
    """A variable by itself, as it is."""
    reason = next((said for path, said in why.items() if name.endswith(path)), "no layer that `call` reaches has it")
    return Layer(
        name, Seen(LOST, reason, ()), {"value": Leaf(name, shape, tuple(range(len(shape))))}, name.replace("/", ".")
    )


@dataclasses.dataclass
class _Stacked:
    """A layer before its stack is taken apart."""

    path: str
    seen: Seen
    leaves: dict[str, tuple[Source, tuple[int, ...]]]

    @property
    def stack(self) -> tuple[int | str, ...]:
        return next(iter(self.leaves.values()))[0].stack


def _with_roles(path: str, module: Seen, own: Mapping[str, tuple[Source, tuple[int, ...]]]) -> Iterator[_Stacked]:
    """The layer, and one more for each variable that has no known role in it."""
    roles: dict[str, Any] = {}
    for name, leaf in own.items():
        role = ROLES.get(name, "")
        if role and role not in roles:
            roles[role] = leaf
        else:
            yield _Stacked(
                f"{path}/{name}" if path else name, dataclasses.replace(module, kind="value"), {"value": leaf}
            )
    if roles:
        yield _Stacked(path, module, roles)


def _in_order(stacked: Sequence[_Stacked], graph: Graph, values: Mapping[str, int]) -> list[Layer]:
    """All slices: of each loop or `vmap`, its layers in order for the first slice, then for the next."""

    def unrolled(layers: Sequence[_Stacked], index: tuple[int, ...], places: tuple[int, ...]) -> Iterator[Layer]:
        while layers:
            first = layers[0]
            if len(first.stack) <= len(index):
                yield _layer(first, index, places)
                layers = layers[1:]
                continue
            same = [*_same_stack(layers, len(index))]
            begins = _in_common([layer.path.split("/") for layer in same])
            for n in range(_length(first, len(index), graph, values)):
                yield from unrolled(same, (*index, n), (*places, begins))
            layers = layers[len(same) :]

    return [*unrolled(stacked, (), ())]


def _in_common(paths: Sequence[Sequence[str]]) -> int:
    """How many names all paths begin with."""
    return next((n for n, names in enumerate(zip(*paths, strict=False)) if len(set(names)) > 1), min(map(len, paths)))


def _same_stack(layers: Sequence[_Stacked], depth: int) -> Iterator[_Stacked]:
    for layer in layers:
        if layer.stack[: depth + 1] != layers[0].stack[: depth + 1]:
            return
        yield layer


def _length(layer: _Stacked, depth: int, graph: Graph, values: Mapping[str, int]) -> int:
    leaf = next(iter(layer.leaves.values()))[0]
    return graph.shapes[values[leaf.name]][leaf.axes[depth]]


def _layer(layer: _Stacked, index: tuple[int, ...], places: tuple[int, ...]) -> Layer:
    """A slice; `places` says before which part of the path each number of the index stands."""
    leaves = {role: Leaf(leaf.name, shape, leaf.axes, index) for role, (leaf, shape) in layer.leaves.items()}
    parts = layer.path.split("/") if layer.path else []
    for n, place in sorted(zip(index, places, strict=True), key=lambda pair: -pair[1]):
        parts.insert(place, str(n))
    return Layer(layer.path, layer.seen, leaves, ".".join(parts), index)


def numbers(shape: Sequence[int]) -> int:
    """How many numbers an array of that shape has."""
    return math.prod(shape)
