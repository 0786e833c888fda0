"""Replacements of norms, without statistics: dynamic tanh and erf, and activations that keep the variance."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike, DTypeLike

from bnjax import _checks as checks
from bnjax._core.prepare import Arguments, prepare
from bnjax._norms.measure import in_stat_dtype, scalar_parameter, scaled
from bnjax._norms.spec import AFFINE, Mask, Spec, Sync, number


def dynamic_tanh(
    x: ArrayLike,
    scale: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    alpha: ArrayLike = 0.5,
    *,
    axis: checks.Axes = -1,
    dtype: DTypeLike | None = None,
) -> Array:
    """Dynamic tanh (DyT), in the place of layer norm: `jnp.tanh(alpha * x) * scale + bias`. No statistics.

    Args:
      x: real. The arithmetic is float32 or wider.
      scale: of the features' shape, or of the rank of `x` and broadcastable to it.
      bias: likewise.
      alpha: one number, learned.
      axis: the feature axes.
      dtype: of the output; that of `x` by default.

    Raises:
      ValueError: an argument that does not fit, by its name.

    References:
      Zhu, Chen, He, LeCun and Liu, Transformers without Normalization, 2025 (arXiv 2503.10622).

    >>> print(dynamic_tanh(jnp.array([[0.0, 100.0]]), bias=jnp.array([1.0, 1.0])))
    [[1. 2.]]
    """
    ops = prepare(x, Arguments(scale, bias, axis, dtype=dtype), real=True)
    t = in_stat_dtype(ops.x)
    y = jnp.tanh(t * checks.widened(scalar_parameter(alpha, "alpha"), t))
    return scaled(y, ops.affine.scale, ops.affine.bias, ops)


def dynamic_erf(
    x: ArrayLike,
    scale: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    alpha: ArrayLike = 0.5,
    shift: ArrayLike = 0.0,
    *,
    axis: checks.Axes = -1,
    dtype: DTypeLike | None = None,
) -> Array:
    """Dynamic erf (Derf), in the place of layer norm: `erf(alpha * x + shift) * scale + bias`. No statistics.

    Equivalent, with `erf` that of `jax.scipy.special`.

    Args:
      x: real. The arithmetic is float32 or wider.
      scale: of the features' shape, or of the rank of `x` and broadcastable to it.
      bias: likewise.
      alpha: one number, learned.
      shift: one number, learned; it is added before `erf`, and `bias` after it.
      axis: the feature axes.
      dtype: of the output; that of `x` by default.

    Raises:
      ValueError: an argument that does not fit, by its name.

    References:
      Chen, Lu, Zhu, Sun and Liu, Stronger Normalization-Free Transformers, 2025 (arXiv 2512.10938).

    >>> print(dynamic_erf(jnp.array([[0.0, 100.0]]), bias=jnp.array([1.0, 1.0])))
    [[1. 2.]]
    """
    ops = prepare(x, Arguments(scale, bias, axis, dtype=dtype), real=True)
    t = in_stat_dtype(ops.x)
    alpha, shift = (checks.widened(scalar_parameter(v, n), t) for v, n in ((alpha, "alpha"), (shift, "shift")))
    return scaled(jax.lax.erf(alpha * t + shift), ops.affine.scale, ops.affine.bias, ops)


# 1 / the standard deviation of the activation of a standard normal number, by quadrature.
_GAINS = {
    "celu": 1.270843, "elu": 1.270843, "gelu": 1.700917, "leaky_relu": 1.704832, "log_sigmoid": 1.919126,
    "relu": 1.712859, "relu6": 1.712859, "selu": 1.0, "sigmoid": 4.801313, "silu": 1.787187, "softplus": 1.919126,
    "tanh": 1.592537,
}  # fmt: skip


def scaled_activation(x: ArrayLike, activation: str = "relu") -> Array:
    """An activation that keeps the variance of a standard normal input: `gain * activation(x)`.

    With `scaled_weight_standardize` it takes the place of normalization in NF-nets.

    Args:
      x: floating-point.
      activation: the name of a function of `jax.nn`.

    Raises:
      ValueError: an activation without a known gain.

    References:
      Brock, De and Smith, Characterizing signal propagation to close the performance gap in unnormalized ResNets,
      2021 (arXiv 2101.08692).

    >>> print(scaled_activation(jnp.array([-1.0, 2.0])).round())
    [0. 3.]
    """
    checks.choice(activation, "activation", tuple(_GAINS))
    x = checks.real_array(x)
    return getattr(jax.nn, activation)(x) * jnp.asarray(_GAINS[activation], x.dtype)


DYNAMIC_TANH = Spec(
    name="dyt",
    function=dynamic_tanh,
    module="DynamicTanh",
    statistics=(),
    sync=Sync.POINTWISE,
    mask=Mask.POINTWISE,
    parameters=AFFINE | {"alpha": number(0.5)},
    paper="Zhu et al. 2025, arXiv 2503.10622",
    use="transformers, in the place of layer norm",
)
DYNAMIC_ERF = Spec(
    name="derf",
    function=dynamic_erf,
    module="DynamicErf",
    statistics=(),
    sync=Sync.POINTWISE,
    mask=Mask.POINTWISE,
    parameters=AFFINE | {"alpha": number(0.5), "shift": number(0.0)},
    paper="Chen et al. 2025, arXiv 2512.10938",
    use="transformers, in the place of layer norm",
)
SPECS = (DYNAMIC_TANH, DYNAMIC_ERF)
