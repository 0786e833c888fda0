"""What stands before each batch norm in the traced program: a layer with a bias, a dropout."""

from __future__ import annotations

from collections.abc import Iterable

from bnjax._lifecycle.doctor.facts import LOW, Norm
from bnjax._lifecycle.graph import Graph
from bnjax._lifecycle.leaves import CARRIES
from bnjax._lifecycle.pairs import calls
from bnjax._lifecycle.tags import Tag

NORMALIZED = ("norm_out", "other_norm_out")


def look_around(graph: Graph, norms: Iterable[Norm]) -> None:
    """Notes for each norm what stands before it. A dropout counts for the first norm behind it: one cause, one finding.

    Args:
      graph: of the program, tagged.
      norms: in the order of their calls.
    """
    biased = {tag.path for _, tag in graph.tags() if tag.role == "leaf" and tag.leaf == "bias"}
    layers = {c.norm.path: c.layer.path for c in calls(graph) if c.layer is not None and not c.why}
    inputs = _inputs(graph)
    counted: set[str] = set()
    for norm in norms:
        layer = layers.get(norm.path, "")
        norm.layer = layer if layer in biased else ""
        norm.part = min((_part(graph, norm, *one) for one in inputs.get(norm.path, ())), default=1.0)
        norm.low = any(tag.dtype.startswith(LOW) for tag, _ in inputs.get(norm.path, ()))
        found = {tag for _, value in inputs.get(norm.path, ()) for tag in _dropouts(graph, value)}
        new = sorted((tag.rate, tag.path) for tag in found if tag.path not in counted)
        counted |= {tag.path for tag in found}
        norm.dropout = (new[-1][1], new[-1][0]) if new else None


def _part(graph: Graph, norm: Norm, tag: Tag, value: int) -> float:
    """Which part of a batch a norm measures at a time: all, or a slice."""
    shape = graph.shapes[value]
    return min(1.0, norm.slice / shape[len(shape) - tag.rank]) if norm.slice else 1.0


def _inputs(graph: Graph) -> dict[str, list[tuple[Tag, int]]]:
    """Of each norm by path: the tags of its inputs, and these values."""
    found: dict[str, list[tuple[Tag, int]]] = {}
    for node, tag in graph.tags():
        if tag.role == "norm_in":
            found.setdefault(tag.path, []).append((tag, node.inputs[0]))
    return found


def _dropouts(graph: Graph, value: int) -> set[Tag]:
    """The dropouts behind which a value is made, with no norm between. What is inside of loops is not seen."""
    found, seen, ahead = set(), {value}, [value]
    while ahead:
        maker = graph.maker(ahead.pop())
        tag = maker.tag if maker is not None else None
        if maker is None or maker.name in CARRIES or (tag is not None and tag.role in NORMALIZED):
            continue
        if tag is not None and tag.role == "dropout":
            found.add(tag)
        new = set(maker.inputs) - seen
        seen |= new
        ahead += new
    return found
