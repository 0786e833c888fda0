"""Gradient accumulation: a batch in micro-batches, one after the other, and their moments merged into one."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.sharding import PartitionSpec as P
from jax.typing import ArrayLike

from bnjax import _checks as checks
from bnjax._collectives.psum import num_shards
from bnjax._core.moments import Moments, reduce
from bnjax._unstable import varying


def accumulate(f: Callable[[Any], Any], batch: Any, k: int, *, weight: Callable[[Any], ArrayLike] | None = None) -> Any:
    """`f` of `k` micro-batches, one after the other: its results averaged, the moments among them merged.

    For batches whose activations do not fit in memory at once. Each micro-batch is still normalized by its own
    statistics: this is not batch normalization over the whole batch, whose statistics are unknown until the last
    micro-batch has been seen. The mean of the gradients and the moments are those of the whole batch. From these
    moments the running state takes one step (`update_batch_stats`), not `k`.

    Equivalent, compiled once as a `lax.scan`, to::

        results = [f(jax.tree.map(lambda t: t[i], micro_batches(batch, k))) for i in range(k)]
        mean = jax.tree.map(lambda *t: sum(t) / k, *results)  # of `Moments`: bnjax.reduce of the stacked ones

    Args:
      f: from a micro-batch to a pytree of arrays and `Moments`: gradients, metrics, what the modules hand out. It
        must be pure: all calls use the running state from before the step (nnx: call `nnx.merge` inside).
      batch: a pytree of arrays with one length of axis 0, which `k` divides: micro-batch i has the examples i, i + k,
        ..., see `micro_batches`.
      k: the number of micro-batches.
      weight: from a micro-batch to the weight of its results: the number of valid examples, for results that are means
        over those. Results of weight zero may be NaN. Under a named axis it is the number on all devices,
        `lax.psum`. By default all weigh the same. Moments have their counts.

    Returns:
      What `f` returns, in the same dtypes, but integers become floats. Sums are float32 or wider.

    Raises:
      ValueError: `k` that does not divide the batch, or leaves less of it to a device than one example each.

    >>> from bnjax import moments
    >>> x = jnp.arange(6.0)
    >>> mean, m = accumulate(lambda x: (x.mean(), moments(x, 0)), x, 3)
    >>> print(mean, m.count, m.mean, m.var.round(4))
    2.5 6.0 2.5 2.9167
    """
    parts = micro_batches(batch, k)
    seen: list[Any] = []  # the structure and dtypes of what `f` returns, known once it is traced

    def weighed(part: Any) -> tuple[list[Array], list[Moments]]:
        """The weight, then all that is averaged times the weight; and the moments."""
        leaves, structure = jax.tree.flatten(f(part), is_leaf=_is_moments)
        leaves = [t if _is_moments(t) else jnp.asarray(t) for t in leaves]
        seen[:] = structure, [None if _is_moments(t) else t.dtype for t in leaves]
        w = _weight(weight, part)
        return [w, *(_weighted(w, t) for t in leaves if not _is_moments(t))], [t for t in leaves if _is_moments(t)]

    def step(total: list[Array], part: Any) -> tuple[list[Array], list[Moments]]:
        sums, ms = weighed(part)
        return [a + b for a, b in zip(total, sums, strict=True)], ms

    types, _ = jax.eval_shape(lambda parts: weighed(jax.tree.map(lambda t: t[0], parts)), parts)
    (w, *sums), stacked = lax.scan(step, [_zeros(t) for t in types], parts)
    means = (jnp.where(w > 0, t / jnp.where(w > 0, w, 1).astype(t.dtype), 0) for t in sums)
    merged = (dataclasses.replace(m, **vars(reduce(m))) for m in stacked)
    structure, dtypes = seen
    return structure.unflatten([next(merged) if d is None else _rounded(next(means), d) for d in dtypes])


def micro_batches(batch: Any, k: int) -> Any:
    """`batch` in `k` micro-batches, stacked: micro-batch i has the examples i, i + k, i + 2 k, ...

    Strided, because then every micro-batch of a sharded batch lies evenly on all devices, and nothing moves. A
    contiguous slice would lie on a few devices. Equivalent to `t.reshape(len(t) // k, k, ...).swapaxes(0, 1)`.

    Args:
      batch: a pytree of arrays with one length of axis 0, sharded over an Auto or an Explicit mesh or not at all.
      k: the number of micro-batches.

    Raises:
      ValueError: `k` that does not divide the batch; on an Explicit mesh, fewer examples in a micro-batch than shards.

    >>> print(micro_batches(jnp.arange(6), 2))
    [[0 2 4]
     [1 3 5]]
    """
    arrays = jax.tree.map(jnp.asarray, batch)
    sizes = sorted({t.shape[0] if t.ndim else 0 for t in jax.tree.leaves(arrays)})
    if not isinstance(k, int | np.integer) or k < 1 or len(sizes) != 1 or not sizes[0] or sizes[0] % k:
        raise ValueError(
            "`k` must be a positive integer that divides the batch, the one length of axis 0 of all arrays in `batch`, "
            f"but it is {k!r} for lengths {sizes}."
        )
    return jax.tree.map(partial(_strided, k=int(k)), arrays)


def _strided(t: Array, k: int) -> Array:
    n, sharding = t.shape[0] // k, jax.typeof(t).sharding
    shards = num_shards(t, 0)
    if n % shards:
        raise ValueError(
            f"`k` must leave each of the {shards} shards of axis 0 as many examples of a micro-batch, but it is {k} "
            f"for a batch of {t.shape[0]}; take a smaller `k` or a larger batch."
        )
    spec = P(sharding.spec[0], None, *sharding.spec[1:]) if any(sharding.spec) else None
    return lax.reshape(t, (n, k, *t.shape[1:]), out_sharding=spec).swapaxes(0, 1)


def _is_moments(t: Any) -> bool:
    return isinstance(t, Moments)


def _weight(weight: Callable[[Any], ArrayLike] | None, part: Any) -> Array:
    w = jnp.asarray(1.0 if weight is None else weight(part), float)
    if w.shape:
        raise ValueError(f"`weight` must return a number, but what it returned has the shape {w.shape}.")
    return w


def _weighted(w: Array, t: ArrayLike) -> Array:
    """`w * t` in float32 or wider; zero where `w` is zero, even if `t` is NaN."""
    dtype = checks.stat_dtype(t) if jnp.issubdtype(jnp.result_type(t), jnp.inexact) else jnp.float32
    return jnp.where(w > 0, w.astype(dtype) * jnp.asarray(t, dtype), jnp.zeros((), dtype))


def _zeros(t: Any) -> Array:
    """Zeros of a type: its shape, dtype, sharding, and the named axes along which it varies."""
    zeros = jnp.zeros_like(t)  # may lack the varying axes, added next
    return lax.pcast(zeros, tuple(varying(t) - varying(zeros)), to="varying")


def _rounded(t: Array, dtype: Any) -> Array:
    return t.astype(dtype) if jnp.issubdtype(dtype, jnp.inexact) else t
