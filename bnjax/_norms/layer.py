"""Layer and RMS norm: every example measured by itself, so there is no running state.

They, and those of `group.py`, differ in the axes that are measured over, and in nothing else: all go through one rule,
`bnjax._core.rule`.
"""

from __future__ import annotations

from typing import Any

from jax import Array
from jax.typing import ArrayLike, DTypeLike

from bnjax import _checks as checks
from bnjax._collectives.psum import AxisName, Groups
from bnjax._core.affine_map import Activation, activate
from bnjax._core.prepare import Arguments, Prepared, prepare
from bnjax._core.rule import Reduction, pivot_of, standardize
from bnjax._norms.spec import ONES, Measured, Spec


def layer_norm(
    x: ArrayLike,
    scale: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    *,
    axis: checks.Axes = -1,
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
    """Layer normalization: by the mean and variance of the features of each example.

    Equivalent, but keeping more for the backward pass::

        m = moments(x, axis, where=where, keepdims=True)
        y = normalize(x, m, scale, bias, residual=residual, activation=activation)

    Args:
      x: floating-point or complex. Statistics are float32 or wider.
      scale: of the features' shape, or of the rank of `x` and broadcastable to it (per example).
      bias: likewise.
      axis: the feature axes, as in Flax.
      reduction_axes: the axes measured over; those of `axis` by default.
      epsilon: added to the variance.
      where: broadcastable to `x`, non-zero is valid. What is masked out counts for nothing in the statistics;
        it goes through the same map, with its gradient. Where nothing is valid the result is `bias`, as it
        is where there is one value to measure.
      zero_masked: make zero what is masked out, in the result and in all gradients, whatever stands there.
      axis_name: a name or names of `pmap`, `shard_map` or `vmap` to measure over too, weighted by count; for
        features that are spread over devices. Under plain `jit` none is needed.
      axis_index_groups: groups of devices along `axis_name`, where JAX takes them.
      pivot: the number about which is measured; it decides cost and accuracy, not the result. `"zero"`: one pass
        that waits for nothing; right where mean/std is small, and for all that bfloat16 can hold. `"sample"`: an
        element of `x`, one pass (under a mask the mean: two passes). `None`: two passes, as Flax has them; the
        mean is rounded, which is an error of 6e-8 times mean/std. `"auto"`: `"zero"` for bfloat16, else `"sample"`.
      residual: of the shape of `x`; added after the affine map, before the activation.
      activation: `None`, `"relu"` (inside the rule), or by plain autodiff `"gelu"` (approximate, as `jax.nn.gelu`),
        `"silu"` or a callable.
      dtype: of the output; that of `x` by default.

    Raises:
      ValueError: an argument that does not fit, by its name.

    References:
      Ba, Kiros and Hinton, Layer Normalization, 2016 (arXiv 1607.06450).

    >>> print(layer_norm(jnp.array([[1.0, 3.0], [10.0, 30.0]])).round(3))
    [[-1.  1.]
     [-1.  1.]]
    """
    ops = prepare(x, Arguments(scale, bias, axis, epsilon, where, zero_masked, residual, activation, dtype))
    axes = measured_axes(reduction_axes, ops.features, ops.x.ndim)
    return normalized_by_example(ops, reduction_over(axes, axis_name, axis_index_groups), pivot)


def rms_norm(
    x: ArrayLike,
    scale: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    *,
    axis: checks.Axes = -1,
    reduction_axes: checks.Axes | None = None,
    epsilon: ArrayLike = 1e-6,
    where: ArrayLike | None = None,
    zero_masked: bool = False,
    axis_name: AxisName | None = None,
    axis_index_groups: Groups = None,
    residual: ArrayLike | None = None,
    activation: Activation = None,
    dtype: DTypeLike | None = None,
) -> Array:
    """RMS normalization: `x` divided by the root of the mean square of the features of each example.

    The arguments are those of `layer_norm`. Equivalent, but keeping more for the backward pass::

        x / jnp.sqrt((x**2).mean(axis, where=where, keepdims=True) + epsilon) * scale

    Raises:
      ValueError: an argument that does not fit, by its name.

    References:
      Zhang and Sennrich, Root Mean Square Layer Normalization, 2019 (arXiv 1910.07467).

    >>> print(rms_norm(jnp.array([[0.0, 4.0, 0.0, 0.0]])).round(3))
    [[0. 2. 0. 0.]]
    """
    ops = prepare(x, Arguments(scale, bias, axis, epsilon, where, zero_masked, residual, activation, dtype))
    axes = measured_axes(reduction_axes, ops.features, ops.x.ndim)
    return normalized_by_example(ops, reduction_over(axes, axis_name, axis_index_groups, use_mean=False))


def measured_axes(reduction_axes: checks.Axes | None, default: tuple[int, ...], ndim: int) -> tuple[int, ...]:
    """`reduction_axes`, checked, or `default` where it is `None`."""
    return default if reduction_axes is None else checks.canonical_axes(reduction_axes, ndim, "reduction_axes")


def reduction_over(axes: tuple[int, ...], axis_name: AxisName | None, groups: Groups, **static: Any) -> Reduction:
    """A reduction over axes and devices, of the arguments as they were given."""
    return Reduction(axes, checks.hashable_name(axis_name), checks.hashable(groups), **static)


def normalized_by_example(ops: Prepared, reduction: Reduction, pivot: checks.SamplePivot = None) -> Array:
    """`x`, normalized by the rule."""
    checks.choice(pivot, "pivot", checks.SAMPLE_PIVOTS)
    reduction = reduction._replace(pivot_is_mean=pivot is None)
    c = pivot_of(pivot if reduction.use_mean else "zero", ops.config, reduction, ops.x, ops.mask)
    y, _ = standardize(ops.config, reduction, ops.x, ops.affine, c, ops.mask)
    return activate(y, ops.activation, ops.zero)


LAYER_NORM = Spec(
    name="layer",
    function=layer_norm,
    module="LayerNorm",
    statistics=(Measured("C"),),
    attributes={"axis": "feature_axes", "reduction_axes": "reduction_axes"},
    paper="Ba, Kiros and Hinton 2016, arXiv 1607.06450",
    use="transformers; recurrent networks that need a norm",
)
RMS_NORM = Spec(
    name="rms",
    function=rms_norm,
    module="RMSNorm",
    statistics=(Measured("C"),),
    parameters={"scale": ONES},
    attributes=LAYER_NORM.attributes,
    paper="Zhang and Sennrich 2019, arXiv 1910.07467",
    use="transformers, in the place of layer norm",
)
SPECS = (LAYER_NORM, RMS_NORM)
