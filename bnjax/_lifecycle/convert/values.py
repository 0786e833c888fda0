"""The arrays of a unit, as the layer has them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from bnjax._lifecycle.convert.layers import Layer
from bnjax._lifecycle.convert.layouts import from_flax, into_flax, layout
from bnjax._lifecycle.convert.units import Unit

IDENTITY = {"bias": 0.0, "weight": 1.0}


def values_for(
    verb: str, dialect: str, layer: Layer, unit: Unit, keeps: Callable[[str], bool], *, named: bool
) -> dict[str, np.ndarray]:
    """What goes into each variable of a layer, by role.

    Args:
      verb: the caller, for errors.
      dialect: "torch" or "keras".
      layer: of the Flax model.
      unit: of the source.
      keeps: whether a leaf stays as it is.
      named: whether the user named all arrays, so that what is missing is left out, and not neutral.

    Raises:
      ValueError: the source has something that the layer has not, or the other way round; shapes that differ.
    """
    if layer.kind == "group" and (layer.rows is not None or layer.columns is not None):
        raise ValueError(
            f"`{verb}` cannot convert {layer.shown!r}: it is a group norm after a flatten, and its groups are of other "
            "features than in PyTorch, which has channels first there. Transpose the image before it is made flat."
        )
    tensors = {role: value for role, value in unit.tensors.items() if role != "steps"}
    if "length" in tensors or "length" in layer.leaves:
        tensors = _weight_norm(dialect, layer, tensors)
    more = [unit.names[role] for role in tensors if role not in layer.leaves]
    if more:
        raise ValueError(
            f"`{verb}` has no place for {', '.join(map(repr, more))}: the layer {layer.shown!r} has only "
            f"{', '.join(leaf.name for leaf in layer.leaves.values())}. Give the layer what it lacks, such as "
            "`use_bias=True`, or skip the array by `rename`."
        )
    found = {}
    for role, leaf in layer.leaves.items():
        if keeps(leaf.name):
            continue
        if role in tensors:
            found[role] = _one(verb, dialect, layer, role, unit.names.get(role, unit.name), tensors[role])
        elif role in IDENTITY and not named and not (role == "weight" and layer.is_product):
            found[role] = np.full(leaf.shape, IDENTITY[role] - (layer.offset if role == "weight" else 0), np.float32)
    return found


def _one(verb: str, dialect: str, layer: Layer, role: str, name: str, value: np.ndarray) -> np.ndarray:
    shape = layer.leaves[role].shape
    try:
        new = into_flax(dialect, layer, role, value)
    except (ValueError, IndexError):
        new = value
    if new.shape != shape:
        wanted = from_flax(dialect, layer, role, np.zeros(shape, np.int8)).shape
        raise ValueError(
            f"`{verb}` cannot put {name!r} of shape {value.shape} into {layer.leaves[role].shown!r} of shape {shape}, "
            f"which wants {wanted} there."
        )
    return new


def _weight_norm(dialect: str, layer: Layer, tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Direction and length of a weight: as they are, put together, or taken apart."""
    if "weight" not in tensors:
        return tensors
    weight, length = tensors["weight"], tensors.get("length")
    if length is not None and length.size == weight.shape[0] and per_output(layer):
        return tensors
    rest = {role: value for role, value in tensors.items() if role != "length"}
    if length is not None:
        rest["weight"] = put_together(weight, length)
    if "length" in layer.leaves:
        axes = layer.seen.length_axes or ()
        kernel = wide(layout(dialect, layer).into(rest["weight"], layer))
        rest["length"] = np.sqrt((kernel**2).sum(tuple(a for a in range(kernel.ndim) if a not in axes))).reshape(-1)
    return rest


def per_output(layer: Layer) -> bool:
    """Whether the layer gives a length to each feature that it makes, as PyTorch does by default."""
    last = (len(layer.leaves["weight"].shape) - 1,)
    return "length" in layer.leaves and layer.kind in ("conv", "dense") and layer.seen.length_axes == last


def put_together(weight: np.ndarray, length: np.ndarray) -> np.ndarray:
    """The weight that has this direction and these lengths, which have its rank, or are one number."""
    axes = tuple(a for a, n in enumerate(length.shape) if n == 1) if length.ndim == weight.ndim else None
    norm = np.sqrt((wide(weight) ** 2).sum(axes, keepdims=True))
    return (wide(weight) * (wide(length) / norm)).astype(weight.dtype)


def wide(value: np.ndarray) -> np.ndarray:
    """In float64."""
    return value.astype(np.float64)
