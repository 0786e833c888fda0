"""Measure and combine: `Moments`, and the two laws by which measurements are put together.

`merge` (and `reduce`, `all_reduce`, the same law over an array axis and over devices) is exact: the moments
of two sets give the moments of their union. `ema` is the literature's running average, which is another
thing: it forgets.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike, DTypeLike

from bnjax import _checks as checks
from bnjax import _masks as masks
from bnjax._collectives.psum import AxisName, Groups, psum, psum_about
from bnjax._complex import abs_sq, dot
from bnjax._masks import count_valid, valid


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Moments:
    """Count, mean and biased variance of a set of numbers, feature by feature.

    Attributes:
      count: how many numbers were measured, `()` or broadcastable to `mean`; float.
      mean: their mean, in float32 or wider; complex for complex numbers.
      var: their variance, divided by `count` (not by `count - 1`); real, the shape of `mean`.

    >>> m = Moments.empty((3,))
    >>> m.count.shape, m.mean.shape, m.var.shape
    ((), (3,), (3,))
    """

    count: Array
    mean: Array
    var: Array

    @classmethod
    def empty(cls, shape: Sequence[int], dtype: DTypeLike = jnp.float32) -> Moments:
        """The moments of no number at all: the identity of `merge`."""
        real = checks.real_dtype(dtype)
        return cls(jnp.zeros((), real), jnp.zeros(shape, dtype), jnp.zeros(shape, real))


checks.in_exported_files(Moments, "bnjax.Moments")


def moments(
    x: ArrayLike,
    axis: checks.Axes,
    *,
    where: ArrayLike | None = None,
    keepdims: bool = False,
    pivot: ArrayLike | None = None,
) -> Moments:
    """Count, mean and biased variance of `x` over `axis`.

    Without a pivot two passes over `x` with the correction term of Chan, Golub and LeVeque (1983), good to
    1e-5 at mean/std = 1e5. With a pivot c near the data one pass, relative error of the variance at most
    4 eps (1 + (mean - c)^2 / var). The result does not depend on c, and c has no gradient.

    Equivalent to `x.mean(axis, where=where)` and `x.var(axis, where=where)`, in float32 or wider.

    Args:
      x: floating-point or complex.
      axis: the axes measured over, as in `jnp.mean`.
      where: broadcastable to `x`; non-zero is valid. What is not valid counts for nothing, NaN included.
      keepdims: keep the measured axes with length one.
      pivot: broadcastable to the result (of either form of `keepdims`).

    Returns:
      `Moments`; where nothing is valid count 0, variance 0 and a finite mean. `count` is `()` unless the
      mask varies over what is not measured.

    Raises:
      ValueError: integer `x`, `axis` out of range or repeated, a `where` or `pivot` that does not fit.

    >>> m = moments(jnp.array([[1e4, 1.0], [1e4 + 2, 3.0]]), axis=0)
    >>> print(m.count, m.mean, m.var)
    2.0 [1.0001e+04 2.0000e+00] [1. 1.]
    """
    x = checks.inexact_array(x)
    axes = checks.canonical_axes(axis, x.ndim)
    x, mask = masks.read(x, where)
    dtype = checks.stat_dtype(x)
    count = jnp.asarray(count_valid(mask, x.shape, axes, dtype), checks.real_dtype(dtype))
    if pivot is None:
        total = valid(mask, x.astype(dtype)).sum(axes, keepdims=True)
        c = total / at_least_one(count).astype(dtype)
    else:
        features = checks.other_axes(axes, x.ndim)
        c = checks.pivot_array(pivot, x.shape, features).astype(dtype)
    c = lax.stop_gradient(c)
    d = valid(mask, x.astype(dtype) - c)
    m = of_sums(c, count, d.sum(axes, keepdims=True), abs_sq(d).sum(axes, keepdims=True))
    return _shaped(m, axes, keepdims)


def merge(a: Moments, b: Moments) -> Moments:
    """The moments of the union of two sets (Chan et al. 1983). Associative and commutative.

    Args:
      a: moments of one set. Means and variances of the two broadcast: running statistics of shape (6,) and those of
        single examples, of shape (4, 1, 6), give a union for each example.
      b: moments of the other one.

    Raises:
      ValueError: `a` or `b` is no `Moments`, or their shapes do not fit.

    >>> a, b = moments(jnp.array([1.0, 2.0]), 0), moments(jnp.array([6.0]), 0)
    >>> m = merge(a, b)
    >>> print(m.count, m.mean, m.var.round(4))
    3.0 3.0 4.6667
    """
    for m, name in ((a, "a"), (b, "b")):
        checks.has_parts(m, name, "Moments", "count", "mean", "var")
    checks.broadcastable(a.mean, "a.mean", b.mean, "b.mean")
    count_a, count_b = jnp.asarray(a.count), jnp.asarray(b.count)
    count = count_a + count_b
    share = count_b / jnp.where(count > 0, count, 1)
    share_b = jnp.broadcast_to(share, jnp.broadcast_shapes(jnp.shape(a.mean), share.shape))
    step = jnp.asarray(b.mean) - jnp.asarray(a.mean)
    mean = a.mean + step * share_b
    # In this order, so that nothing overflows for a finite mean where one of the shares is zero.
    between = dot(step * share_b, step * (1 - share_b))
    var = a.var * (1 - share_b) + b.var * share_b + between
    return Moments(count, mean, var)


def reduce(m: Moments, axis: checks.Axes = 0) -> Moments:
    """Merges stacked moments along an array axis.

    Args:
      m: moments whose `mean` and `var` have been stacked; `count` may keep the stacked axes only, as
        stacking (or `vmap`) of scalar counts leaves it.
      axis: the stacked axis or axes of `mean`.

    Raises:
      ValueError: `m` is no `Moments`; `axis` out of range or repeated.

    >>> m = jax.vmap(lambda x: moments(x, 0))(jnp.array([[1.0, 2.0], [6.0, 7.0]]))
    >>> m = reduce(m)
    >>> print(m.count, m.mean, m.var)
    4.0 4.0 6.5
    """
    checks.has_parts(m, "m", "Moments", "count", "mean", "var")
    mean, var = jnp.asarray(m.mean), jnp.asarray(m.var)
    axes = checks.canonical_axes(axis, mean.ndim)
    count = jnp.asarray(m.count)
    if count.ndim < mean.ndim:
        stacked = axes if count.ndim == len(axes) else tuple(range(count.ndim))
        if count.ndim and count.shape != tuple(mean.shape[a] for a in stacked):
            stacked = tuple(range(mean.ndim - count.ndim, mean.ndim))  # aligned from the right, as in numpy
        count = jnp.expand_dims(count, checks.other_axes(stacked, mean.ndim)) if count.ndim else count
    count = broadcast_count(count, mean, axes)
    total = count.sum(axes, keepdims=True)
    share = count / jnp.where(total > 0, total, 1)
    # About c, the mean of the means. It is rounded; delta corrects for that.
    c = (share * mean).sum(axes, keepdims=True)
    delta = (share * (mean - c)).sum(axes, keepdims=True)
    var = (share * (var + abs_sq(mean - c))).sum(axes, keepdims=True) - abs_sq(delta)
    return _shaped(Moments(total, c + delta, jnp.maximum(var, 0)), axes, keepdims=False)


def all_reduce(
    m: Moments, axis_name: AxisName, *, pivot: ArrayLike | None = None, axis_index_groups: Groups = None
) -> Moments:
    """Merges the moments of all devices along a named axis (or several): count-weighted, so right under masks.

    With a pivot c one all-reduce, of count, count (mean - c) and count (var + (mean - c)^2); c must be the
    same on every device and near the means. Without, two: the mean first, then the rest about it.

    Args:
      m: this device's moments.
      axis_name: the name, or tuple of names, of `pmap`, `shard_map` or `vmap`.
      pivot: broadcastable to `m.mean`, equal on all devices of the group.
      axis_index_groups: as in `lax.psum`; taken by `pmap` and by `shard_map(check_vma=False)`.

    Raises:
      ValueError: `m` is no `Moments`; a pivot that differs along `axis_name` (as far as its type tells: under
        `shard_map(check_vma=True)`).

    >>> x = jnp.array([[1.0, 2.0], [6.0, 7.0]])
    >>> print(jax.vmap(lambda x: all_reduce(moments(x, 0), "device"), axis_name="device")(x).var)
    [6.5 6.5]
    """
    checks.has_parts(m, "m", "Moments", "count", "mean", "var")
    mean, var = jnp.asarray(m.mean), jnp.asarray(m.var)
    count = jnp.asarray(m.count, var.dtype)
    if pivot is None:
        n, total = psum((count, count * mean), axis_name, axis_index_groups)
        c = lax.stop_gradient(total / at_least_one(n))
    else:
        c = lax.stop_gradient(jnp.asarray(pivot, mean.dtype))
    sums = sums_about(c, Moments(count, mean, var))
    n, s1, s2 = (
        psum(sums, axis_name, axis_index_groups) if pivot is None else psum_about(c, sums, axis_name, axis_index_groups)
    )
    return of_sums(c, n, s1, s2)


def ema(running: Moments, batch: Moments, momentum: ArrayLike) -> Moments:
    """`momentum * running + (1 - momentum) * batch`, for mean and variance separately; `count` stays.

    Where `batch.count` is 0 the running values stay as they are. The result keeps the dtypes of `running`;
    the sum is made in the wider of the two.

    Args:
      momentum: the fraction of the running state that is kept, from 0 to 1 (1 - PyTorch's).

    Raises:
      ValueError: `momentum` out of range.

    >>> running = Moments(jnp.zeros(()), jnp.zeros(2), jnp.ones(2))
    >>> print(ema(running, moments(jnp.array([[2.0, 4.0], [4.0, 8.0]]), 0), 0.5).mean)
    [1.5 3. ]
    """
    checks.unit_interval(momentum, "momentum", checks.MOMENTUM_HINT)
    return average(running, batch, momentum)


def average(running: Moments, batch: Moments, momentum: ArrayLike) -> Moments:
    """`ema`, with a momentum that has been checked."""
    # A scalar count stays a scalar: broadcast, it would lose the sharding of the features.
    seen = jnp.asarray(batch.count) > 0

    def step(old: ArrayLike, new: ArrayLike) -> Array:
        old = jnp.asarray(old)
        dtype = checks.wider(old.dtype, jnp.asarray(new).dtype)
        # 1 - momentum in the caller's precision: a Python float is subtracted in Python, as in Flax.
        keep, take = (jnp.asarray(m, checks.real_dtype(dtype)) for m in (momentum, 1 - momentum))
        mixed = keep * old.astype(dtype) + take * jnp.asarray(new, dtype)
        return jnp.where(seen, mixed.astype(old.dtype), old)

    return Moments(jnp.asarray(running.count), step(running.mean, batch.mean), step(running.var, batch.var))


def broadcast_count(count: Array, mean: Array, axes: Sequence[int]) -> Array:
    """`count`, of the rank of `mean` or `()`, broadcast along `axes`, so that a sum over these counts each entry."""
    lengths = count.shape or (1,) * mean.ndim
    shape = tuple(s if a in axes else c for a, (s, c) in enumerate(zip(mean.shape, lengths, strict=True)))
    return jnp.broadcast_to(count, shape)


def at_least_one(count: Array | float) -> Array:
    """`count`, or 1 where it is 0: to divide by."""
    count = jnp.asarray(count)
    return jnp.where(count > 0, count, jnp.ones((), count.dtype))


def about_pivot(count: Array, s1: Array, s2: Array) -> tuple[Array, Array]:
    """(mean - c, variance) from the sums of (x - c) and |x - c|^2; rounding may leave the variance below zero."""
    k = at_least_one(count)
    delta = s1 / k
    return delta, s2 / k - abs_sq(delta)


def sums_about(c: Array, m: Moments) -> tuple[Array, Array, Array]:
    """The count, and the sums of (x - c) and |x - c|^2, from moments."""
    d = m.mean - c
    return m.count, m.count * d, m.count * (m.var + abs_sq(d))


def of_sums(c: Array, count: Array, s1: Array, s2: Array) -> Moments:
    """The moments, from the sums of (x - c) and |x - c|^2."""
    delta, var = about_pivot(count, s1, s2)
    return Moments(count, c + delta, jnp.maximum(var, 0))


def of_features(m: Moments, shape: Sequence[int]) -> Moments:
    """Moments with axes kept, in the shape of the features."""
    count = m.count.reshape(()) if m.count.size == 1 else jnp.broadcast_to(m.count, m.mean.shape).reshape(shape)
    return Moments(count, m.mean.reshape(shape), m.var.reshape(shape))


def _shaped(m: Moments, axes: Sequence[int], keepdims: bool) -> Moments:
    """Moments with axes kept, as the caller asked for them; a count that does not vary becomes `()`."""
    count, mean, var = m.count, m.mean, m.var
    if not keepdims:
        mean, var = mean.squeeze(axes), var.squeeze(axes)
    if count.ndim:
        count = count.reshape(()) if count.size == 1 else count if keepdims else count.squeeze(axes)
    return Moments(count, mean, var)
