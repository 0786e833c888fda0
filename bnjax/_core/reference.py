"""The rule in plain JAX, with plain autodiff: what `rule.py` computes, and nothing about how.

It keeps several arrays of the input's size for the backward pass, which is why the rule is written otherwise. Tests
compare the two, and the documentation shows this file.
"""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jax import Array, lax


def standardize(
    x: Array,
    c: Array,
    scale: Array,
    bias: Array,
    *,
    axes: Sequence[int],
    epsilon: float,
    mask: Array | None = None,
    axis_name: Any = None,
    residual: Array | None = None,
    relu: bool = False,
) -> tuple[Array, Array, Array, Array]:
    """The output, and count, mean and variance over `axes` and the devices along `axis_name`.

    `c`, `scale` and `bias` have the rank of `x`, and the results keep the measured axes.
    """
    w = jnp.ones_like(x, bool) if mask is None else jnp.broadcast_to(mask, x.shape)
    d = jnp.where(w, x - lax.stop_gradient(c), 0)  # measure
    sums = [t.sum(axes, keepdims=True) for t in (w.astype(x.dtype), d, d * d)]
    count, s1, s2 = sums if axis_name is None else lax.psum(sums, axis_name)  # combine
    n = jnp.maximum(count, 1)
    delta = s1 / n
    var = jnp.maximum(s2 / n - delta**2, 0)
    seen = jnp.where(count > 0, var, jnp.inf)  # nothing valid: the output is the bias
    y = (x - c - delta) * lax.rsqrt(seen + epsilon) * scale + bias  # normalize
    y = y if residual is None else y + residual
    return jnp.maximum(y, 0) if relu else y, count, c + delta, var
