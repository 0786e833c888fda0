"""What becomes of the variables of a model in its program: which module has which, and what else uses them."""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import Any, NamedTuple

import numpy as np

from bnjax._lifecycle.graph import Graph, Node
from bnjax._lifecycle.tags import Tag
from bnjax._lifecycle.walk import ALIKE

PRODUCTS = frozenset({"conv_general_dilated", "dot_general"})
ADDED = frozenset({"add"})
REARRANGES = {*ALIKE, "reshape", "transpose", "rev", "squeeze", "broadcast_in_dim", "enter"}
CARRIES = {"scan", "while", "cond"}  # whose inside is looked at by itself


class Source(NamedTuple):
    """The variable of a model that a module has as one of its own.

    Attributes:
      name: its path; empty where it is none, but made from some.
      axes: of the variable: first those that loops and `vmap` take apart, from the outside, then the module's own.
      stack: what takes those apart: a number for each loop, a name for each `vmap`.
    """

    name: str = ""
    axes: tuple[int, ...] = ()
    stack: tuple[int | str, ...] = ()

    def standard(self, value: Any) -> Any:
        """The variable with its axes in that order."""
        return np.transpose(value, self.axes)

    def back(self, value: Any) -> Any:
        """From that order to the variable's own."""
        return np.transpose(value, np.argsort(self.axes))


def source(graph: Graph, node: Node, tag: Tag, names: Mapping[int, str]) -> Source:
    """Goes back from a variable as a module sees it to an argument of the program."""
    value = node.inputs[0]
    rank = len(graph.shapes[value])
    axes = tuple(range(rank))
    stack: tuple[int | str, ...] = tuple(f"vmap {n}" for n in range(rank - tag.rank))
    while value not in names:
        maker = graph.maker(value)
        if maker is None:
            return Source()
        if maker.name == "transpose":
            axes = tuple(int(maker.params["permutation"][a]) for a in axes)
        elif maker.name == "enter" and maker.loop is not None:
            axes, stack = (0, *(a + 1 for a in axes)), (maker.loop, *stack)
        elif maker.name not in {*ALIKE, "enter"} or len(maker.inputs) > 1:
            return Source()
        value = maker.inputs[0]
    return Source(names[value], axes, stack)


def uses(graph: Graph, value: int, ends: Set[str]) -> int | None:
    """How many operations of these names use a value, rearranged or not; nothing if any other does."""
    total, seen, ahead = 0, {value}, [value]
    while ahead:
        for user in graph.users[ahead.pop()]:
            if user.name in ends:
                total += 1
            elif user.name in REARRANGES:
                new = set(user.outputs) - seen
                seen |= new
                ahead += new
            elif user.name not in CARRIES:
                return None
    return total
