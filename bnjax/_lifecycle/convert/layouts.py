"""How the array of a layer lies in PyTorch or Keras, and how in Flax; one table, read in both directions.

"Into" takes the array of the source, in float64 or as it is, and gives that of Flax; "back" is the inverse, to the bit.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from bnjax._lifecycle.convert.layers import OWN, Layer, numbers

Rearranges = Callable[[np.ndarray, Layer], np.ndarray]


class Layout(NamedTuple):
    """Of the weight of one kind of layer."""

    into: Rearranges
    back: Rearranges


def _kernel(layer: Layer) -> tuple[int, ...]:
    return layer.leaves["weight"].shape


def _matrix(layer: Layer) -> tuple[int, int]:
    """The shape of a kernel of a dense layer with all its inputs in one axis, and all its outputs."""
    shape, split = _kernel(layer), len(_kernel(layer)) - layer.seen.out_axes
    return numbers(shape[:split]), numbers(shape[split:])


def _reordered(w: np.ndarray, layer: Layer) -> np.ndarray:
    """(inputs, outputs) with features from PyTorch's order to Flax's."""
    w = w if layer.rows is None else w[layer.rows]
    return w if layer.columns is None else w[:, layer.columns]


def _ordered_back(w: np.ndarray, layer: Layer) -> np.ndarray:
    w = w if layer.rows is None else w[np.argsort(layer.rows)]
    return w if layer.columns is None else w[:, np.argsort(layer.columns)]


def _flips(w: np.ndarray) -> np.ndarray:
    """Height and width the other way round."""
    return np.flip(w, tuple(range(w.ndim - 2)))


def _transposed_into(w: np.ndarray, layer: Layer) -> np.ndarray:
    # PyTorch's (in, out, *window) is the kernel of the convolution whose transpose this is.
    return np.moveaxis(w, (0, 1), (-1, -2)) if layer.seen.transposed else _flips(np.moveaxis(w, (0, 1), (-2, -1)))


def _transposed_back(w: np.ndarray, layer: Layer) -> np.ndarray:
    return np.moveaxis(w, (-1, -2), (0, 1)) if layer.seen.transposed else np.moveaxis(_flips(w), (-2, -1), (0, 1))


SAME = Layout(lambda w, layer: w.reshape(_kernel(layer)), lambda w, layer: w)
TORCH = {
    "conv": Layout(
        lambda w, layer: np.moveaxis(w, (0, 1), (-1, -2)), lambda w, layer: np.moveaxis(w, (-1, -2), (0, 1))
    ),
    "conv_transpose": Layout(_transposed_into, _transposed_back),
    "dense": Layout(
        lambda w, layer: _reordered(w.reshape(w.shape[0], -1).T, layer).reshape(_kernel(layer)),
        lambda w, layer: _ordered_back(w.reshape(_matrix(layer)), layer).T,
    ),
    "embed": SAME,
    "value": SAME,
}
KERAS = {
    # Of a depthwise convolution the last two axes are inputs and what each makes; in Flax 1 and both.
    "conv": SAME,
    # Keras has (*window, out, in), the kernel of the convolution whose transpose this is.
    "conv_transpose": Layout(
        lambda w, layer: w if layer.seen.transposed else _flips(np.swapaxes(w, -1, -2)),
        lambda w, layer: w if layer.seen.transposed else np.swapaxes(_flips(w), -1, -2),
    ),
    "dense": SAME,
    "embed": SAME,
    "value": SAME,
}
DIALECTS = {"torch": TORCH, "keras": KERAS}


def layout(dialect: str, layer: Layer) -> Layout:
    """The layout of the kernel of a layer; of somebody's own class, that which its rank suggests."""
    own = "value" if layer.as_is else "dense" if len(_kernel(layer)) == 2 else "conv"
    return DIALECTS[dialect][own if layer.kind == OWN else layer.kind]


def into_flax(dialect: str, layer: Layer, role: str, value: np.ndarray) -> np.ndarray:
    """The array of a source as the layer has it."""
    shape = layer.leaves[role].shape
    if role == "value":
        return value.reshape(shape)
    if role == "weight" and layer.is_product:
        return layout(dialect, layer).into(value, layer)
    if _is_image(dialect, layer, shape):
        value = np.moveaxis(value, 0, -1)
    else:
        order = _order(layer)
        value = value.reshape(shape) if order is None else value.reshape(-1)[order].reshape(shape)
    return value - layer.offset if role == "weight" and layer.offset else value


def from_flax(dialect: str, layer: Layer, role: str, value: np.ndarray) -> np.ndarray:
    """The array of a layer as the source has it; the inverse."""
    if role == "value":
        return value
    if role == "weight" and layer.is_product:
        return layout(dialect, layer).back(value, layer)
    if role == "weight" and layer.offset:
        value = value + layer.offset
    if _is_image(dialect, layer, value.shape):
        return np.moveaxis(value, -1, 0)
    order = _order(layer)
    if order is not None:
        return value.reshape(-1)[np.argsort(order)]
    # Neither has axes of length one for the sake of broadcasting.
    return value.reshape(-1) if layer.is_product else value.reshape([n for n in value.shape if n > 1] or [value.size])


def expected(dialect: str, layer: Layer) -> tuple[int, ...]:
    """The shape that the weight of a layer has in the source; of one without a weight, that of what it has."""
    role = "weight" if "weight" in layer.leaves else next(iter(layer.leaves))
    blank = np.broadcast_to(np.float32(0), layer.leaves[role].shape)
    return from_flax(dialect, dataclasses.replace(layer, rows=None, columns=None, offset=0), role, blank).shape


def _is_image(dialect: str, layer: Layer, shape: tuple[int, ...]) -> bool:
    """Whether a scale or a bias is of several axes, of which PyTorch has channels first."""
    several = len([n for n in shape if n > 1]) > 1 and not layer.is_product
    return several and dialect == "torch" and bool(layer.seen.settings.get("channels_moved"))


def _order(layer: Layer) -> np.ndarray | None:
    """The order of the features that a layer makes."""
    return layer.columns if layer.is_product or layer.rows is None else layer.rows
