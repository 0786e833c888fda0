"""Parts of the norms that measure each example once and combine the measurements in their own way.

`per_example` measures every channel of every example. Other functions merge these measurements, which are small, over
the batch and its devices, or over groups of channels.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from bnjax import _checks as checks
from bnjax import _masks as masks
from bnjax._collectives.psum import AxisName
from bnjax._core.moments import Moments, all_reduce, moments, reduce
from bnjax._core.prepare import Arguments, Prepared, one_channel_axis, prepare


def prepare_examples(
    x: ArrayLike, arguments: Arguments, *, one_channel: bool = False, round_last: bool = False
) -> Prepared:
    """`prepare` for a norm that measures examples, along axis 0: `x` is real, and finite where masked out."""
    check_axes = _one_channel_axis_of_examples if one_channel else _axes_of_examples
    return prepare(x, arguments, check_axes, real=True, finite=True, round_last=round_last)


def _axes_of_examples(features: tuple[int, ...], axis: checks.Axes, ndim: int) -> None:
    """Raises where axis 0 is a feature axis."""
    if 0 in features:
        raise ValueError(
            f"`axis` must leave axis 0 to the examples, but it is {axis!r} for an input of rank {ndim}; give axes "
            f"from 1 to {ndim - 1}."
        )


def _one_channel_axis_of_examples(features: tuple[int, ...], axis: checks.Axes, ndim: int) -> None:
    _axes_of_examples(features, axis, ndim)
    one_channel_axis(features, axis, ndim)


def in_stat_dtype(x: Array) -> Array:
    """`x` in the dtype of its statistics."""
    return x.astype(checks.stat_dtype(x))


def per_example(ops: Prepared) -> Moments:
    """The moments of each channel of each example, the measured axes kept."""
    measured = checks.other_axes((0, *ops.features), ops.x.ndim)
    m = moments(ops.x, measured, where=ops.mask, keepdims=True)
    return Moments(jnp.broadcast_to(m.count, m.mean.shape), m.mean, m.var)


def merged(m: Moments, axes: Sequence[int]) -> Moments:
    """`reduce`, with the axes kept; a count of one number is `()`."""
    return jax.tree.map(lambda t: jnp.expand_dims(t, axes) if t.ndim else t, reduce(m, axes))


def merged_over_batch(m: Moments, axis_name: AxisName | None) -> Moments:
    """The moments of the batch, here and on the devices along `axis_name`."""
    batch = merged(m, (0,))
    return batch if axis_name is None else all_reduce(batch, checks.hashable_name(axis_name))


def merged_over_groups(m: Moments, channel: int, num_groups: int) -> Moments:
    """The moments of each group of neighbouring channels, at each of its channels."""
    channels = m.mean.shape[channel]
    size = channels_per_group(channels, num_groups)
    split = jax.tree.map(lambda t: t.reshape((*t.shape[:channel], channels // size, size, *t.shape[channel + 1 :])), m)
    return jax.tree.map(lambda t: jnp.repeat(t, size, channel), reduce(split, channel + 1))


def channels_per_group(channels: int, num_groups: int) -> int:
    """How many channels each group has; of no channels, none of one."""
    groups = checks.positive_integer(num_groups)
    if not groups or channels % groups:
        raise ValueError(
            f"`num_groups` must be a positive divisor of the {channels} channels, but it is {num_groups!r}."
        )
    return channels // groups or 1


def inf_var_where_empty(m: Moments) -> Moments:
    """An infinite variance where nothing is valid: normalized by it, `x` becomes the bias and has no gradient."""
    return Moments(m.count, m.mean, masks.inf_where_empty(m.var, m.count))


def mean_square(m: Moments) -> Moments:
    """Moments about zero: with these `normalize` divides by the root mean square."""
    return inf_var_where_empty(Moments(m.count, jnp.zeros_like(m.mean), m.var + m.mean * m.mean))


def scaled(y: Array, scale: Array | None, bias: Array | None, ops: Prepared) -> Array:
    """The result `y * scale + bias`, of what is not `None`; zero where the mask `ops.zero` drops elements."""
    y = y if scale is None else y * checks.widened(scale, y)
    y = y if bias is None else y + checks.widened(bias, y)
    return masks.valid(ops.zero, y.astype(ops.dtype))


def at_rank(m: Moments, ops: Prepared) -> Moments:
    """A running state of the features' shape, at the rank of the input."""
    shape, features = ops.x.shape, ops.features
    checks.float_state(m, "running", "Moments", "mean", "var")
    checks.state_shape(m.mean, "running.mean", shape, features)
    checks.state_shape(m.var, "running.var", shape, features)
    mean = checks.feature_array(m.mean, "running.mean", shape, features)
    var = checks.feature_array(m.var, "running.var", shape, features)
    return Moments(jnp.ones_like(mean), mean, var)


def scalar_parameter(value: ArrayLike, name: str) -> Array:
    """`value` as an array. Raises unless it is one number."""
    value = jnp.asarray(value)
    if value.shape != ():
        raise ValueError(f"`{name}` must be one number, but its shape is {value.shape}.")
    return value
