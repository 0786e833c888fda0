"""Axes of a value on the other side of an operation that only rearranges."""

from __future__ import annotations

import math

from bnjax._lifecycle.graph import Graph, Node

# What changes neither the order of the numbers nor, but for rounding, their values.
ALIKE = {
    "convert_element_type", "copy", "name", "optimization_barrier", "reduce_precision", "sharding_constraint",
}  # fmt: skip
RESHAPES = {"reshape", "squeeze", "broadcast_in_dim"}


def axes_before(graph: Graph, node: Node, axes: tuple[int, ...]) -> tuple[int, ...] | None:
    """The axes of the input that are these axes of the output; nothing where the operation does more."""
    if node.name in ALIKE and len(node.inputs) == 1:
        return axes
    if node.name == "transpose":
        return tuple(int(node.params["permutation"][axis]) for axis in axes)
    if node.name in RESHAPES:
        before, after = graph.shapes[node.inputs[0]], graph.shapes[node.outputs[0]]
        found = [_same_axis(before, after, axis) for axis in axes]
        known = tuple(axis for axis in found if axis is not None)
        return known if math.prod(before) == math.prod(after) and len(known) == len(axes) else None
    return None


def _same_axis(before: tuple[int, ...], after: tuple[int, ...], axis: int) -> int | None:
    """The axis with the same length, and as many numbers before it."""
    left = math.prod(after[:axis])
    places = [a for a, size in enumerate(before) if size == after[axis] and math.prod(before[:a]) == left]
    return places[0] if len(places) == 1 else None
