"""Folding: the scale of a norm at evaluation goes into the kernel of the layer before it, the shift into the bias.

With mean m, variance v, scale s, bias b and a = s / sqrt(v + epsilon), the norm of k x + c is (a k) x + a c + b - a m.
Where a layer has no bias, the norm stays and adds the shift.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from bnjax._lifecycle.pairs import Call, Pairs
from bnjax._lifecycle.report import Row

Leaves = dict[str, Any]  # by path: "params/conv1/kernel"
FAR = 10.0  # |mean| / std from which on a kernel in bfloat16 or float16 loses more than the norm did


def folded(pairs: Pairs, leaves: Mapping[str, Any]) -> tuple[Leaves, list[Row]]:
    """The variables with all norms folded that can be, and a row for each norm."""
    new, rows = dict(leaves), []
    for path, calls in pairs.calls.items():
        why = pairs.refused.get(path) or _misfit(path, calls, leaves)
        if why:
            rows.append(Row(path, "batch", False, why))
            continue
        new |= _one(path, calls, leaves)
        rows.append(Row(path, "batch", True, _said(path, calls, leaves), _evidence(calls, path, leaves)))
    return new, rows


def _name(collection: str, path: str, leaf: str) -> str:
    return "/".join(filter(None, (collection, path, leaf)))


def _misfit(path: str, calls: list[Call], leaves: Mapping[str, Any]) -> str:
    """Why the shapes of the variables do not let a norm be folded."""
    mean = leaves.get(_name("batch_stats", path, "mean"))
    if mean is None or _name("batch_stats", path, "var") not in leaves:
        return "it has no running state"
    stack = np.shape(mean)[:-1]
    for layer in _layers(calls):
        kernel = np.shape(leaves[_name("params", layer, "kernel")])
        axis = _layers(calls)[layer]
        if kernel[: len(stack)] != stack or kernel[axis] != np.shape(mean)[-1]:
            return f"the kernel of {layer!r} has the shape {kernel}, which does not go with a mean of {np.shape(mean)}"
    return ""


def _layers(calls: list[Call]) -> dict[str, int]:
    """The layers before a norm, and the axis of the features in their kernels."""
    return {call.layer.path: call.kernel_axis for call in calls if call.layer is not None}


def _has_bias_everywhere(calls: list[Call], leaves: Mapping[str, Any]) -> bool:
    return all(_name("params", layer, "bias") in leaves for layer in _layers(calls))


def _one(path: str, calls: list[Call], leaves: Mapping[str, Any]) -> Leaves:
    """The variables that change where one norm is folded; all arithmetic is in float64."""

    def wide(collection: str, leaf: str, default: float) -> Any:
        value = leaves.get(_name(collection, path, leaf))
        return np.full(np.shape(mean), default) if value is None else np.asarray(value, np.float64)

    mean = np.asarray(leaves[_name("batch_stats", path, "mean")], np.float64)
    factor = wide("params", "scale", 1.0) / np.sqrt(wide("batch_stats", "var", 1.0) + calls[0].norm.epsilon)
    shift = wide("params", "bias", 0.0) - mean * factor
    everywhere = _has_bias_everywhere(calls, leaves)
    new: Leaves = {}
    for layer, axis in _layers(calls).items():
        name = _name("params", layer, "kernel")
        new[name] = _times(leaves[name], factor, axis)
        name = _name("params", layer, "bias")
        if name in leaves:
            of_bias = -1 if np.ndim(leaves[name]) - (factor.ndim - 1) == 1 else axis
            new[name] = _times(leaves[name], factor, of_bias, shift if everywhere else None)
    return new | _what_the_norm_keeps(path, calls, leaves, np.zeros_like(shift) if everywhere else shift)


def _what_the_norm_keeps(path: str, calls: list[Call], leaves: Mapping[str, Any], shift: Any) -> Leaves:
    """The variables of a folded norm: it adds the shift, and changes nothing else.

    fl(fl(1 - epsilon) + epsilon) is 1 in float32, so its factor is 1.
    """
    has_bias = _name("params", path, "bias") in leaves
    one = np.float32(1) - np.float32(calls[0].norm.epsilon)
    kept = {
        _name("batch_stats", path, "mean"): np.zeros_like(shift) if has_bias else -shift,
        _name("batch_stats", path, "var"): np.full(shift.shape, one),
        _name("params", path, "scale"): np.ones_like(shift),
        _name("params", path, "bias"): shift,
    }
    return {name: _like(value, leaves[name]) for name, value in kept.items() if name in leaves}


def _times(leaf: Any, factor: Any, axis: int, plus: Any = None) -> Any:
    """A kernel or a bias times the factor of each feature, plus something of each feature."""

    def placed(value: Any) -> Any:
        shape = [1] * np.ndim(leaf)
        shape[: value.ndim - 1] = value.shape[:-1]
        shape[axis] = value.shape[-1]
        return value.reshape(shape)

    new = np.asarray(leaf, np.float64) * placed(factor)
    return _like(new if plus is None else new + placed(plus), leaf)


def _like(value: Any, leaf: Any) -> Any:
    return jnp.asarray(value, jnp.result_type(leaf)).reshape(np.shape(leaf))


def _said(path: str, calls: list[Call], leaves: Mapping[str, Any]) -> str:
    parts = [] if _has_bias_everywhere(calls, leaves) else ["the norm adds the shift, because a layer has no bias"]
    low = low_dtypes(calls)
    far = _mean_over_std(path, leaves)
    if low and far > FAR:
        parts.append(
            f"warning: |mean| is {far:.0f} times the standard deviation, and in {', '.join(low)} the folded layer is "
            "less exact than layer and norm were"
        )
    return "; ".join(parts)


def low_dtypes(calls: Iterable[Call]) -> set[str]:
    """Those of bfloat16 and float16 that norms or the layers before them compute in."""
    found = {tag.dtype for call in calls for tag in (call.norm, call.layer) if tag is not None}
    return found & {"bfloat16", "float16"}


def _evidence(calls: list[Call], path: str, leaves: Mapping[str, Any]) -> dict[str, Any]:
    return {"into": ", ".join(_layers(calls)), "mean_over_std": _mean_over_std(path, leaves)}


def _mean_over_std(path: str, leaves: Mapping[str, Any]) -> float:
    mean, var = (np.asarray(leaves[_name("batch_stats", path, n)], np.float64) for n in ("mean", "var"))
    return float(np.max(np.abs(mean) / np.sqrt(np.maximum(var, np.finfo(np.float32).tiny)), initial=0.0))
