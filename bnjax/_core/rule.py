"""The rule that all norms share whose moments come from the input itself: measure, combine, normalize, in one.

The backward pass keeps the input in its own dtype, and a few numbers for each feature, and nothing else of full size.

One feature (or one example, or one group). Its values are x_i. w_i is 1 where x_i is valid and 0 where it is masked.
All sums are over what is measured, on all devices that are measured together. c is the pivot: a constant near the data.

Measure
    d_i = x_i - c
    n = sum(w)        s1 = sum(w d)        s2 = sum(w d^2)

Combine. n, s1, s2 are added up over devices in one all-reduce, because c is the same on each.
    delta = s1 / n    mean = c + delta     var = s2 / n - delta^2

Normalize, then perhaps relu
    r = (var + epsilon)^(-1/2)             a = r scale
    y_i = a (d_i - delta) + bias + residual_i

The tangent, which the custom_jvp says
    D(delta) = sum(w Dx) / n = D(mean)
    D(var) = 2 (sum(w d Dx) / n - delta D(delta))
    D(a) = r D(scale) - 1/2 r^2 a (D(var) + D(epsilon))
    D(y_i) = a D(x_i) + D(a) (d_i - delta) - a D(delta) + D(bias) + D(residual_i)

The backward pass, its transpose. g_i is the gradient to y_i, zero where relu was zero. Over all i, masked ones too:
    G1 = sum(g)       G2 = sum(g (d - delta))
    to bias        G1
    to scale       r G2
    to residual_i  g_i
    to mean        -a G1
    to var         -1/2 r^2 a G2
    to x_i         a g_i - (a w_i / n) (G1 + r^2 (d_i - delta) G2)

G1 and G2 are one fused reduction, and the gradient to x is one elementwise pass. Both read x and g. G1 and G2 of all
devices are one all-reduce: it is the transpose of the one above, and JAX makes it.

Everything is kept about the pivot c: d = x - c, and the mean as c + delta. With c near the data nothing cancels,
neither in the statistics nor in the map nor in its derivatives. Of x, only d is in the formulas.

Shapes: x, y, g and w are of the input's shape. n, s1, s2, delta, var, r, G1 and G2 have length one along the measured
axes. scale and bias broadcast to the input. All arithmetic is float32 or wider.

Three `custom_jvp` rules nest here. Each gives the derivative of another part:

- `_rule` is all of it. Its tangent is written from x, c, delta and var, so these are what is kept. The arithmetic of
  the tangent is in `affine_map.tangent`, and is one primitive, `bnjax._lowering.linear`.
- `_measured` is the first two steps. The moments are in the tangent of `_rule`; a second derivative comes here.
- `affine_map.apply_map` is the third step, with moments from elsewhere. `normalize` calls it, and so does a second
  derivative.

`reference.py` has the same in 40 lines of plain JAX, with plain autodiff.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec as P

from bnjax import _checks as checks
from bnjax._collectives.psum import AxisName, Groups, groups_explained, psum, psum_about
from bnjax._complex import dot
from bnjax._core.affine_map import (
    AffineOperands,
    MapConfig,
    apply_map,
    centered,
    tangent,
)
from bnjax._core.moments import (
    Moments,
    about_pivot,
    at_least_one,
)
from bnjax._lowering.barriers import isolated, pinned
from bnjax._lowering.linear import linear
from bnjax._lowering.sums import power_sums
from bnjax._masks import count_valid, inf_where_empty, valid

# Names for `jax.checkpoint`: every norm can be computed again from these.
INPUT, MOMENTS = "bnjax_input", "bnjax_moments"


class Reduction(NamedTuple):
    """Over which axes and devices statistics are measured, and about what. Static."""

    axes: tuple[int, ...]
    axis_name: AxisName | None = None
    groups: Groups = None  # a tuple of tuples
    use_mean: bool = True  # if not, zero stands for the mean, and the variance is the mean square
    pivot_is_mean: bool = False  # the pivot is the mean but for rounding, which is not corrected
    pools: tuple[int, int] | None = None  # (axis, n): each n neighbours along the axis are one group


def standardize(
    config: MapConfig, reduction: Reduction, x: Array, affine: AffineOperands, pivot: Array, mask: Array | None
) -> tuple[Array, Moments]:
    """Measures `x` about `pivot`, combines over devices, normalizes: the output, and the moments.

    `pivot` broadcasts to `x` with length one along the measured axes, and is a constant to autodiff; it must
    be equal on all devices that are combined. Moments keep the measured axes, and are constants to autodiff.
    """
    c = lax.stop_gradient(pivot).astype(config.compute_dtype)
    x = checkpoint_name(x, INPUT)
    with groups_explained(reduction.groups):
        y, *moments = _traced_once(config, reduction, x, affine, c, mask)
    delta, var, count = lax.stop_gradient(moments)  # here, or the step of a running state would be differentiated
    return y, Moments(count, c + delta, jnp.maximum(var, 0))


def pivot_of(
    kind: checks.Pivot,
    config: MapConfig,
    reduction: Reduction,
    x: Array,
    mask: Array | None,
    running: Array | None = None,
) -> Array:
    """The number about which to measure `x`: length one along the measured axes, equal on all devices.

    `"running"`: what is given. `"zero"`: zero. `"sample"`: the first element (the mean under a mask, where none is
    known to be valid). `None`: the mean. `"auto"`: zero for bfloat16, whose own rounding is coarser than what is lost,
    and a sample for all other dtypes.
    """
    if kind == "running" and running is not None:
        return running
    if kind == "auto":
        kind = "zero" if x.dtype == jnp.bfloat16 else "sample"
    if kind == "zero":
        return jnp.zeros((1,) * x.ndim, config.compute_dtype)
    x = lax.stop_gradient(x)
    n: Array | float
    if kind == "sample" and mask is None and x.size:
        # Cast after the slice: otherwise XLA's TPU compiler copies all of `x` into another layout.
        total, n = _first(x, reduction.axes).astype(config.compute_dtype), 1.0
    else:
        total = valid(mask, x.astype(config.compute_dtype)).sum(reduction.axes, keepdims=True)
        n = count_valid(mask, x.shape, reduction.axes, config.compute_dtype)
    total, n = _combine(reduction, (total, n))
    return total / at_least_one(n) if reduction.pivot_is_mean else pinned(total / at_least_one(n))


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _rule(
    config: MapConfig, reduction: Reduction, x: Array, affine: AffineOperands, c: Array, mask: Array | None
) -> tuple[Array, Array, Array, Array]:
    delta, var, count = _measured(config, reduction, x, c, mask)
    return apply_map(config, x, affine, c, delta, _var_or_inf(var, count, mask), mask), delta, var, count


# A model has many norms of few shapes: under jit the rule and its derivatives are traced once for each shape.
_traced_once = jax.jit(_rule, static_argnums=(0, 1))


@_rule.defjvp
def _rule_jvp(config: MapConfig, reduction: Reduction, primals: Any, tangents: Any) -> Any:
    x, affine, c, mask = primals
    dx, daffine, _, _ = tangents
    # Cast once: each cast would round a partial gradient on its own.
    dx = dx.astype(config.compute_dtype)
    moments = checkpoint_name(_measured(config, reduction, x, c, mask), MOMENTS)
    delta, var, count = moments
    ddelta, dvar = _measured_tangent(config, reduction, (x, c, mask), dx, moments)
    map_var = _var_or_inf(var, count, mask)
    # Zero where the variance was clamped, or rounding is amplified by epsilon^(-3/2). A product, because XLA:CPU fuses
    # it with the sums.
    map_dvar = dvar * jnp.where(var < 0, 0, jnp.ones_like(var))
    y = apply_map(config, x, affine, c, delta, map_var, mask)
    dy = tangent(config, (x, affine, c, delta, map_var), (dx, daffine, ddelta, map_dvar), mask)
    return (y, delta, var, count), (dy, ddelta, dvar, jnp.zeros_like(count))


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _measured(
    config: MapConfig, reduction: Reduction, x: Array, c: Array, mask: Array | None
) -> tuple[Array, Array, Array]:
    """The mean minus `c`, the variance (not clamped: rounding may leave it below zero) and the count."""
    count = count_valid(mask, x.shape, reduction.axes, config.compute_dtype)
    s1, s2 = power_sums(config.compute_dtype, reduction.axes, x, c, mask)
    count, s1, s2 = _combine(reduction, (count, s1, s2), c)
    count = jnp.asarray(count, checks.real_dtype(config.compute_dtype))
    about = about_pivot if reduction.use_mean and not reduction.pivot_is_mean else _about_mean
    return *about(count, s1, s2), count


@_measured.defjvp
def _measured_jvp(config: MapConfig, reduction: Reduction, primals: Any, tangents: Any) -> Any:
    moments = _measured(config, reduction, *primals)
    return moments, (*_measured_tangent(config, reduction, primals, tangents[0], moments), jnp.zeros_like(moments[2]))


def _measured_tangent(
    config: MapConfig, reduction: Reduction, primals: Any, dx: Array, moments: Any
) -> tuple[Array, Array]:
    """The tangents of the mean and the variance."""
    delta, var, count = moments
    sums = linear(partial(_sums, config, reduction), primals, dx)
    t1, t2 = _combine(reduction, sums if reduction.pools is None else isolated(sums, var))
    k = at_least_one(count)
    ddelta = t1 / k if reduction.use_mean else jnp.zeros_like(t1)
    return ddelta, 2 * (t2 / k - dot(delta, ddelta))


def _about_mean(count: Array, s1: Array, s2: Array) -> tuple[Array, Array]:
    """`about_pivot` without a correction: the pivot stands for the mean."""
    return jnp.zeros_like(s1), s2 / at_least_one(count)


def _sums(config: MapConfig, reduction: Reduction, primals: Any, dx: Array) -> tuple[Array, Array]:
    """The sums of dx and of (x - c) dx, from which the tangents of the moments follow."""
    x, c, mask = primals
    dx = valid(mask, dx.astype(config.compute_dtype))
    d = centered(config, x, c, mask)
    return dx.sum(reduction.axes, keepdims=True), dot(d, dx).sum(reduction.axes, keepdims=True)


def _combine(reduction: Reduction, sums: Any, pivot: Array | None = None) -> Any:
    """Sums (measured about `pivot`) added up over the pools and over the devices."""
    if reduction.pools is not None:
        sums = jax.tree.map(partial(_pooled, *reduction.pools), sums)
    if pivot is None:
        return psum(sums, reduction.axis_name, reduction.groups)
    return psum_about(pivot, sums, reduction.axis_name, reduction.groups)


def _pooled(axis: int, n: int, t: Array | float) -> Array | float:
    """The sum over each `n` neighbours along `axis`, repeated for each; what does not vary along it, times `n`."""
    if isinstance(t, float) or t.ndim == 0 or t.shape[axis] == 1:
        return t * n
    split = t.reshape((*t.shape[:axis], t.shape[axis] // n, n, *t.shape[axis + 1 :]))
    return jnp.broadcast_to(split.sum(axis + 1, keepdims=True), split.shape).reshape(t.shape)


def _var_or_inf(var: Array, count: Array, mask: Array | None) -> Array:
    """The variance, not below zero; infinite where nothing is valid, so that the map is constant and dx is zero."""
    var = jnp.maximum(var, 0)
    return var if mask is None else inf_where_empty(var, count)


def _first(x: Array, axes: tuple[int, ...]) -> Array:
    """The first element along each of `axes`, kept with length one."""
    for a in axes:
        spec = list(jax.typeof(x).sharding.spec)
        if spec[a] is None:
            x = lax.slice_in_dim(x, 0, 1, axis=a)
        else:  # sharded over an Explicit mesh: a slice could not be sharded alike, a gather says how it is
            spec[a] = None
            x = x.at[(*(slice(None),) * a, jnp.zeros(1, int))].get(out_sharding=P(*spec))
    return x
