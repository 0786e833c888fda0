"""Relatives of batch norm that mix its statistics with those of each example: switchable, batch-channel, weighted."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike, DTypeLike

from bnjax import _checks as checks
from bnjax._collectives.psum import AxisName
from bnjax._core.moments import Moments, ema, merge, of_features
from bnjax._core.normalize import normalize_valid
from bnjax._norms.batch import batch_norm
from bnjax._norms.layer import group_norm
from bnjax._norms.measure import (
    at_rank,
    channels_per_group,
    merged,
    one_channel_axis,
    operands,
    over_batch,
    per_example,
    where_seen,
)


def switchable_norm(
    x: ArrayLike,
    running: Moments,
    scale: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    mean_weight: ArrayLike | None = None,
    var_weight: ArrayLike | None = None,
    *,
    axis: checks.Axes = -1,
    momentum: ArrayLike = 0.9,
    epsilon: ArrayLike = 1e-5,
    where: ArrayLike | None = None,
    zero_masked: bool = False,
    axis_name: AxisName | None = None,
    train: bool = True,
    dtype: DTypeLike | None = None,
) -> tuple[Array, Moments]:
    """Switchable normalization: by a learned mixture of the statistics of instance, layer and batch norm.

    Equivalent, with w = softmax(mean_weight) and u = softmax(var_weight)::

        mean = w[0] * instance.mean + w[1] * layer.mean + w[2] * batch.mean
        var = u[0] * instance.var + u[1] * layer.var + u[2] * batch.var
        y = normalize(x, Moments(1, mean, var), scale, bias)

    Args:
      x: real, examples first. Statistics are float32 or wider.
      running: the state, of the features' shape; in the place of the batch at evaluation.
      scale: of the features' shape, or of the rank of `x` and broadcastable to it.
      bias: likewise.
      mean_weight: of shape (3,); `None`: equal.
      var_weight: likewise.
      axis: the feature axes, not the first.
      momentum: the fraction of the running state that is kept (1 - PyTorch's).
      epsilon: added to the variance.
      where: broadcastable to `x`, non-zero is valid. What is masked out counts for nothing in the statistics.
      zero_masked: make zero what is masked out, in the result and in all gradients, whatever stands there.
      axis_name: a name or names of `pmap`, `shard_map` or `vmap` to measure the batch over too.
      train: without, by the running state, which comes back as it is.
      dtype: of the output; that of `x` by default.

    Returns:
      The output, and the new running state.

    Raises:
      ValueError: an argument that does not fit, by its name.

    References:
      Luo et al., Differentiable Learning-to-Normalize via Switchable Normalization, 2018.

    >>> running = Moments(jnp.zeros(()), jnp.zeros(1), jnp.ones(1))
    >>> y, _ = switchable_norm(jnp.array([[[1.0], [3.0]], [[1.0], [3.0]]]), running)
    >>> print(y.ravel().round(3))
    [-1.  1. -1.  1.]
    """
    ops = operands(x, axis, where, zero_masked, epsilon)
    x, features, _, zero = ops
    instance = per_example(ops)
    layer = merged(instance, features)
    kept = at_rank(running, x, features)
    batch = over_batch(instance, axis_name) if train else kept
    means, variances = ([getattr(m, name) for m in (instance, layer, batch)] for name in ("mean", "var"))
    mean, var = _mixed(means, mean_weight, "mean_weight"), _mixed(variances, var_weight, "var_weight")
    m = where_seen(Moments(batch.count, mean, var))
    y = normalize_valid(x, m, scale, bias, zero, axis=features, epsilon=epsilon, dtype=dtype)
    return y, lax.stop_gradient(
        ema(running, of_features(batch, jnp.shape(running.mean)), momentum)
    ) if train else running


def _mixed(values: list[Array], weight: ArrayLike | None, name: str) -> Array:
    weight = jnp.zeros(3) if weight is None else jnp.asarray(weight)
    if weight.shape != (3,):
        raise ValueError(f"`{name}` must have the shape (3,), for instance, layer and batch, but it is {weight.shape}.")
    share = jax.nn.softmax(weight.astype(values[0].dtype))
    full = jnp.broadcast_shapes(*(v.shape for v in values))
    return sum((jnp.broadcast_to(share[i] * v, full) for i, v in enumerate(values)), jnp.zeros(full, values[0].dtype))


def batch_channel_norm(
    x: ArrayLike,
    running: Moments,
    scale: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    channel_scale: ArrayLike | None = None,
    channel_bias: ArrayLike | None = None,
    *,
    num_groups: int = 32,
    axis: int = -1,
    momentum: ArrayLike = 0.99,
    epsilon: ArrayLike = 1e-5,
    where: ArrayLike | None = None,
    zero_masked: bool = False,
    axis_name: AxisName | None = None,
    train: bool = True,
    dtype: DTypeLike | None = None,
) -> tuple[Array, Moments]:
    """Batch-channel normalization (BCN): batch norm, then group norm with a scale and a bias for each group.

    For micro-batches the authors normalize by the running state in training, too: that is `train=False`, and `ema`.

    Args:
      x: real, examples first. Statistics are float32 or wider.
      running: the state, of the features' shape.
      scale: of batch norm: of the features' shape, or of the rank of `x` and broadcastable to it.
      bias: likewise.
      channel_scale: of group norm, one for each group.
      channel_bias: likewise.
      num_groups: of neighbouring channels.
      axis: the channels' axis, not the first.
      momentum: the fraction of the running state that is kept (1 - PyTorch's).
      epsilon: added to both variances.
      where: broadcastable to `x`, non-zero is valid. What is masked out counts for nothing in the statistics.
      zero_masked: make zero what is masked out, in the result and in all gradients, whatever stands there.
      axis_name: a name or names of `pmap`, `shard_map` or `vmap` to measure the batch over too.
      train: without, batch norm is by the running state, which comes back as it is.
      dtype: of the output; that of `x` by default.

    Returns:
      The output, and the new running state.

    Raises:
      ValueError: an argument that does not fit, by its name.

    References:
      Qiao et al., Micro-Batch Training with Batch-Channel Normalization and Weight Standardization, 2019.

    >>> running = Moments(jnp.zeros(()), jnp.zeros(2), jnp.ones(2))
    >>> y, _ = batch_channel_norm(jnp.array([[1.0, 20.0], [3.0, 10.0]]), running, num_groups=1)
    >>> print(y.round(3))
    [[-1.  1.]
     [ 1. -1.]]
    """
    x, features, mask, zero = operands(x, axis, where, zero_masked, epsilon)
    channels = x.shape[one_channel_axis(features, axis)]
    channels_per_group(channels, num_groups)  # raises where they cannot be grouped so
    groups = checks.positive_integer(num_groups)
    gamma = _at_channels(channel_scale, "channel_scale", groups, channels)
    beta = _at_channels(channel_bias, "channel_bias", groups, channels)
    common: dict[str, Any] = {"axis": features, "epsilon": epsilon, "dtype": checks.stat_dtype(x)}
    masked: dict[str, Any] = {"where": mask, "zero_masked": zero_masked}
    if train:
        z, running = batch_norm(
            x, running, scale, bias, momentum=momentum, axis_name=axis_name, **masked, **common
        )  # fmt: skip
    else:
        z = normalize_valid(x, running, scale, bias, zero, **common)
    common |= {"axis": features[0], "dtype": checks.output_dtype(dtype, x)}
    return group_norm(z, gamma, beta, num_groups=num_groups, **masked, **common), running


def _at_channels(t: ArrayLike | None, name: str, groups: int, channels: int) -> Array | None:
    """What there is for each group, at its channels."""
    if t is None:
        return None
    if jnp.shape(t) != (want := (groups,)):
        raise ValueError(f"`{name}` must have the shape {want}, one for each group, but its shape is {jnp.shape(t)}.")
    return jnp.repeat(jnp.asarray(t), channels // groups)


def example_weighted_batch_norm(
    x: ArrayLike,
    running: Moments,
    scale: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    *,
    example_weight: ArrayLike = 0.0,
    axis: checks.Axes = -1,
    momentum: ArrayLike = 0.99,
    epsilon: ArrayLike = 1e-5,
    where: ArrayLike | None = None,
    zero_masked: bool = False,
    axis_name: AxisName | None = None,
    train: bool = True,
    dtype: DTypeLike | None = None,
) -> tuple[Array, Moments]:
    """Batch norm whose evaluation counts the example in.

    In training that is `batch_norm`. Equivalent at evaluation::

        m = merge(Moments(1 - example_weight, running...), Moments(example_weight, example...))
        y = normalize(x, m, scale, bias)

    The same average of E[x] and of E[x^2] as the paper's. The weight is chosen on held-out data.

    Args:
      x: real, examples first. Statistics are float32 or wider.
      running: the state, of the features' shape.
      scale: of the features' shape, or of the rank of `x` and broadcastable to it.
      bias: likewise.
      example_weight: of the example itself at evaluation, from 0 (batch norm) to 1 (instance norm).
      axis: the feature axes, not the first.
      momentum: the fraction of the running state that is kept (1 - PyTorch's).
      epsilon: added to the variance.
      where: broadcastable to `x`, non-zero is valid. What is masked out counts for nothing in the statistics.
      zero_masked: make zero what is masked out, in the result and in all gradients, whatever stands there.
      axis_name: a name or names of `pmap`, `shard_map` or `vmap` to measure over too.
      train: without, evaluation as above; the running state comes back as it is.
      dtype: of the output; that of `x` by default.

    Returns:
      The output, and the new running state.

    Raises:
      ValueError: an argument that does not fit, by its name.

    References:
      Summers and Dinneen, Four Things Everyone Should Know to Improve Batch Normalization, 2020.

    >>> running = Moments(jnp.zeros(()), jnp.zeros(1), jnp.ones(1))
    >>> y, _ = example_weighted_batch_norm(jnp.array([[[1.0], [3.0]]]), running, example_weight=1.0, train=False)
    >>> print(y.ravel().round(3))
    [-1.  1.]
    """
    ops = operands(x, axis, where, zero_masked, epsilon)
    x, features, mask, zero = ops
    checks.unit_interval(example_weight, "example_weight")
    if train:
        return batch_norm(
            x, running, scale, bias, axis=features, momentum=momentum, epsilon=epsilon, where=mask,
            zero_masked=zero_masked, axis_name=axis_name, dtype=dtype,
        )  # fmt: skip
    own, kept = per_example(ops), at_rank(running, x, features)
    own = Moments(jnp.where(own.count > 0, example_weight, 0), own.mean, own.var)
    m = merge(Moments(1 - own.count, kept.mean, kept.var), own)
    return normalize_valid(x, m, scale, bias, zero, axis=features, epsilon=epsilon, dtype=dtype), running
