"""Which layer stands right before each norm, judged on the traced program."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Set
from typing import NamedTuple

from bnjax._lifecycle.graph import Graph, Node
from bnjax._lifecycle.leaves import ADDED, PRODUCTS, Source, source, uses
from bnjax._lifecycle.refusals import STATELESS
from bnjax._lifecycle.tags import Tag
from bnjax._lifecycle.walk import axes_before


class Call(NamedTuple):
    """One call of a norm.

    Attributes:
      norm: its tag.
      layer: the tag of the layer right before it, if there is one.
      kernel_axis: that of the features in the layer's kernel, from the right.
      bias_axis: likewise in its bias.
      stacked: the axes that `vmap` added to the input.
      why: it cannot be folded.
    """

    norm: Tag
    layer: Tag | None = None
    kernel_axis: int = -1
    bias_axis: int = -1
    stacked: int = 0
    why: str = ""


def calls(graph: Graph) -> list[Call]:
    """The calls of all norms."""
    return [_call(graph, node, tag) for node, tag in graph.tags() if tag.role == "norm_in"]


def _call(graph: Graph, node: Node, norm: Tag) -> Call:
    """Goes back from the input of a norm, past what only rearranges, to the output of a layer."""
    if norm.why or norm.axis is None:
        return Call(norm, why=norm.why or "it has several feature axes")
    value = node.inputs[0]
    stacked = len(graph.shapes[value]) - norm.rank
    call, axes = Call(norm, stacked=stacked), (*range(stacked), norm.axis + stacked)
    while True:
        users, maker = graph.users[value], graph.maker(value)
        if len(users) > 1:
            return call._replace(why=f"its input is used {len(users)} times")
        if maker is None:
            return call._replace(why="no layer of this model makes its input")
        tag = maker.tag
        if tag is not None and tag.role == "layer":
            return _of_layer(graph, maker, call._replace(layer=tag), axes)
        if tag is not None and tag.role == "norm_out":
            return call._replace(why=f"the norm {tag.path!r} makes its input")
        if maker.name == "enter":
            return call._replace(why=f"its input comes from outside of a `{maker.inside}`")
        before = axes_before(graph, maker, axes)
        if before is None:
            return call._replace(why=f"`{maker.name}` stands between it and a layer")
        value, axes = maker.inputs[0], before


def _of_layer(graph: Graph, maker: Node, call: Call, axes: tuple[int, ...]) -> Call:
    """The call of a norm, whose layer is found; `axes` of its output are the stacked ones, then the features."""
    assert call.layer is not None
    output, layer = maker.inputs[0], call.layer
    rank, users = len(graph.shapes[output]), graph.users[output]
    from_right = axes[-1] - rank
    if rank - layer.rank != call.stacked or axes[:-1] != tuple(range(call.stacked)):
        return call._replace(why="`vmap` stacks it and its layer along different axes")
    if from_right < -layer.features:
        return call._replace(why="it normalizes an axis that is not one of the features that its layer makes")
    if len(users) > 1:
        return call._replace(why=f"the output of {layer.path!r} is used {len(users)} times")
    in_kernel = layer.axis if from_right == -1 and layer.axis is not None else from_right
    return call._replace(kernel_axis=in_kernel, bias_axis=from_right)


class Pairs:
    """The norms of a program, and the layers before them.

    Args:
      graph: of the program.
      values: of its arguments, by the paths of variables.

    Attributes:
      calls: of each norm, by path.
      sources: of the variables of layers and norms, by the path of the module and their name there.
      refused: why norms cannot be folded, by path; none for the others.
    """

    def __init__(self, graph: Graph, values: Mapping[str, int]):
        self.calls: dict[str, list[Call]] = defaultdict(list)
        self._graph, self._values = graph, values
        self._times: dict[str, int] = defaultdict(int)
        self._feeds: dict[str, list[str]] = defaultdict(list)
        for call in calls(graph):
            self.calls[call.norm.path].append(call)
            if call.layer is not None and not call.why:
                self._feeds[call.layer.path].append(call.norm.path)
        for _, tag in graph.tags():
            self._times[tag.path] += tag.role == "layer"
        self.sources = self._sources()
        found = {path: self._why_not(path) for path in self.calls}
        self.refused = {path: why for path, why in found.items() if why}

    def layers(self, path: str) -> dict[str, Call]:
        """The layers before a norm, each with one of its calls."""
        return {call.layer.path: call for call in self.calls[path] if call.layer is not None}

    def leaf(self, path: str, name: str) -> Source | None:
        """Which variable of the model is this one of the module at `path`; none where it has none."""
        return self.sources.get((path, name))

    def _sources(self) -> dict[tuple[str, str], Source]:
        names = {value: path for path, value in self._values.items()}
        found: dict[tuple[str, str], Source] = {}
        for node, tag in self._graph.tags():
            if tag.role == "leaf":
                new = source(self._graph, node, tag, names)
                if found.setdefault((tag.path, tag.leaf), new) != new:
                    found[tag.path, tag.leaf] = Source()
        return found

    def _why_not(self, path: str) -> str:
        """Why a norm cannot be folded, from all its calls."""
        for call in self.calls[path]:
            if call.why or call.layer is None:
                return call.why
            layer = call.layer.path
            why = self._serves_others(path, layer) or self._made(path, layer) or self._stacked_otherwise(call)
            why = why or self._does("kernel", layer, PRODUCTS) or self._does("bias", layer, ADDED)
            if why:
                return why
        return ""

    def _serves_others(self, path: str, layer: str) -> str:
        """What else a layer feeds."""
        feeds, times = self._feeds[layer], self._times[layer]
        if set(feeds) == {path} and len(feeds) == times:
            return ""
        return f"the layer {layer!r} is called {times} times, and feeds {', '.join(map(repr, sorted(set(feeds))))}"

    def _made(self, path: str, layer: str) -> str:
        """Which variables are not as the model holds them."""
        if self.leaf(path, "mean") is None or self.leaf(path, "var") is None:
            return STATELESS
        if self.leaf(layer, "kernel") is None:
            return f"the layer {layer!r} has no kernel"
        for module, name in (
            (layer, "kernel"),
            (layer, "bias"),
            *((path, n) for n in ("mean", "var", "scale", "bias")),
        ):
            leaf = self.leaf(module, name)
            if leaf is not None and not leaf.name:
                return f"the {name} of {module!r} is no variable of the model as it is: something is computed from it"
        return ""

    def _stacked_otherwise(self, call: Call) -> str:
        """Whether kernel and statistics are stacked by the same loops and the same `vmap`."""
        assert call.layer is not None
        kernel, mean = self.sources[call.layer.path, "kernel"], self.sources[call.norm.path, "mean"]
        own = [leaf for n in ("bias", "var", "scale") if (leaf := self.leaf(call.norm.path, n)) is not None]
        bias = self.leaf(call.layer.path, "bias")
        stacks = {leaf.stack for leaf in (mean, *own, *(() if bias is None else (bias,)))}
        mapped = sum(isinstance(step, str) for step in mean.stack)
        if stacks == {kernel.stack} and mapped in (0, call.stacked):
            return ""
        return f"it is not stacked as its layer {call.layer.path!r} is"

    def _does(self, name: str, layer: str, ends: Set[str]) -> str:
        """What a variable of a layer does beside its part in that layer."""
        leaf = self.leaf(layer, name)
        if leaf is None:
            return ""
        used, times = uses(self._graph, self._values[leaf.name], ends), self._times[layer]
        if used is None:
            return f"the {name} of {layer!r} is used for something else than the layer"
        if used != times:
            return f"the {name} of {layer!r} is used {used} times, but the layer is called {times} times"
        return ""
