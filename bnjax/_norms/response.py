"""Norms by the response of a filter: filter, local and global response normalization."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike, DTypeLike

from bnjax import _checks as checks
from bnjax import _masks as masks
from bnjax._core.prepare import Arguments, parameter
from bnjax._core.rule import Reduction, standardize
from bnjax._norms.measure import in_stat_dtype, per_example, prepare_examples, scaled
from bnjax._norms.spec import AFFINE, ZEROS, Measured, Spec


def filter_response_norm(
    x: ArrayLike,
    scale: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    threshold: ArrayLike | None = None,
    *,
    axis: checks.Axes = -1,
    epsilon: ArrayLike = 1e-6,
    where: ArrayLike | None = None,
    zero_masked: bool = False,
    dtype: DTypeLike | None = None,
) -> Array:
    """Filter response normalization (FRN) with a thresholded linear unit (TLU).

    Equivalent, over all axes but the first and those of `axis`::

        nu2 = (x**2).mean(measured, where=where, keepdims=True)
        y = jnp.maximum(x / jnp.sqrt(nu2 + epsilon) * scale + bias, threshold)

    Args:
      x: real, examples first. Statistics are float32 or wider.
      scale: of the features' shape, or of the rank of `x` and broadcastable to it (per example).
      bias: likewise.
      threshold: likewise; below it the result is constant. `None`: no TLU.
      axis: the feature axes, not the first.
      epsilon: added to the mean square. To learn it, as where one number is measured, pass its absolute value.
      where: broadcastable to `x`, non-zero is valid. What is masked out counts for nothing in the statistics.
      zero_masked: make zero what is masked out, in the result and in all gradients, whatever stands there.
      dtype: of the output; that of `x` by default.

    Raises:
      ValueError: an argument that does not fit, by its name.

    References:
      Singh and Krishnan, Filter Response Normalization Layer, 2019 (arXiv 1911.09737).

    >>> x = jnp.array([[[3.0], [-4.0], [0.0], [0.0]]])
    >>> print(filter_response_norm(x, threshold=jnp.zeros(1)).ravel().round(3))
    [1.2 0.  0.  0. ]
    """
    ops = prepare_examples(x, Arguments(scale, bias, axis, epsilon, where, zero_masked, dtype=dtype), round_last=True)
    tau = parameter(threshold, "threshold", ops)
    reduction = Reduction(checks.other_axes((0, *ops.features), ops.x.ndim), use_mean=False)
    about_zero = jnp.zeros((1,) * ops.x.ndim, ops.config.compute_dtype)
    y, _ = standardize(ops.config, reduction, ops.x, ops.affine, about_zero, ops.mask)
    y = y if tau is None else jnp.maximum(y, tau.astype(y.dtype))
    return masks.valid(ops.zero, y.astype(ops.dtype))


def local_response_norm(
    x: ArrayLike,
    *,
    size: int = 5,
    alpha: float = 1e-4,
    beta: float = 0.75,
    k: float = 2.0,
    axis: int = -1,
    where: ArrayLike | None = None,
    zero_masked: bool = False,
    dtype: DTypeLike | None = None,
) -> Array:
    """Local response normalization: `x / (k + alpha * s) ** beta`, s the squares of neighbouring channels, summed.

    PyTorch divides `alpha` by `size` and has `k=1`. Of an even `size` the longer half comes before, as there.

    Args:
      x: real, examples first. The sum is float32 or wider.
      size: how many neighbours, the channel itself among them.
      alpha: weight of the sum.
      beta: the power.
      k: what is divided by where all is zero.
      axis: the channels' axis.
      where: broadcastable to `x`; what is not valid counts as zero in the sum.
      zero_masked: make zero what is masked out, in the result and in all gradients, whatever stands there.
      dtype: of the output; that of `x` by default.

    Raises:
      ValueError: an argument that does not fit, by its name.

    References:
      Krizhevsky, Sutskever and Hinton, ImageNet Classification with Deep Convolutional Neural Networks, 2012.

    >>> print(local_response_norm(jnp.ones((1, 4)), size=3, alpha=1.0, beta=1.0, k=1.0).round(3))
    [[0.333 0.25  0.25  0.333]]
    """
    arguments = Arguments(axis=axis, where=where, zero_masked=zero_masked, dtype=dtype)
    ops = prepare_examples(x, arguments, one_channel=True)
    number = checks.positive_integer(size)
    if not number:
        raise ValueError(f"`size` must be a positive integer, but it is {size!r}.")
    axes = range(ops.x.ndim)
    square = jnp.square(masks.valid(ops.mask, in_stat_dtype(ops.x)))
    window = [number if a in ops.features else 1 for a in axes]
    padding = [(number // 2, (number - 1) // 2) if a in ops.features else (0, 0) for a in axes]
    total = lax.reduce_window(square, 0.0, lax.add, window, (1,) * len(axes), padding)
    return scaled(in_stat_dtype(ops.x) * (k + alpha * total) ** -beta, None, None, ops)


def global_response_norm(
    x: ArrayLike,
    scale: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    *,
    axis: int = -1,
    epsilon: ArrayLike = 1e-6,
    where: ArrayLike | None = None,
    zero_masked: bool = False,
    dtype: DTypeLike | None = None,
) -> Array:
    """Global response normalization (GRN): each channel by its length, as a share of all channels' mean length.

    Equivalent::

        g = jnp.sqrt((x**2).sum(measured, where=where, keepdims=True))
        y = scale * x * (g / (g.mean(axis, keepdims=True) + epsilon)) + bias + x

    Args:
      x: real, examples first. Lengths are float32 or wider.
      scale: of the features' shape, or of the rank of `x` and broadcastable to it; zero at the start of training.
        `None`: ones.
      bias: likewise; `None`: zeros.
      axis: the channels' axis.
      epsilon: added to the mean length.
      where: broadcastable to `x`; what is not valid has no part in the lengths, nor has a channel without any.
      zero_masked: make zero what is masked out, in the result and in all gradients, whatever stands there.
      dtype: of the output; that of `x` by default.

    Raises:
      ValueError: an argument that does not fit, by its name.

    References:
      Woo et al., ConvNeXt V2, 2023 (arXiv 2301.00808).

    >>> print(global_response_norm(jnp.array([[[3.0, 0.0], [4.0, 0.0]]]))[0, :, 0].round(1))
    [ 9. 12.]
    """
    ops = prepare_examples(x, Arguments(scale, bias, axis, epsilon, where, zero_masked, dtype=dtype), one_channel=True)
    gamma = ops.affine.scale
    m = per_example(ops)
    square = m.count * (m.var + m.mean * m.mean)
    length = jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1)), 0)
    seen = jnp.maximum((m.count > 0).sum(ops.features, keepdims=True, dtype=length.dtype), 1)
    share = length / (length.sum(ops.features, keepdims=True) / seen + epsilon)
    y = in_stat_dtype(ops.x) * (1 + (share if gamma is None else share * checks.widened(gamma, share)))
    return scaled(y, None, ops.affine.bias, ops)


FILTER_RESPONSE_NORM = Spec(
    name="frn",
    function=filter_response_norm,
    module="FilterResponseNorm",
    statistics=(Measured("HW"),),
    parameters=AFFINE | {"threshold": ZEROS},
    paper="Singh and Krishnan 2019, arXiv 1911.09737",
    use="convolutional networks with any batch; has its own activation",
)
LOCAL_RESPONSE_NORM = Spec(
    name="lrn",
    function=local_response_norm,
    module="LocalResponseNorm",
    statistics=(Measured("C", "neighbours"),),
    parameters={},
    paper="Krizhevsky, Sutskever and Hinton 2012",
    use="AlexNet and its contemporaries",
)
GLOBAL_RESPONSE_NORM = Spec(
    name="grn",
    function=global_response_norm,
    module="GlobalResponseNorm",
    statistics=(Measured("HW"), Measured("C", "of the first")),
    parameters={"scale": ZEROS, "bias": ZEROS},
    paper="Woo et al. 2023, arXiv 2301.00808",
    use="ConvNeXt V2, after the expanding layer",
)
SPECS = (FILTER_RESPONSE_NORM, LOCAL_RESPONSE_NORM, GLOBAL_RESPONSE_NORM)
