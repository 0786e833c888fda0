"""Group and instance norm: every example measured by groups of channels, or channel by channel."""

from __future__ import annotations

from jax import Array
from jax.typing import ArrayLike, DTypeLike

from bnjax import _checks as checks
from bnjax._collectives.psum import AxisName, Groups
from bnjax._core.affine_map import Activation
from bnjax._core.prepare import Arguments, one_channel_axis, prepare
from bnjax._norms.layer import measured_axes, normalized_by_example, reduction_over
from bnjax._norms.spec import Measured, Spec


def group_norm(
    x: ArrayLike,
    scale: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    *,
    num_groups: int | None = 32,
    group_size: int | None = None,
    axis: int = -1,
    reduction_axes: checks.Axes | None = None,
    epsilon: ArrayLike = 1e-6,
    where: ArrayLike | None = None,
    zero_masked: bool = False,
    axis_name: AxisName | None = None,
    axis_index_groups: Groups = None,
    pivot: checks.SamplePivot = "auto",
    residual: ArrayLike | None = None,
    activation: Activation = None,
    dtype: DTypeLike | None = None,
) -> Array:
    """Group normalization: by the mean and variance of each group of neighbouring channels of each example.

    Equivalent, but keeping more for the backward pass, channels last::

        groups = x.reshape(*x.shape[:-1], num_groups, -1)
        m = moments(groups, (1, ..., -1), keepdims=True)
        y = normalize(groups, m).reshape(x.shape) * scale + bias

    The arguments are those of `layer_norm`, but for:

    Args:
      num_groups: the number of groups.
      group_size: the channels in a group, with `num_groups=None`.
      axis: the channels' axis.
      reduction_axes: the axes measured over, that of the channels among them; all but the first by default.

    Raises:
      ValueError: an argument that does not fit, by its name; channels that cannot be grouped so.

    References:
      Wu and He, Group Normalization, 2018 (arXiv 1803.08494).

    >>> print(group_norm(jnp.array([[1.0, 3.0, 10.0, 30.0]]), num_groups=2).round(3))
    [[-1.  1. -1.  1.]]
    """
    arguments = Arguments(scale, bias, axis, epsilon, where, zero_masked, residual, activation, dtype)
    ops = prepare(x, arguments, one_channel_axis)
    (channel,) = ops.features
    channels, ndim = ops.x.shape[channel], ops.x.ndim
    groups = _number_of_groups(num_groups, group_size, channels)
    measured = measured_axes(reduction_axes, tuple({*range(1, ndim), channel}), ndim)
    if channel not in measured:
        raise ValueError(
            "The reduction axes must include the final dimension as this is assumed to be the feature axis. "
            f"`reduction_axes` is {reduction_axes!r} for an input of rank {ndim} with its channels along axis "
            f"{channel}; add that."
        )
    axes = tuple(a for a in measured if a != channel)
    reduction = reduction_over(axes, axis_name, axis_index_groups, pools=(channel, channels // groups or 1))
    return normalized_by_example(ops, reduction, pivot)


def instance_norm(
    x: ArrayLike,
    scale: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    *,
    axis: checks.Axes = -1,
    epsilon: ArrayLike = 1e-6,
    where: ArrayLike | None = None,
    zero_masked: bool = False,
    axis_name: AxisName | None = None,
    axis_index_groups: Groups = None,
    pivot: checks.SamplePivot = "auto",
    residual: ArrayLike | None = None,
    activation: Activation = None,
    dtype: DTypeLike | None = None,
) -> Array:
    """Instance normalization: by the mean and variance of each channel of each example.

    Equivalent to `layer_norm` with all axes but the first and those of `axis` as `reduction_axes`; the arguments
    are those of `layer_norm`.

    Raises:
      ValueError: an argument that does not fit, by its name; a feature axis that is the first.

    References:
      Ulyanov, Vedaldi and Lempitsky, Instance Normalization, 2016 (arXiv 1607.08022).

    >>> print(instance_norm(jnp.array([[[1.0, 10.0], [3.0, 30.0]]])).round(3))
    [[[-1. -1.]
      [ 1.  1.]]]
    """
    arguments = Arguments(scale, bias, axis, epsilon, where, zero_masked, residual, activation, dtype)
    ops = prepare(x, arguments, _not_the_batch_axis)
    axes = checks.other_axes((0, *ops.features), ops.x.ndim)
    return normalized_by_example(ops, reduction_over(axes, axis_name, axis_index_groups), pivot)


def _not_the_batch_axis(features: tuple[int, ...], axis: checks.Axes, ndim: int) -> None:
    """Raises where the first axis is a feature axis; the words are Flax's."""
    if 0 in features:
        raise ValueError(
            "The channel axes cannot include the leading dimension as this is assumed to be the batch axis. "
            f"`axis` is {axis!r} for an input of rank {ndim}; give axes from 1 to {ndim - 1}."
        )


def check_groups(num_groups: int | None, group_size: int | None) -> None:
    """Raises unless there is one of the two; the words are Flax's."""
    if (num_groups is None) == (group_size is None):
        raise ValueError(
            "Either `num_groups` or `group_size` should be specified. If `group_size` is to be specified, pass "
            f"`num_groups=None`; `num_groups` is {num_groups!r}, and `group_size` is {group_size!r}."
        )
    for value, name in ((num_groups, "num_groups"), (group_size, "group_size")):
        if value is not None and not hasattr(value, "__index__"):
            raise ValueError(f"`{name}` must be a positive integer that divides the channels, but it is {value!r}.")


def fitting_groups(num_groups: int, channels: int) -> int:
    """The number of groups that fits a layer: the largest divisor of its channels that is at most `num_groups`.

    Group norm refuses channels that its groups do not divide. `swap` takes this number then.

    Args:
      num_groups: how many there may be.
      channels: of the layer.

    Raises:
      ValueError: one of the two is no positive integer.

    >>> fitting_groups(32, 48)
    24
    """
    for name, value in (("num_groups", num_groups), ("channels", channels)):
        if not checks.positive_integer(value):
            raise ValueError(f"`{name}` must be a positive integer, but it is {value!r}.")
    return max(n for n in range(1, min(num_groups, channels) + 1) if channels % n == 0)


def _number_of_groups(num_groups: int | None, group_size: int | None, channels: int) -> int:
    """How many groups, by their number or their size."""
    check_groups(num_groups, group_size)
    if group_size is not None:
        size = checks.positive_integer(group_size)
        if not size or channels % size:
            raise ValueError(
                f"Number of channels ({channels}) is not multiple of the group size ({group_size}). "
                "`group_size` must divide the channels."
            )
        return channels // size or 1
    groups = checks.positive_integer(num_groups)
    if not groups or channels % groups:
        raise ValueError(
            f"Number of groups ({num_groups}) does not divide the number of channels ({channels}). "
            "`num_groups` must be a positive integer that does."
        )
    return groups


GROUP_NORM = Spec(
    name="group",
    function=group_norm,
    module="GroupNorm",
    statistics=(Measured("HWC", "each group of channels"),),
    attributes={name: name for name in ("num_groups", "group_size", "reduction_axes")},
    paper="Wu and He 2018, arXiv 1803.08494",
    use="convolutional networks with few examples a device",
)
INSTANCE_NORM = Spec(
    name="instance",
    function=instance_norm,
    module="InstanceNorm",
    statistics=(Measured("HW"),),
    attributes={"axis": "feature_axes"},
    paper="Ulyanov, Vedaldi and Lempitsky 2016, arXiv 1607.08022",
    use="style transfer and image generation",
)
SPECS = (GROUP_NORM, INSTANCE_NORM)
