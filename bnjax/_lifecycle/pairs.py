"""Which layer stands right before each norm, judged on the traced program."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from typing import NamedTuple

from bnjax._lifecycle.graph import Graph, Node
from bnjax._lifecycle.tags import Tag

# What changes neither the order of the numbers nor, but for rounding, their values.
ALIKE = {
    "convert_element_type",
    "copy",
    "copy_p",
    "name",
    "sharding_constraint",
    "optimization_barrier",
    "reduce_precision",
}
PRODUCTS = {"conv_general_dilated", "dot_general"}
REARRANGED = {"convert_element_type", "copy", "reshape", "transpose", "rev", "squeeze", "broadcast_in_dim"}
CARRIED = {"scan", "while", "cond"}  # whose inside is looked at by itself


class Call(NamedTuple):
    """One call of a norm.

    Attributes:
      norm: its tag.
      layer: the tag of the layer right before it, if there is one.
      kernel_axis: that of the features in the layer's kernel, from the right.
      why: it cannot be folded.
    """

    norm: Tag
    layer: Tag | None = None
    kernel_axis: int = -1
    why: str = ""


def calls(graph: Graph) -> list[Call]:
    """The calls of all norms."""
    return [_call(graph, node, tag) for node, tag in graph.tags() if tag.role == "norm_in"]


def layer_calls(graph: Graph) -> dict[str, int]:
    """How often each layer is called, by path."""
    counted: dict[str, int] = defaultdict(int)
    for _, tag in graph.tags():
        counted[tag.path] += tag.role == "layer"
    return counted


def _call(graph: Graph, node: Node, norm: Tag) -> Call:
    """Goes back from the input of a norm, past what only rearranges, to the output of a layer."""
    if norm.axis is None:
        return Call(norm, why="it has several feature axes")
    if norm.train:
        return Call(norm, why="it normalizes by the batch")
    start = value = node.inputs[0]
    stacked = len(graph.shapes[start]) - norm.rank  # axes that `vmap` added, in front
    axis = norm.axis + stacked
    while True:
        users = graph.users[value]
        if len(users) > 1:
            return Call(norm, why=f"its input is used {len(users)} times")
        maker = graph.maker(value)
        if maker is None:
            return Call(norm, why="no layer of this model makes its input")
        tag = maker.tag
        if tag is not None and tag.role == "layer":
            return _of_layer(graph, maker, tag, Call(norm, tag), axis, stacked)
        if tag is not None and tag.role == "norm_out":
            return Call(norm, why=f"the norm {tag.path!r} makes its input")
        if maker.name == "enter":
            return Call(norm, why=f"its input comes from outside of a `{maker.inside}`")
        before = axis_before(graph, maker, axis)
        if before is None:
            return Call(norm, why=f"`{maker.name}` stands between it and a layer")
        value, axis = maker.inputs[0], before


def _of_layer(graph: Graph, maker: Node, layer: Tag, call: Call, axis: int, stacked: int) -> Call:
    """The call of a norm, whose layer is found."""
    output = maker.inputs[0]
    from_right = axis - len(graph.shapes[maker.outputs[0]])
    if len(graph.shapes[output]) - layer.rank != stacked:
        return call._replace(why="`vmap` stacks it and its layer along different axes")
    if from_right < -layer.features:
        return call._replace(why="it normalizes an axis that is not one of the features that its layer makes")
    if len(graph.users[output]) > 1:
        return call._replace(why=f"the output of {layer.path!r} is used {len(graph.users[output])} times")
    return call._replace(kernel_axis=layer.axis if from_right == -1 and layer.axis is not None else from_right)


def axis_before(graph: Graph, node: Node, axis: int) -> int | None:
    """The axis of the input that is this axis of the output of an operation that only rearranges; else nothing."""
    before, after = graph.shapes[node.inputs[0]], graph.shapes[node.outputs[0]]
    if node.name in ALIKE:
        return axis
    if node.name == "transpose":
        return int(node.params["permutation"][axis])
    if node.name in ("reshape", "squeeze", "expand_dims") or (
        node.name == "broadcast_in_dim" and math.prod(before) == math.prod(after)
    ):
        places = [a for a, size in enumerate(before) if size == after[axis] and size != 1]
        return next((a for a in places if math.prod(before[:a]) == math.prod(after[:axis])), None)
    return None


def kernel_uses(graph: Graph, kernel: int) -> int | None:
    """How many products a kernel takes part in; nothing if it is used for anything else."""
    total = 0
    for user in graph.users[kernel]:
        if user.name in PRODUCTS:
            total += 1
        elif user.name in REARRANGED or user.name == "enter":
            inner = kernel_uses(graph, user.outputs[0])
            if inner is None:
                return None
            total += inner
        elif user.name not in CARRIED and user.name != "leave":
            return None
    return total


class Pairs:
    """The norms of a program, and the layers before them.

    Args:
      graph: of the program.
      values: of its arguments, by their paths: "params/conv1/kernel".

    Attributes:
      calls: of each norm, by path.
      refused: why norms cannot be folded, by path; none for the others.
    """

    def __init__(self, graph: Graph, values: Mapping[str, int]):
        self.calls: dict[str, list[Call]] = defaultdict(list)
        self._graph, self._values, self._layers = graph, values, layer_calls(graph)
        self._feeds: dict[str, list[str]] = defaultdict(list)
        for call in calls(graph):
            self.calls[call.norm.path].append(call)
            if call.layer is not None and not call.why:
                self._feeds[call.layer.path].append(call.norm.path)
        found = {path: self._why_not(path) for path in self.calls}
        self.refused = {path: why for path, why in found.items() if why}

    def _why_not(self, path: str) -> str:
        """Why a norm cannot be folded, from all its calls."""
        for call in self.calls[path]:
            if call.why or call.layer is None:
                return call.why
            why = self._layer_serves_others(path, call.layer.path) or self._kernel_does(call.layer.path)
            if why:
                return why
        return ""

    def _layer_serves_others(self, path: str, layer: str) -> str:
        feeds, times = self._feeds[layer], self._layers[layer]
        if set(feeds) == {path} and len(feeds) == times:
            return ""
        return f"the layer {layer!r} is called {times} times, and feeds {', '.join(map(repr, sorted(set(feeds))))}"

    def _kernel_does(self, layer: str) -> str:
        """What the kernel of a layer does beside its products."""
        kernel = self._values.get("/".join(filter(None, ("params", layer, "kernel"))))
        if kernel is None:
            return f"the layer {layer!r} has no kernel of its own"
        uses, times = kernel_uses(self._graph, kernel), self._layers[layer]
        if uses is None:
            return f"the kernel of {layer!r} is used for something else than its products"
        if uses != times:
            return f"the kernel of {layer!r} is used {uses} times, but the layer is called {times} times"
        return ""
