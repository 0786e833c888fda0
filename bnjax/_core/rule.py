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

Three `custom_jvp` rules nest here. Each cuts the derivative at another place:

- `_rule` is all of it. Its tangent is written from x, c, delta and var, so these are what is kept. The arithmetic of
  the tangent is in `affine_map.tangent`, within a `jax.checkpoint`.
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
from bnjax._collectives.psum import AxisName, Groups, groups_refused, psum, psum_about
from bnjax._complex import dot
from bnjax._core.affine_map import (
    Affine,
    Form,
    apply_map,
    centre,
    tangent,
)
from bnjax._core.moments import (
    Moments,
    about_pivot,
    at_least_one,
)
from bnjax._lowering.barriers import isolated, pinned
from bnjax._lowering.checkpoint import rematerialized
from bnjax._lowering.sums import power_sums
from bnjax._masks import count_valid, inf_where_empty, valid

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
    return pinned(total / at_least_one(n)) if sets.exact else total / at_least_one(n)


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _rule(
    form: Form, sets: Sets, x: Array, affine: Affine, c: Array, mask: Array | None
) -> tuple[Array, Array, Array, Array]:
    delta, var, count = _measured(form, sets, x, c, mask)
    return apply_map(form, x, affine, c, delta, _var_or_inf(var, count, mask), mask), delta, var, count


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
    y = apply_map(form, x, affine, c, delta, seen_var, mask)
    dy = tangent(form, (x, affine, c, delta, seen_var), (dx, daffine, ddelta, seen_dvar), mask)
    return (y, delta, var, count), (dy, ddelta, dvar, jnp.zeros_like(count))


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _measured(form: Form, sets: Sets, x: Array, c: Array, mask: Array | None) -> tuple[Array, Array, Array]:
    """The mean about `c`, the variance as rounding left it (below zero perhaps) and the count."""
    count = count_valid(mask, x.shape, sets.axes, form.wide)
    s1, s2 = power_sums(form.wide, sets.axes, x, c, mask)
    count, s1, s2 = _combine(sets, (count, s1, s2), c)
    count = jnp.asarray(count, checks.real_dtype(form.wide))
    about = about_pivot if sets.use_mean and sets.exact else _about_mean
    return *about(count, s1, s2), count


@_measured.defjvp
def _measured_jvp(form: Form, sets: Sets, primals: Any, tangents: Any) -> Any:
    moments = _measured(form, sets, *primals)
    return moments, (*_measured_tangent(form, sets, primals, tangents[0], moments), jnp.zeros_like(moments[2]))


def _measured_tangent(form: Form, sets: Sets, primals: Any, dx: Array, moments: Any) -> tuple[Array, Array]:
    """The tangents of the mean and the variance."""
    x, c, mask = primals
    delta, var, count = moments
    sums = rematerialized(form.keeps, partial(_sums, form, sets), x, c, dx, mask)
    t1, t2 = _combine(sets, sums if sets.pools is None else isolated(sums, var))
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
