"""Norms of weights instead of activations: weight norm, weight standardization and spectral norm."""

from __future__ import annotations

import math
from typing import Literal

import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike, DTypeLike

from bnjax import _checks as checks
from bnjax._complex import abs_sq
from bnjax._core.moments import Moments, moments
from bnjax._core.normalize import normalize
from bnjax._norms.spec import ONES, Gradient, Mask, Measured, Spec, Sync, Variable, number


def weight_norm(
    w: ArrayLike,
    scale: ArrayLike | None = None,
    *,
    axis: checks.Axes = -1,
    epsilon: ArrayLike = 1e-12,
    dtype: DTypeLike | None = None,
) -> Array:
    """Weight normalization: `w / sqrt((abs(w)**2).sum() + epsilon) * scale`, feature by feature.

    Args:
      w: floating-point or complex weights. The sum is made in float32 or wider.
      scale: of the features' shape, or of the rank of `w` and broadcastable to it.
      axis: the feature axes; the sum is over all others. `()`: one sum over everything.
      epsilon: added to the sum.
      dtype: of the result; that of `w` by default.

    Raises:
      ValueError: an argument that does not fit, by its name.

    References:
      Salimans and Kingma, Weight Normalization, 2016 (arXiv 1602.07868).

    >>> print(weight_norm(jnp.array([[3.0, 0.0], [4.0, 2.0]]), jnp.array([5.0, 1.0])))
    [[3. 0.]
     [4. 1.]]
    """
    w = checks.inexact_array(w, "w")
    checks.non_negative(epsilon, "epsilon")
    features = checks.canonical_axes(axis, w.ndim)
    w_wide = w.astype(checks.stat_dtype(w, checks.output_dtype(dtype, w)))
    scale = checks.feature_array(scale, "scale", w.shape, features)
    y = _unit(w_wide, checks.other_axes(features, w.ndim), epsilon)
    return (y if scale is None else y * checks.widened(scale, y)).astype(checks.output_dtype(dtype, w))


def weight_standardize(
    w: ArrayLike,
    scale: ArrayLike | None = None,
    *,
    axis: checks.Axes = -1,
    epsilon: ArrayLike | None = None,
    epsilon_to: Literal["variance", "deviation"] = "variance",
    dtype: DTypeLike | None = None,
) -> Array:
    """Weight standardization: `(w - mean) / sqrt(var + epsilon) * scale`, feature by feature.

    With `epsilon_to="deviation"`, as in BiT: `(w - mean) / (sqrt(var) + epsilon) * scale`.

    Args:
      w: real weights. Mean and (biased) variance are float32 or wider.
      scale: of the features' shape, or of the rank of `w` and broadcastable to it.
      axis: the feature axes, those of the output; measured is over all others.
      epsilon: 1e-6 by default where it is added to the variance, 1e-5 where to the standard deviation.
      epsilon_to: what `epsilon` is added to: `"variance"` or `"deviation"`.
      dtype: of the result; that of `w` by default.

    Raises:
      ValueError: an argument that does not fit, by its name.

    References:
      Qiao et al., Micro-Batch Training with Batch-Channel Normalization and Weight Standardization, 2019 (arXiv
      1903.10520; there the standard deviation is unbiased, and 1e-5 is added to it). Kolesnikov et al., Big
      Transfer (BiT), 2019 (arXiv 1912.11370).

    >>> print(weight_standardize(jnp.array([[3.0, 0.0], [1.0, 2.0]])).round(3))
    [[ 1. -1.]
     [-1.  1.]]
    """
    w = checks.real_array(w, "w")
    checks.choice(epsilon_to, "epsilon_to", ("variance", "deviation"))
    epsilon = {"variance": 1e-6, "deviation": 1e-5}[epsilon_to] if epsilon is None else epsilon
    checks.non_negative(epsilon, "epsilon")
    features = checks.canonical_axes(axis, w.ndim)
    m = moments(w, checks.other_axes(features, w.ndim), keepdims=True)
    if epsilon_to == "deviation":
        m, epsilon = Moments(m.count, m.mean, jnp.square(_deviation(m.var) + epsilon)), 0.0
    return normalize(w, m, scale, axis=features, epsilon=epsilon, dtype=checks.output_dtype(dtype, w))


def _deviation(var: Array) -> Array:
    """The square root, with the derivative zero at zero: it is infinite there, and equal weights would give NaN."""
    return jnp.where(var > 0, jnp.sqrt(jnp.where(var > 0, var, 1)), 0)


def scaled_weight_standardize(
    w: ArrayLike,
    scale: ArrayLike | None = None,
    *,
    axis: checks.Axes = -1,
    epsilon: ArrayLike = 1e-4,
    dtype: DTypeLike | None = None,
) -> Array:
    """Scaled weight standardization: `(w - mean) / sqrt(max(n * var, epsilon)) * scale`, n the inputs of a feature.

    Inputs of unit variance give outputs of unit variance. The arguments are those of `weight_standardize`, but for:

    Args:
      epsilon: the least that is divided by.

    Raises:
      ValueError: an argument that does not fit, by its name.

    References:
      Brock, De, Smith and Simonyan, High-Performance Large-Scale Image Recognition Without Normalization, 2021
      (arXiv 2102.06171).

    >>> print(scaled_weight_standardize(jnp.array([[3.0, 0.0], [1.0, 4.0], [3.0, 0.0], [1.0, 4.0]])))
    [[ 0.5 -0.5]
     [-0.5  0.5]
     [ 0.5 -0.5]
     [-0.5  0.5]]
    """
    w = checks.real_array(w, "w")
    checks.non_negative(epsilon, "epsilon")
    features = checks.canonical_axes(axis, w.ndim)
    measured = checks.other_axes(features, w.ndim)
    m = moments(w, measured, keepdims=True)
    inputs = math.prod(w.shape[a] for a in measured)
    m = Moments(m.count, m.mean, jnp.maximum(inputs * m.var, epsilon))
    return normalize(w, m, scale, axis=features, epsilon=0.0, dtype=checks.output_dtype(dtype, w))


def spectral_norm(
    w: ArrayLike, u: ArrayLike, *, n_steps: int = 1, epsilon: ArrayLike = 1e-12
) -> tuple[Array, Array, Array]:
    """Spectral normalization: `w` divided by an estimate of its largest singular value.

    `w` is taken as a matrix W of `w.shape[-1]` columns. A step of power iteration, and then sigma, are::

        v = u @ W.conj().T / norm(u @ W.conj().T)
        u = v @ W / norm(v @ W)
        sigma = abs(v @ W @ u.conj().T)

    u and v are constants to autodiff.

    Args:
      w: floating-point or complex weights, of rank 2 or more.
      u: the estimate of the first right singular vector so far, with as many entries as `w` has columns.
      n_steps: how many steps, at least one.
      epsilon: added to the squared lengths.

    Returns:
      `w / sigma`, or `w` if sigma is 0, in the dtype of `w`; and the state, without a gradient: the new `u`, of
      the shape and dtype it had, and `sigma`. The arithmetic is float32 or wider.

    Raises:
      ValueError: an argument that does not fit, by its name.

    References:
      Miyato et al., Spectral Normalization for Generative Adversarial Networks, 2018 (arXiv 1802.05957).

    >>> w, u, sigma = spectral_norm(jnp.array([[3.0, 0.0], [0.0, 2.0]]), jnp.array([1.0, 1.0]), n_steps=20)
    >>> print(f"{sigma:.3f}", u.round(3))
    3.000 [1. 0.]
    """
    w, u = checks.inexact_array(w, "w"), checks.inexact_array(u, "u")
    checks.non_negative(epsilon, "epsilon")
    _check_spectral(w, u, n_steps)
    compute_dtype = checks.stat_dtype(w, u)
    matrix = w.astype(compute_dtype).reshape((-1, w.shape[-1]))
    constant = lax.stop_gradient(matrix)
    right = lax.stop_gradient(u).astype(compute_dtype).reshape((1, -1))
    for _ in range(n_steps):
        left = _unit(_product(right, constant.conj().T), (0, 1), epsilon)
        right = _unit(_product(left, constant), (0, 1), epsilon)
    sigma = _product(_product(left, matrix), right.conj().T)[0, 0].real
    y = w.astype(compute_dtype) / jnp.where(sigma != 0, sigma, 1)
    return y.astype(w.dtype), right.reshape(u.shape).astype(u.dtype), lax.stop_gradient(sigma)


def _unit(w: Array, axes: tuple[int, ...], epsilon: ArrayLike) -> Array:
    """`w`, scaled to length one over `axes`."""
    return w * lax.rsqrt(abs_sq(w).sum(axes, keepdims=True) + epsilon)


def _product(a: Array, b: Array) -> Array:
    """The matrix product at full precision: by default accelerators round the factors."""
    return jnp.matmul(a, b, precision=lax.Precision.HIGHEST)


def _check_spectral(w: Array, u: Array, n_steps: int) -> None:
    if w.ndim < 2:
        raise ValueError(f"`w` must have rank 2 or more, but its shape is {w.shape}; leave such weights as they are.")
    if math.prod(u.shape) != w.shape[-1]:
        raise ValueError(
            f"`u` must have {w.shape[-1]} entries, the columns of a `w` of shape {w.shape}, but its shape is {u.shape}."
        )
    if jnp.iscomplexobj(w) and not jnp.iscomplexobj(u):
        raise ValueError(
            f"`u` must be complex for a complex `w`, but its dtype is {u.dtype}; write `u.astype(w.dtype)`."
        )
    if not checks.positive_integer(n_steps):
        raise ValueError(f"`n_steps` must be a positive integer, but it is {n_steps!r}.")


SPECTRAL_NORM = Spec(
    name="spectral",
    function=spectral_norm,
    module="SpectralNorm",
    statistics=(Measured("HWIO", "as a matrix"),),
    sync=Sync.WEIGHTS,
    mask=Mask.WEIGHTS,
    gradient=Gradient.CONSTANT_VECTORS,
    parameters={},
    variables={"u": Variable(None, lambda features, options: (1, *features)), "sigma": number(1.0)},
    paper="Miyato et al. 2018, arXiv 1802.05957",
    use="discriminators of GANs; wraps a layer",
)
WEIGHT_NORM = Spec(
    name="weight",
    function=weight_norm,
    module="WeightNorm",
    statistics=(Measured("HWI"),),
    sync=Sync.WEIGHTS,
    mask=Mask.WEIGHTS,
    parameters={"scale": ONES},
    paper="Salimans and Kingma 2016, arXiv 1602.07868",
    use="networks that must not mix examples; wraps a layer",
)
WEIGHT_STANDARDIZATION = Spec(
    name="ws",
    function=weight_standardize,
    module="WeightStandardization",
    statistics=(Measured("HWI"),),
    sync=Sync.WEIGHTS,
    mask=Mask.WEIGHTS,
    parameters={"scale": ONES},
    paper="Qiao et al. 2019, arXiv 1903.10520",
    use="with group norm and few examples a device; wraps a layer",
)
SCALED_WEIGHT_STANDARDIZATION = Spec(
    name="scaled_ws",
    function=scaled_weight_standardize,
    module="ScaledWeightStandardization",
    statistics=(Measured("HWI"),),
    sync=Sync.WEIGHTS,
    mask=Mask.WEIGHTS,
    parameters={"scale": ONES},
    paper="Brock et al. 2021, arXiv 2101.08692",
    use="networks without activation norms (NF-nets); wraps a layer",
)
SPECS = (SPECTRAL_NORM, WEIGHT_NORM, WEIGHT_STANDARDIZATION, SCALED_WEIGHT_STANDARDIZATION)
