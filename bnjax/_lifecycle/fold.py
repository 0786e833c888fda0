"""Folding: the scale of a norm at evaluation goes into the kernel of the layer before it, the shift into the bias.

With mean m, variance v, scale s, bias b and a = s / sqrt(v + epsilon), the norm of k x + c is (a k) x + a c + b - a m.
Where a layer has no bias, the norm stays and adds the shift.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bnjax._lifecycle.pairs import Pairs
from bnjax._lifecycle.report import Row

Leaves = dict[str, Any]  # the variables of a model by their paths
FAR = 10.0  # |mean| / std from which on a kernel in bfloat16 or float16 loses more than the norm did


def folded(pairs: Pairs, leaves: Mapping[str, Any]) -> tuple[Leaves, list[Row]]:
    """The variables with all norms folded that can be, and a row for each norm that is called."""
    new, rows = dict(leaves), []
    for path in pairs.calls:
        why = pairs.refused.get(path)
        if why is None:
            changed, warning, evidence = _One(pairs, path, leaves).folded()
            why = _overflow(changed, leaves)
        if why:
            rows.append(Row(path, "batch", False, why))
            continue
        new |= changed
        rows.append(Row(path, "batch", True, warning, evidence))
    return new, rows


def _overflow(changed: Leaves, leaves: Mapping[str, Any]) -> str:
    finite = lambda t: bool(np.isfinite(wide(t)).all())  # noqa: E731
    lost = [name for name, value in changed.items() if finite(leaves[name]) and not finite(value)]
    return f"{lost[0]!r} would overflow in {leaves[lost[0]].dtype}" if lost else ""


class _One:
    """One norm, and the layers before it. Its arrays are in float64, with the axes of stacks first."""

    def __init__(self, pairs: Pairs, path: str, leaves: Mapping[str, Any]):
        self.pairs, self.path, self.leaves = pairs, path, leaves
        self.layers, self.epsilon = pairs.layers(path), pairs.calls[path][0].norm.epsilon
        self.mean, self.var = self._own("mean", 0.0), self._own("var", 1.0)
        factor = self._own("scale", 1.0) / np.sqrt(self.var + self.epsilon)
        # What the norm does in its own dtype after it is folded is 1 but for rounding, which is put right here.
        self.factor = factor * np.sqrt(wide(self._kept_var()) + self.epsilon)
        self.shift = self._own("bias", 0.0) - self.mean * factor
        self.everywhere = all(pairs.leaf(layer, "bias") is not None for layer in self.layers)

    def folded(self) -> tuple[Leaves, str, dict[str, Any]]:
        """The variables that change, a warning, and figures."""
        new: Leaves = {}
        for layer, call in self.layers.items():
            new |= self._times(layer, "kernel", call.kernel_axis)
            new |= self._times(layer, "bias", call.bias_axis, self.shift if self.everywhere else None)
        new |= self._what_the_norm_keeps(np.zeros_like(self.shift) if self.everywhere else self.shift)
        std = np.sqrt(np.maximum(self.var, np.finfo(np.float32).tiny))
        far = float(np.max(np.abs(self.mean) / std, initial=0.0))
        return new, self._said(far), {"into": ", ".join(self.layers), "mean_over_std": far}

    def _own(self, name: str, default: float) -> Any:
        """A variable of the norm; features without one have the default."""
        leaf = self.pairs.leaf(self.path, name)
        if leaf is not None:
            return leaf.standard(wide(self.leaves[leaf.name]))
        return np.full(self.mean.shape, default)

    def _times(self, layer: str, name: str, axis: int, plus: Any = None) -> Leaves:
        """A kernel or a bias times the factor of each feature, plus something of each feature."""
        leaf = self.pairs.leaf(layer, name)
        if leaf is None:
            return {}
        old = leaf.standard(wide(self.leaves[leaf.name]))
        shape = [*old.shape[: len(leaf.stack)], *[1] * (old.ndim - len(leaf.stack))]
        shape[axis] = old.shape[axis]
        new = old * self.factor.reshape(shape)
        new = new if plus is None else new + plus.reshape(shape)
        return {leaf.name: like(self.leaves[leaf.name], leaf.back(new))}

    def _what_the_norm_keeps(self, shift: Any) -> Leaves:
        """The variables of a folded norm: it adds the shift, and changes nothing else."""
        has_bias = self.pairs.leaf(self.path, "bias") is not None
        kept = {
            "mean": np.zeros_like(shift) if has_bias else -shift,
            "var": np.broadcast_to(self._kept_var(), shift.shape),
            "scale": np.ones_like(shift),
            "bias": shift,
        }
        found = {name: leaf for name in kept if (leaf := self.pairs.leaf(self.path, name)) is not None}
        return {leaf.name: like(self.leaves[leaf.name], leaf.back(kept[name])) for name, leaf in found.items()}

    def _kept_var(self) -> Any:
        """1 - epsilon in the dtype of the variance: fl(fl(1 - epsilon) + epsilon) is 1, and so is the norm's factor."""
        leaf = self.pairs.leaf(self.path, "var")
        assert leaf is not None
        dtype = jnp.result_type(self.leaves[leaf.name])
        return np.asarray(1, dtype) - np.asarray(self.epsilon, dtype)

    def _said(self, far: float) -> str:
        parts = [] if self.everywhere else ["the norm adds the shift, because a layer has no bias"]
        low = self._low_dtypes()
        if low and far > FAR:
            parts.append(
                f"warning: |mean| is up to {far:.0f} times the standard deviation, and in {', '.join(sorted(low))} the "
                "folded layer is less exact than layer and norm were"
            )
        return "; ".join(parts)

    def _low_dtypes(self) -> set[str]:
        """Those of bfloat16 and float16 that layers and norm compute in, or their kernels are kept in."""
        tags = [tag for call in self.pairs.calls[self.path] for tag in (call.norm, call.layer) if tag is not None]
        kernels = [leaf for layer in self.layers if (leaf := self.pairs.leaf(layer, "kernel")) is not None]
        found = {tag.dtype for tag in tags} | {str(jnp.result_type(self.leaves[leaf.name])) for leaf in kernels}
        return found & {"bfloat16", "float16"}


def wide(value: Any) -> Any:
    """An array in float64, or complex128."""
    value = np.asarray(value)
    return value.astype(np.complex128 if np.iscomplexobj(value) else np.float64)


def like(old: Any, new: Any) -> Any:
    """`new` with the dtype of `old`, rounded once, and where `old` is."""
    with np.errstate(over="ignore"):  # which is refused
        value = np.asarray(new).astype(np.asarray(old).dtype)
    if not isinstance(old, jax.Array):
        return value
    return jax.device_put(value, old.sharding) if old.committed else jnp.asarray(value)
