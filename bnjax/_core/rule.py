"""Normalize: one affine map per feature, the residual and relu that follow it, and their derivatives.

`normalize` applies the map to moments that come from elsewhere. `standardize` is the rule that all norms
share whose moments come from the input itself: measure, combine and normalize in one, so that the backward
pass keeps the input and a few vectors, nothing else of full size.

Both keep everything about a pivot c: d = x - c, and the mean as c + delta. With c near the data nothing
cancels, neither in the statistics nor in the map nor in its derivatives.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec as P
from jax.typing import ArrayLike, DTypeLike

from bnjax import _checks as checks
from bnjax._collectives.psum import AxisName, Groups, groups_refused, psum, psum_about
from bnjax._core.affine_map import (
    Activation,
    Affine,
    Form,
    activate,
    affine_of,
    centre,
    form_of,
    line,
    output,
    tangent,
    written,
)
from bnjax._core.moments import (
    Moments,
    about_pivot,
    abs_sq,
    at_least_one,
    dot,
)
from bnjax._lowering.forms import Rows, again, apart, neighbours, recomputed
from bnjax._masks import count_valid, inf_where_empty, valid


def normalize(
    x: ArrayLike,
    m: Moments,
    scale: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    *,
    axis: checks.Axes = -1,
    epsilon: ArrayLike = 1e-5,
    residual: ArrayLike | None = None,
    activation: Activation = None,
    dtype: DTypeLike | None = None,
) -> Array:
    """`activation((x - m.mean) * rsqrt(m.var + epsilon) * scale + bias + residual)`, differentiable in all.

    With running moments this is batch normalization at evaluation. Computed in float32 or wider; the
    backward pass keeps `x` in its own dtype and no other copy of it.

    Args:
      x: floating-point or complex.
      m: moments of the features' shape, or of the rank of `x` and broadcastable to it. `count` is not read.
      scale: of the features' shape, or of the rank of `x` and broadcastable to it (per example).
      bias: likewise.
      axis: the feature axes, as in Flax.
      epsilon: added to the variance.
      residual: of the shape of `x`; added after the affine map, before the activation.
      activation: `None`, `"relu"`, `"gelu"` (approximate, as `jax.nn.gelu`), `"silu"`, or a callable, which is applied
        to the result.
      dtype: of the result; that of `x` by default.

    Raises:
      ValueError: an argument that does not fit, by its name.

    References:
      Ioffe and Szegedy, Batch Normalization, 2015, algorithm 2.

    >>> m = Moments(jnp.array(2.0), jnp.array([1.0, 5.0]), jnp.array([4.0, 1.0]))
    >>> print(normalize(jnp.array([[3.0, 5.0], [1.0, 7.0]]), m, epsilon=0.0, activation="relu"))
    [[1. 0.]
     [0. 2.]]
    """
    return normalize_valid(
        checks.inexact_array(x), m, scale, bias, None,
        axis=axis, epsilon=epsilon, residual=residual, activation=activation, dtype=dtype,
    )  # fmt: skip


def normalize_valid(
    x: Array,
    m: Moments,
    scale: ArrayLike | None,
    bias: ArrayLike | None,
    zero: Array | None,
    *,
    axis: checks.Axes,
    epsilon: ArrayLike,
    residual: ArrayLike | None = None,
    activation: Activation = None,
    dtype: DTypeLike | None = None,
) -> Array:
    """`normalize` with zeros where the mask `zero` says so; `x` has them there."""
    features = checks.canonical_axes(axis, x.ndim)
    form = form_of(x, activation, dtype)
    affine = affine_of(form, x, features, scale, bias, residual, epsilon, zero)
    checks.has_parts(m, "m", "Moments", "mean", "var")
    mean = checks.feature_array(m.mean, "m.mean", x.shape, features)
    var = checks.feature_array(m.var, "m.var", x.shape, features)
    checks.real_unless(form.wide, mean, "m.mean")
    return activate(_apply(form, x, affine, mean, jnp.zeros_like(mean), var, None), activation, zero)


# The names under which `jax.checkpoint` knows what every norm needs to be computed again from.
INPUT, MOMENTS = "bnjax_input", "bnjax_moments"


class Sets(NamedTuple):
    """Over which axes, and over which devices, statistics are measured. Static."""

    axes: tuple[int, ...]
    axis_name: AxisName | None = None
    groups: Groups = None  # a tuple of tuples
    use_mean: bool = True  # without: the mean is taken to be zero, and the variance is the mean square
    exact: bool = True  # without: the mean is taken to be the pivot, which is the mean as far as rounding goes
    pools: tuple[int, int] | None = None  # (axis, n): each n neighbours along it are measured as one


def standardize(
    form: Form, sets: Sets, x: Array, affine: Affine, pivot: Array, mask: Array | None
) -> tuple[Array, Moments]:
    """Measures `x` about `pivot`, combines over devices, normalizes: the output, and the moments.

    `pivot` broadcasts to `x` with length one along the measured axes, and is a constant to autodiff; it must
    be equal on all devices that are combined. Moments keep the measured axes.
    """
    c = lax.stop_gradient(pivot).astype(form.wide)
    x = checkpoint_name(x, INPUT)
    with groups_refused(sets.groups):
        y, delta, var, count = _traced_once(form, sets, x, affine, c, mask)
    return y, Moments(count, c + delta, jnp.maximum(var, 0))


def pivot_of(
    kind: checks.Pivot, form: Form, sets: Sets, x: Array, mask: Array | None, running: Array | None = None
) -> Array:
    """The number about which to measure `x`: length one along the measured axes, equal on all devices.

    `"running"`: what is given. `"sample"`: the first element (the mean under a mask, where none is known to be
    valid). `None`: the mean.
    """
    if kind == "running" and running is not None:
        return running
    x = lax.stop_gradient(x).astype(form.wide)
    n: Array | float
    if kind == "sample" and mask is None and x.size:
        total, n = _first(x, sets.axes), 1.0
    else:
        total = valid(mask, x).sum(sets.axes, keepdims=True)
        n = count_valid(mask, x.shape, sets.axes, form.wide)
    total, n = _combine(sets, (total, n))
    return _one_number(total / at_least_one(n)) if sets.exact else total / at_least_one(n)


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _rule(
    form: Form, sets: Sets, x: Array, affine: Affine, c: Array, mask: Array | None
) -> tuple[Array, Array, Array, Array]:
    delta, var, count = _measured(form, sets, x, c, mask)
    return _apply(form, x, affine, c, delta, _var_or_inf(var, count, mask), mask), delta, var, count


# A model has many norms of few shapes: under jit the rule and its derivatives are traced once for each shape.
_traced_once = jax.jit(_rule, static_argnums=(0, 1))


@_rule.defjvp
def _rule_jvp(form: Form, sets: Sets, primals: Any, tangents: Any) -> Any:
    x, affine, c, mask = primals
    dx, daffine, _, _ = tangents
    dx = dx.astype(form.wide)  # once: each conversion would round its part of the gradient by itself
    moments = checkpoint_name(_measured(form, sets, x, c, mask), MOMENTS)
    delta, var, count = moments
    ddelta, dvar = _measured_tangent(form, sets, (x, c, mask), dx, moments)
    seen_var = _var_or_inf(var, count, mask)
    # Clamped there: or 1 / sqrt(epsilon)^3 times rounding. A product, with which the CPU's compiler fuses the sums.
    seen_dvar = dvar * jnp.where(var < 0, 0, jnp.ones_like(var))
    y = _apply(form, x, affine, c, delta, seen_var, mask)
    dy = tangent(form, (x, affine, c, delta, seen_var), (dx, daffine, ddelta, seen_dvar), mask)
    return (y, delta, var, count), (dy, ddelta, dvar, jnp.zeros_like(count))


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _measured(form: Form, sets: Sets, x: Array, c: Array, mask: Array | None) -> tuple[Array, Array, Array]:
    """The mean about `c`, the variance as rounding left it (below zero perhaps) and the count."""
    count = count_valid(mask, x.shape, sets.axes, form.wide)
    s1, s2 = _power_sums(form, sets.axes, x, c, mask)
    count, s1, s2 = _combine(sets, (count, s1, s2), c)
    count = jnp.asarray(count, checks.real_dtype(form.wide))
    about = about_pivot if sets.use_mean and sets.exact else _about_mean
    return *about(count, s1, s2), count


def _power_sums(form: Form, axes: tuple[int, ...], x: Array, c: Array, mask: Array | None) -> tuple[Array, Array]:
    """The sums of x - c and |x - c|^2. Not differentiated."""
    spec = jax.typeof(x).sharding.spec
    rows = neighbours(x.shape, [a for i, a in enumerate(axes) if i == 0 or spec[a] is None])
    each = partial(_one_by_one, form, axes)
    if rows is None or jnp.issubdtype(form.wide, jnp.complexfloating):
        return each(x, c, mask)
    return lax.platform_dependent(x, c, mask, cpu=partial(_at_once, form, axes, rows), default=each)


def _one_by_one(form: Form, axes: tuple[int, ...], x: Array, c: Array, mask: Array | None) -> tuple[Array, Array]:
    # The other way round than anywhere else: where XLA's GPU compiler writes a difference to memory for the sums, as it
    # does for few rows, it would otherwise keep it, in float32, for all that follows, the backward pass included.
    d, d_again = (valid(mask, c - x.astype(form.wide)) for x, c in (again((x, c)), again(again((x, c)))))
    return -d.sum(axes, keepdims=True), abs_sq(d_again).sum(axes, keepdims=True)


def _at_once(
    form: Form, axes: tuple[int, ...], rows: Rows, x: Array, c: Array, mask: Array | None
) -> tuple[Array, Array]:
    """For a CPU, in one pass: XLA's own loop for two sums, which is fast over a few neighbours, not over all."""
    d = valid(mask, x.astype(form.wide) - c).reshape(rows.split(x.shape)[1])
    zero = jnp.zeros((), d.dtype)
    s1, s2 = lax.reduce((d, d * d), (zero, zero), lambda a, b: (a[0] + b[0], a[1] + b[1]), (rows.axis + 1,))
    return s1.sum(axes, keepdims=True), s2.sum(axes, keepdims=True)


@_measured.defjvp
def _measured_jvp(form: Form, sets: Sets, primals: Any, tangents: Any) -> Any:
    moments = _measured(form, sets, *primals)
    return moments, (*_measured_tangent(form, sets, primals, tangents[0], moments), jnp.zeros_like(moments[2]))


def _measured_tangent(form: Form, sets: Sets, primals: Any, dx: Array, moments: Any) -> tuple[Array, Array]:
    """The tangents of the mean and the variance."""
    x, c, mask = primals
    delta, var, count = moments
    sums = recomputed(form.keeps, partial(_sums, form, sets), x, c, dx, mask)
    t1, t2 = _combine(sets, sums if sets.pools is None else apart(sums, var))
    k = at_least_one(count)
    ddelta = t1 / k if sets.use_mean else jnp.zeros_like(t1)
    return ddelta, 2 * (t2 / k - dot(delta, ddelta))


def _about_mean(count: Array, s1: Array, s2: Array) -> tuple[Array, Array]:
    """What `about_pivot` gives about the mean itself, but for rounding."""
    return jnp.zeros_like(s1), s2 / at_least_one(count)


def _sums(form: Form, sets: Sets, x: Array, c: Array, dx: Array, mask: Array | None) -> tuple[Array, Array]:
    """What the tangents of the moments are made of: the sums of dx and of (x - c) dx."""
    dx = valid(mask, dx.astype(form.wide))
    d = centre(form, x, c, mask)
    return dx.sum(sets.axes, keepdims=True), dot(d, dx).sum(sets.axes, keepdims=True)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _apply(form: Form, x: Array, affine: Affine, c: Array, delta: Array, var: Array, mask: Array | None) -> Array:
    return written(form, affine, output(form, line(x.astype(form.wide) - c, affine, delta, var)))


@_apply.defjvp
def _apply_jvp(form: Form, primals: Any, tangents: Any) -> Any:
    dx, daffine, dc, ddelta, dvar, _ = tangents
    return _apply(form, *primals), tangent(form, primals[:-1], (dx, daffine, dc + ddelta, dvar), primals[-1])


def _combine(sets: Sets, sums: Any, pivot: Array | None = None) -> Any:
    """Sums (measured about `pivot`) added up over the pools and over the devices."""
    if sets.pools is not None:
        sums = jax.tree.map(partial(_pooled, *sets.pools), sums)
    if pivot is None:
        return psum(sums, sets.axis_name, sets.groups)
    return psum_about(pivot, sums, sets.axis_name, sets.groups)


def _pooled(axis: int, n: int, t: Array | float) -> Array | float:
    """The sum over each `n` neighbours along `axis`, at the place of each; what does not vary along it, `n` times."""
    if isinstance(t, float) or t.ndim == 0 or t.shape[axis] == 1:
        return t * n
    split = t.reshape((*t.shape[:axis], t.shape[axis] // n, n, *t.shape[axis + 1 :]))
    return jnp.broadcast_to(split.sum(axis + 1, keepdims=True), split.shape).reshape(t.shape)


def _var_or_inf(var: Array, count: Array, mask: Array | None) -> Array:
    """The variance, not below zero. Where a mask leaves nothing, infinite: the map is constant, `bias`, and dx zero."""
    var = jnp.maximum(var, 0)
    return var if mask is None else inf_where_empty(var, count)


def _one_number(c: Array) -> Array:
    """`c` with one bit less, so that it is the same number wherever it is used.

    Compilers copy `total / n` to every use and fuse it there with what follows (x - total * (1/n) rounds once):
    what is measured about one number would then be normalized about another.
    """
    if jnp.iscomplexobj(c):
        return lax.complex(_one_number(c.real), _one_number(c.imag))
    info = jnp.finfo(c.dtype)
    return lax.reduce_precision(c, info.nexp, info.nmant - 1)


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
