"""Relatives of layer norm: positional, partial RMS, scale and pixel norm."""

from __future__ import annotations

import math

import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike, DTypeLike

from bnjax import _checks as checks
from bnjax import _masks as masks
from bnjax._core.moments import moments
from bnjax._core.normalize import normalize_prepared
from bnjax._core.prepare import Arguments, one_channel_axis, prepare
from bnjax._norms.layer import layer_norm, rms_norm
from bnjax._norms.measure import in_stat_dtype, mean_square, scalar_parameter, scaled
from bnjax._norms.spec import ONES, Measured, Spec, number


def positional_norm(
    x: ArrayLike,
    scale: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    *,
    axis: checks.Axes = -1,
    epsilon: ArrayLike = 1e-5,
    where: ArrayLike | None = None,
    zero_masked: bool = False,
    dtype: DTypeLike | None = None,
) -> Array:
    """Positional normalization (PONO): by the mean and variance of the channels at each position of each example.

    That is `layer_norm` over the channels alone. What it removes may be restored in a later layer of the
    same height and width, the "moment shortcut": `m = moments(x, -1, keepdims=True)`, and there
    `h * jnp.sqrt(m.var + epsilon) + m.mean`. The arguments are those of `layer_norm`.

    Raises:
      ValueError: an argument that does not fit, by its name.

    References:
      Li, Wu, Weinberger and Belongie, Positional Normalization, 2019 (arXiv 1907.04312).

    >>> print(positional_norm(jnp.array([[[[1.0, 3.0], [30.0, 10.0]]]])).round(3))
    [[[[-1.  1.]
       [ 1. -1.]]]]
    """
    return layer_norm(x, scale, bias, axis=axis, epsilon=epsilon, where=where, zero_masked=zero_masked, dtype=dtype)


def partial_rms_norm(
    x: ArrayLike,
    scale: ArrayLike | None = None,
    *,
    fraction: float = 0.0625,
    axis: int = -1,
    epsilon: ArrayLike = 1e-6,
    where: ArrayLike | None = None,
    zero_masked: bool = False,
    dtype: DTypeLike | None = None,
) -> Array:
    """Partial RMS normalization (pRMSNorm): by the root mean square of the first features only.

    Equivalent, with `n = int(fraction * x.shape[axis])`::

        x / jnp.sqrt((x[..., :n] ** 2).mean(axis, keepdims=True) + epsilon) * scale

    Args:
      x: real. The statistic is float32 or wider.
      scale: of the features' shape, or of the rank of `x` and broadcastable to it.
      fraction: of the features that is measured, above 0 and at most 1.
      axis: the feature axis.
      epsilon: added to the mean square.
      where: broadcastable to `x`; what is not valid counts for nothing.
      zero_masked: make zero what is masked out, in the result and in all gradients, whatever stands there.
      dtype: of the output; that of `x` by default.

    Raises:
      ValueError: an argument that does not fit, by its name; a fraction of less than one feature.

    References:
      Zhang and Sennrich, Root Mean Square Layer Normalization, 2019 (arXiv 1910.07467), section 4.2.

    >>> print(partial_rms_norm(jnp.array([[2.0, 4.0, 6.0, 8.0]]), fraction=0.25).round(1))
    [[1. 2. 3. 4.]]
    """
    arguments = Arguments(scale, None, axis, epsilon, where, zero_masked, dtype=dtype)
    ops = prepare(x, arguments, one_channel_axis, real=True, finite=True)
    (channel,), mask = ops.features, ops.mask
    n = _part(fraction, ops.x.shape[channel])
    if mask is not None:
        mask = lax.slice_in_dim(mask, 0, min(n, mask.shape[channel]), axis=channel)
    m = moments(lax.slice_in_dim(ops.x, 0, n, axis=channel), channel, where=mask, keepdims=True)
    return normalize_prepared(ops, mean_square(m))


def _part(fraction: ArrayLike, features: int) -> int:
    """How many features are measured."""
    known = checks.concrete(fraction)
    if known is None or known.ndim:
        raise ValueError(
            f"`fraction` must be a number, and known when traced, because it decides a shape, but it is {fraction!r}; "
            "close over the number."
        )
    if not isinstance(features, int):
        raise ValueError(
            f"`x` has {features} features, a symbol of `jax.export`, of which `fraction` cannot be taken; "
            "export with a number of features."
        )
    n = int(known * features) if 0 < known <= 1 else -1
    if n < min(1, features):
        raise ValueError(
            f"`fraction` must be above 0, at most 1, and at least one of {features} features, but it is {fraction!r}."
        )
    return n


def scale_norm(
    x: ArrayLike,
    scale: ArrayLike | None = None,
    *,
    axis: checks.Axes = -1,
    epsilon: ArrayLike = 1e-5,
    where: ArrayLike | None = None,
    zero_masked: bool = False,
    dtype: DTypeLike | None = None,
) -> Array:
    """Scale normalization: `x` at the length `scale`, `scale * x / max(norm(x), epsilon)`.

    Args:
      x: real. The length is float32 or wider.
      scale: one number, sqrt(d) of d features at the start of training; `None`: 1.
      axis: the feature axes, over which the length is measured.
      epsilon: the least length divided by.
      where: broadcastable to `x`; what is not valid has no part in the length.
      zero_masked: make zero what is masked out, in the result and in all gradients, whatever stands there.
      dtype: of the output; that of `x` by default.

    Raises:
      ValueError: an argument that does not fit, by its name.

    References:
      Nguyen and Salazar, Transformers without Tears, 2019 (arXiv 1910.05895).

    >>> print(scale_norm(jnp.array([[3.0, 4.0]]), 10.0))
    [[6. 8.]]
    """
    gain = None if scale is None else scalar_parameter(scale, "scale")
    arguments = Arguments(axis=axis, epsilon=epsilon, where=where, zero_masked=zero_masked, dtype=dtype)
    ops = prepare(x, arguments, real=True)
    t = masks.finite(ops.mask, in_stat_dtype(ops.x))
    square = jnp.square(masks.valid(ops.mask, t)).sum(ops.features, keepdims=True)
    # Not `rsqrt`: its derivative divides the root by the square, which underflows where the length is 1e13.
    y = t * (1 / jnp.sqrt(jnp.maximum(square, jnp.asarray(epsilon, t.dtype) ** 2)))
    if ops.mask is not None:  # nothing valid has no length: the result is zero, as in the other norms without a bias
        y = jnp.where(ops.mask.any(ops.features, keepdims=True), y, 0)
    return scaled(y, gain, None, ops)


def pixel_norm(
    x: ArrayLike,
    *,
    axis: checks.Axes = -1,
    epsilon: ArrayLike = 1e-8,
    where: ArrayLike | None = None,
    zero_masked: bool = False,
    dtype: DTypeLike | None = None,
) -> Array:
    """Pixel normalization: each position by the root mean square of its channels, nothing learned.

    That is `rms_norm` without a scale; the arguments are those.

    Raises:
      ValueError: an argument that does not fit, by its name.

    References:
      Karras et al., Progressive Growing of GANs, 2018 (arXiv 1710.10196), section 4.2.

    >>> print(pixel_norm(jnp.array([[0.0, 4.0, 0.0, 0.0]])).round(3))
    [[0. 2. 0. 0.]]
    """
    return rms_norm(x, axis=axis, epsilon=epsilon, where=where, zero_masked=zero_masked, dtype=dtype)


POSITIONAL_NORM = Spec(
    name="positional",
    function=positional_norm,
    module="PositionalNorm",
    statistics=(Measured("C"),),
    paper="Li et al. 2019, arXiv 1907.04312",
    use="image generation, handing on what it takes off",
)
PARTIAL_RMS_NORM = Spec(
    name="prms",
    function=partial_rms_norm,
    module="PartialRMSNorm",
    statistics=(Measured("C", "the first"),),
    parameters={"scale": ONES},
    paper="Zhang and Sennrich 2019, arXiv 1910.07467",
    use="RMS norm, cheaper",
)
SCALE_NORM = Spec(
    name="scale",
    function=scale_norm,
    module="ScaleNorm",
    statistics=(Measured("C"),),
    parameters={"scale": number(lambda features, options: math.sqrt(math.prod(features)))},
    paper="Nguyen and Salazar 2019, arXiv 1910.05895",
    use="transformers with little data",
)
PIXEL_NORM = Spec(
    name="pixel",
    function=pixel_norm,
    module="PixelNorm",
    statistics=(Measured("C"),),
    parameters={},
    paper="Karras et al. 2018, arXiv 1710.10196",
    use="generators of GANs",
)
SPECS = (POSITIONAL_NORM, PARTIAL_RMS_NORM, SCALE_NORM, PIXEL_NORM)
