"""Normalize: one affine map per feature, with moments that come from elsewhere."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike, DTypeLike

from bnjax import _checks as checks
from bnjax._core.affine_map import Activation, activate, apply_map
from bnjax._core.moments import Moments
from bnjax._core.prepare import Arguments, Prepared, prepare


def normalize(
    x: ArrayLike,
    m: Moments,
    scale: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    *,
    axis: checks.Axes = -1,
    epsilon: ArrayLike = 1e-5,
    residual: ArrayLike | None = None,
    activation: Activation = None,
    dtype: DTypeLike | None = None,
) -> Array:
    """`activation((x - m.mean) * rsqrt(m.var + epsilon) * scale + bias + residual)`, differentiable in all.

    With running moments this is batch normalization at evaluation. Computed in float32 or wider; the
    backward pass keeps `x` in its own dtype and no other copy of it.

    Args:
      x: floating-point or complex.
      m: moments of the features' shape, or of the rank of `x` and broadcastable to it. `count` is not read.
      scale: of the features' shape, or of the rank of `x` and broadcastable to it (per example).
      bias: likewise.
      axis: the feature axes, as in Flax.
      epsilon: added to the variance.
      residual: of the shape of `x`; added after the affine map, before the activation.
      activation: `None`, `"relu"`, `"gelu"` (approximate, as `jax.nn.gelu`), `"silu"`, or a callable, which is applied
        to the result.
      dtype: of the result; that of `x` by default.

    Raises:
      ValueError: an argument that does not fit, by its name.

    References:
      Ioffe and Szegedy, Batch Normalization, 2015 (arXiv 1502.03167), algorithm 2.

    >>> m = Moments(jnp.array(2.0), jnp.array([1.0, 5.0]), jnp.array([4.0, 1.0]))
    >>> print(normalize(jnp.array([[3.0, 5.0], [1.0, 7.0]]), m, epsilon=0.0, activation="relu"))
    [[1. 0.]
     [0. 2.]]
    """
    arguments = Arguments(scale, bias, axis, epsilon, residual=residual, activation=activation, dtype=dtype)
    return normalize_prepared(prepare(x, arguments), m)


def normalize_prepared(ops: Prepared, m: Moments) -> Array:
    """`normalize` of a prepared call."""
    checks.has_parts(m, "m", "Moments", "mean", "var")
    mean = checks.feature_array(m.mean, "m.mean", ops.x.shape, ops.features)
    var = checks.feature_array(m.var, "m.var", ops.x.shape, ops.features)
    checks.no_imaginary_part_lost(ops.config.compute_dtype, mean, "m.mean")
    y = apply_map(ops.config, ops.x, ops.affine, mean, jnp.zeros_like(mean), var, None)
    return activate(y, ops.activation, ops.zero)
