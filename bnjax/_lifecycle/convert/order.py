"""In which order features lie after a flatten: PyTorch has channels before height and width, Flax after them.

Both give the same numbers, each in its own order, and no shape tells. The traced program does: it is walked back from
the input of a layer, past what changes no order, to the image that was made flat. The places of its numbers in
PyTorch's order are then rearranged as the program rearranges the image.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import NamedTuple

import numpy as np

from bnjax._lifecycle.convert.layers import OWN, Layer
from bnjax._lifecycle.graph import Graph, Node
from bnjax._lifecycle.walk import ALIKE

IMAGES = ("conv", "conv_transpose")
REARRANGES = {*ALIKE, "reshape", "squeeze", "broadcast_in_dim", "expand_dims"}
# Their outputs may have the shape of an input, but not its order.
MIXES = {
    "dot_general", "conv_general_dilated", "rev", "sort", "gather", "scatter", "cumsum", "cumprod", "cummax", "fft",
    "scan", "while", "dynamic_slice", "roll",
}  # fmt: skip


class Places(NamedTuple):
    """Where the numbers of a value come from.

    Attributes:
      at: of each number, its place in PyTorch's order where it comes from an image; in Flax's where from a layer.
      maker: the path of the layer without height and width that made it; none of an image.
      passed: the paths of the layers on the way, which keep the order.
    """

    at: np.ndarray
    maker: str | None
    passed: tuple[str, ...] = ()


def set_orders(graph: Graph, layers: Sequence[Layer], inputs: Collection[int]) -> None:
    """Finds the layers whose features PyTorch has in another order, and writes it into them.

    Args:
      graph: of the model.
      layers: of the model.
      inputs: the values of the example.
    """
    orders = _Orders(graph, layers, inputs)
    for node, tag in graph.tags():
        if tag.role == "layer_in":
            orders.look(tag.path, node.inputs[0])


class _Orders:
    def __init__(self, graph: Graph, layers: Sequence[Layer], inputs: Collection[int]):
        self.graph, self.inputs = graph, inputs
        self.layers: dict[str, list[Layer]] = {}
        for layer in layers:
            self.layers.setdefault(layer.path, []).append(layer)
        self.images = {path for path, same in self.layers.items() if _makes_images(same[0])}
        self.products = {path for path, same in self.layers.items() if same[0].is_product} - self.images
        self.memo: dict[int, Places | None] = {}

    def look(self, path: str, value: int) -> None:
        """What the input of a layer says of it, or of a layer before it."""
        shape = self.graph.shapes[value]
        if not shape or path not in self.layers:
            return
        places = self.places(value)
        if places is None:
            return
        if places.maker is None and len(shape) == 2 and path not in self.images:
            for layer in self.layers[path]:
                layer.rows = _permutation(places.at)
        elif places.maker is not None and path in self.images:
            image = _image(shape)
            inverse = np.empty(shape[1:], int).reshape(-1)
            inverse[places.at[0].reshape(-1)] = image[0].reshape(-1)
            for before in (places.maker, *places.passed):
                for layer in self.layers.get(before, ()):
                    layer.columns = _permutation(inverse[None])

    def places(self, value: int) -> Places | None:
        """Where the numbers of a value come from; nothing where that is unknown."""
        if value not in self.memo:
            self.memo[value] = None  # what comes back to itself is no flatten
            self.memo[value] = self._places(value)
        return self.memo[value]

    def _places(self, value: int) -> Places | None:
        shape, maker = self.graph.shapes[value], self.graph.maker(value)
        if maker is None:
            return Places(_image(shape), None) if len(shape) > 3 and value in self.inputs else None
        tag = maker.tag
        if tag is not None and tag.role == "layer_out" and tag.path in self.images:
            return Places(_image(shape), None) if len(shape) > 2 else None
        if tag is not None and tag.role == "layer_out" and tag.path in self.products:
            return Places(np.broadcast_to(np.arange(shape[-1]), shape), tag.path) if len(shape) == 2 else None
        found = self._through(maker, shape)
        if found is not None and tag is not None and tag.role == "layer_in" and len(shape) == 2:
            found = found._replace(passed=(*found.passed, tag.path))
        return found

    def _through(self, node: Node, shape: tuple[int, ...]) -> Places | None:
        """Where the outputs of an operation come from."""
        if node.name == "concatenate" and len(shape) == 2:
            return self._joined(node, shape)
        sizes = {v: self.graph.shapes[v] for v in node.inputs}
        same = [v for v, size in sizes.items() if math.prod(size) == math.prod(shape)]
        found = next((p for v in same if (p := self.places(v)) is not None), None) if node.name not in MIXES else None
        if found is not None and node.name == "transpose":
            return found._replace(at=np.transpose(found.at, node.params["permutation"]))
        if found is not None and (node.name in REARRANGES or found.at.shape == shape):
            return found._replace(at=found.at.reshape(shape))
        # Pooling, padding and the like make an image of an image.
        images = [v for v, size in sizes.items() if len(size) == len(shape) > 2 and self.places(v) is not None]
        return Places(_image(shape), None) if any(self.places(v).maker is None for v in images) else None  # type: ignore[union-attr]

    def _joined(self, node: Node, shape: tuple[int, ...]) -> Places | None:
        """Features side by side: those of the second come after those of the first in PyTorch, too."""
        parts = [self.places(v) for v in node.inputs]
        images = [p for p in parts if p is not None and p.maker is None]
        if not images:
            return None
        whole, start = [], 0
        for part, value in zip(parts, node.inputs, strict=True):
            size = self.graph.shapes[value]
            at = part.at if part is not None and part.maker is None else np.broadcast_to(np.arange(size[-1]), size)
            whole.append(at + start)
            start += size[-1]
        return Places(np.concatenate(whole, -1), None)


def _makes_images(layer: Layer) -> bool:
    """Whether it is a convolution, or somebody's own."""
    weight = layer.leaves.get("weight")
    return layer.kind in IMAGES or (
        layer.kind == OWN and weight is not None and len(weight.shape) > 2 and layer.is_product
    )


def _image(shape: tuple[int, ...]) -> np.ndarray:
    """The places of the numbers of an image in PyTorch's order, for each example alike."""
    channels_first = np.arange(math.prod(shape[1:])).reshape(shape[-1], *shape[1:-1])
    return np.broadcast_to(np.moveaxis(channels_first, 0, -1), shape)


def _permutation(at: np.ndarray) -> np.ndarray | None:
    """The places of features; nothing where they are in order, or differ from example to example."""
    flat = at.reshape(at.shape[0], -1)
    if (flat != flat[:1]).any() or (flat[0] == np.arange(flat.shape[1])).all():
        return None
    return flat[0]
