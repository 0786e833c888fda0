"""Batch-channel normalization: batch norm, then group norm of its result."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike, DTypeLike

from bnjax import _checks as checks
from bnjax._collectives.psum import AxisName
from bnjax._core.moments import Moments
from bnjax._core.normalize import normalize_prepared
from bnjax._core.prepare import Arguments
from bnjax._norms.batch import BatchOptions, normalize_and_step
from bnjax._norms.group import group_norm
from bnjax._norms.measure import (
    channels_per_group,
    prepare_examples,
)
from bnjax._norms.spec import AFFINE, RUNNING, Measured, Spec, Sync, Variable


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
      Qiao et al., Micro-Batch Training with Batch-Channel Normalization and Weight Standardization, 2019 (arXiv
      1903.10520).

    >>> running = Moments(jnp.zeros(()), jnp.zeros(2), jnp.ones(2))
    >>> y, _ = batch_channel_norm(jnp.array([[1.0, 20.0], [3.0, 10.0]]), running, num_groups=1)
    >>> print(y.round(3))
    [[-1.  1.]
     [ 1. -1.]]
    """
    arguments = Arguments(scale, bias, axis, epsilon, where, zero_masked, dtype=dtype)
    ops = prepare_examples(x, arguments, one_channel=True, round_last=True)
    channels = ops.x.shape[ops.features[0]]
    channels_per_group(channels, num_groups)  # raises where they cannot be grouped so
    groups = checks.positive_integer(num_groups)
    gamma = _at_channels(channel_scale, "channel_scale", groups, channels)
    beta = _at_channels(channel_bias, "channel_bias", groups, channels)
    if train:
        z, running, _ = normalize_and_step(ops, running, BatchOptions(momentum, axis_name=axis_name))
    else:
        z = normalize_prepared(ops, running)
    return group_norm(
        z, gamma, beta, num_groups=num_groups, axis=ops.features[0], epsilon=epsilon, where=ops.mask,
        zero_masked=zero_masked, dtype=ops.dtype,
    ), running  # fmt: skip


def _at_channels(t: ArrayLike | None, name: str, groups: int, channels: int) -> Array | None:
    """What there is for each group, at its channels."""
    if t is None:
        return None
    if jnp.shape(t) != (want := (groups,)):
        raise ValueError(f"`{name}` must have the shape {want}, one for each group, but its shape is {jnp.shape(t)}.")
    return jnp.repeat(jnp.asarray(t), channels // groups)


def _by_group(value: float) -> Variable:
    return Variable(lambda features, options: value, lambda features, options: (options["num_groups"],))


BATCH_CHANNEL_NORM = Spec(
    name="bcn",
    function=batch_channel_norm,
    module="BatchChannelNorm",
    statistics=(Measured("NHW"), Measured("HWC", "each group of channels, of the result")),
    sync=Sync.YES,
    parameters=AFFINE | {"channel_scale": _by_group(1.0), "channel_bias": _by_group(0.0)},
    variables=RUNNING,
    paper="Qiao et al. 2019, arXiv 1903.10520",
    use="few examples a device, with weight standardization",
)
SPECS = (BATCH_CHANNEL_NORM,)
