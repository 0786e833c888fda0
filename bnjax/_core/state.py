"""The running state of batch norms: its step, and the running statistics of whole models.

A model's `batch_stats` is any pytree: a linen collection, an `nnx.State` or its pure dict, a dict of `Moments`.
What counts is how leaves are named: a `mean` and a `var` side by side are a pair.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.tree_util import GetAttrKey, tree_flatten_with_path
from jax.typing import ArrayLike

from bnjax import _checks as checks
from bnjax._collectives.psum import AxisName, pmax
from bnjax._core.moments import Moments, all_reduce, average, merge

Path = tuple[Any, ...]
TINY_WEIGHT = 2.0**-50  # any real count outweighs it


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Update(Moments):
    """The moments of a batch, and how the running state steps by them. Modules hand these out."""

    momentum: float | None = dataclasses.field(default=None, metadata={"static": True})
    unbiased: bool = dataclasses.field(default=False, metadata={"static": True})


checks.in_exported_files(Update, "bnjax.Update")


def check_momentum(momentum: ArrayLike | None, unbiased: bool) -> None:
    """Raises for arguments that `next_state` cannot use."""
    if momentum is not None:
        checks.unit_interval(momentum, "momentum", checks.MOMENTUM_HINT)
    elif unbiased:
        raise ValueError("`unbiased=True` needs a `momentum`: `momentum=None` merges biased moments.")


def next_state(running: Moments, batch: Moments, momentum: ArrayLike | None, unbiased: bool) -> Moments:
    """The running state after a batch: `ema`, or without a momentum `merge`. Options are those of `check_momentum`."""
    if momentum is None:
        if batch.count.ndim and not jnp.ndim(running.count):
            raise ValueError(
                "`running.count` must have the shape of the features, because `where` varies over them and "
                "`momentum=None` counts; its shape is ()."
            )
        merged = merge(running, batch)
        return jax.tree.map(
            lambda new, old: jnp.broadcast_to(new, jnp.shape(old)).astype(jnp.asarray(old).dtype),
            merged,
            running,
        )
    if unbiased:
        n = batch.count
        batch = dataclasses.replace(batch, var=batch.var * (n / jnp.maximum(n - 1, 1)))
    return average(running, batch, momentum)


def update_batch_stats(batch_stats: Any, batch_moments: Any) -> Any:
    """The running statistics of a model after one step: one `ema` (or `merge`) a norm, by its own momentum.

    Args:
      batch_stats: the old running statistics; a linen collection, an `nnx.State` or its pure dict.
      batch_moments: what the modules of the model handed out, reduced by `accumulate` perhaps. Linen: the
        collection `batch_moments`. Nnx: the second result of `nnx.capture(f, bnjax.nnx.BatchMoments)`. Norms that
        handed out nothing keep their state; one that was called twice takes two steps, in the order of the calls.

    Returns:
      `batch_stats`, with new arrays of the same dtypes.

    Raises:
      ValueError: moments of a module that has no running statistics there, or statistics of another width; no moments
        at all, where there are running statistics.

    >>> old = {"norm": {"mean": jnp.zeros(2), "var": jnp.ones(2)}}
    >>> batch = Update(jnp.array(8.0), jnp.array([1.0, 2.0]), jnp.ones(2), momentum=0.5)
    >>> print(update_batch_stats(old, {"norm": {"batch": (batch,)}})["norm"]["mean"])
    [0.5 1. ]
    """
    named, structure = named_leaves(batch_stats)
    given = named_leaves(batch_moments)[0]
    pairs = [path[:-1] for path in named if path and path[-1] == "mean" and (*path[:-1], "var") in named]
    if pairs and not given:
        raise ValueError(
            f"`batch_moments` holds no moments ({batch_moments!r:.80}), but `batch_stats` has running statistics at "
            f"{', '.join(map(_shown, pairs[:5]))}. Call the model in training and, linen, with "
            '`mutable="batch_moments"`; nnx, take the second result of `nnx.capture(f, bnjax.nnx.BatchMoments)`. Leave '
            "out the update where all norms are evaluated."
        )
    for path, batch in given.items():
        if not isinstance(batch, Update):
            raise ValueError(
                f"`batch_moments` must hold what the modules handed out, but at {_shown(path)} it has {batch!r:.80}."
            )
        owner = path[:-2]  # then the variable's name and the number of the call
        old = {name: named[*owner, name] for name in ("count", "mean", "var") if (*owner, name) in named}
        if not {"mean", "var"} <= old.keys():
            raise ValueError(
                f"`batch_stats` has no `mean` and `var` at {_shown(owner)}, where `batch_moments` has moments; pass "
                f"the statistics of the same model. It has {', '.join(map(_shown, named)) or 'nothing'}."
            )
        if np.size(old["mean"]) != batch.mean.size:
            raise ValueError(
                f"`batch_stats` has a `mean` of shape {jnp.shape(old['mean'])} at {_shown(owner)}, but the moments "
                f"of the batch there have the shape {batch.mean.shape}; pass the statistics of the same model."
            )
        named |= {(*owner, name): leaf for name, leaf in _step(old, batch).items()}
    return structure.unflatten(named.values())


def sync_batch_stats(batch_stats: Any, axis_name: AxisName, counts: ArrayLike | None = None) -> Any:
    """Per-device running statistics of a whole model, pooled: each pair becomes that of all devices' data together.

    To be called before evaluating, checkpointing or resuming with `axis_name` what was trained with statistics of
    each device by itself. Flax's advice for it, `lax.pmean(batch_stats)`, loses the variance between devices. The
    cost are two all-reduces for the whole model.

    Equivalent, for every pair, to `all_reduce(Moments(counts, mean, var), axis_name)`.

    Args:
      batch_stats: this device's; a linen collection, an `nnx.State` or its pure dict, or any pytree. A `mean` and
        a `var` of one shape side by side are a pair, weighted by the `count` beside them if any device has one above
        zero. Every other floating-point leaf is averaged (spectral norm's `u` and `sigma` are equal on all
        devices); a `count` too, so that it is the device's share of what all have seen, pooling again changes
        nothing, and training may go on per device. Of integers it is the largest.
      axis_name: a name, or a tuple of names, of `pmap`, `shard_map` or `vmap`.
      counts: a number, what this device's statistics weigh: the valid elements or examples it has seen. By default,
        or where it is 0 on all of them, devices weigh the same.

    Returns:
      `batch_stats` with new arrays of the same dtypes, equal on all devices.

    Raises:
      ValueError: a `mean` and a `var` of different shapes; `counts` that is no number.

    >>> stats = {"norm": {"mean": jnp.array([[0.0], [4.0]]), "var": jnp.ones((2, 1))}}  # of two devices
    >>> pooled = jax.vmap(lambda s: sync_batch_stats(s, "device"), axis_name="device")(stats)
    >>> print(pooled["norm"]["mean"][0], pooled["norm"]["var"][0])
    [2.] [5.]
    """
    if counts is not None and jnp.shape(counts) != ():
        raise ValueError(
            f"`counts` must be a number, what this device weighs, but its shape is {jnp.shape(counts)}; under `pmap` "
            "or `vmap` map it over axis 0, under `shard_map` index it."
        )
    if axis_name is None:
        raise ValueError(
            "`axis_name` must be a name, or a tuple of names, of `pmap`, `shard_map` or `vmap`, but it is None; under "
            "plain `jit` running statistics are one set, and nothing is to be pooled."
        )
    weight = jnp.asarray(1.0) if counts is None else jnp.maximum(jnp.asarray(counts, float), TINY_WEIGHT)
    named, structure = named_leaves(batch_stats)
    axis_name = checks.hashable_name(axis_name)
    for path, leaf in named.items():
        if jnp.issubdtype(jnp.result_type(leaf), jnp.integer):
            named[path] = pmax(leaf, axis_name)
    entries = list(_entries(named, weight))
    if entries:
        pooled = all_reduce(_joined([e.moments for e in entries]), axis_name)
        ends = np.cumsum([e.moments.mean.size for e in entries])[:-1]
        for e, mean, var in zip(entries, jnp.split(pooled.mean, ends), jnp.split(pooled.var, ends), strict=True):
            named[e.mean] = _like(named[e.mean], mean)
            if e.var is not None:
                named[e.var] = _like(named[e.var], var)
    return structure.unflatten(named.values())


class _Entry(NamedTuple):
    """A pair of mean and variance, or another leaf, which is averaged like a mean."""

    mean: Path
    var: Path | None
    moments: Moments  # flat


def _entries(named: dict[Path, Any], weight: Array) -> Iterator[_Entry]:
    for path, leaf in named.items():
        *owner, name = path or (None,)
        pair = {field: (*owner, field) for field in ("count", "mean", "var")}
        is_pair = name in ("mean", "var") and {pair["mean"], pair["var"]} <= named.keys()
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.inexact) or (is_pair and name == "var"):
            continue
        mean = jnp.asarray(leaf)
        if not is_pair:
            flat = mean.reshape(-1)
            yield _Entry(path, None, Moments(jnp.ones(flat.shape), flat, jnp.zeros(flat.shape)))
            continue
        var, count = jnp.asarray(named[pair["var"]]), named.get(pair["count"])
        if var.shape != mean.shape:
            raise ValueError(
                f"`batch_stats` has a `mean` of shape {mean.shape} and a `var` of shape {var.shape} at "
                f"{_shown(owner)}; the two of a pair must have the same."
            )
        own = weight if count is None else jnp.maximum(jnp.asarray(count, float), weight * TINY_WEIGHT)
        own = jnp.broadcast_to(_leading(own, mean.ndim), mean.shape)
        yield _Entry(pair["mean"], pair["var"], Moments(*(t.reshape(-1) for t in (own, mean, var))))


def _joined(parts: Sequence[Moments]) -> Moments:
    """Flat moments, one after the other, in the widest of their dtypes."""
    dtype = checks.stat_dtype(*(m.mean for m in parts), *(m.var for m in parts))
    real = checks.real_dtype(dtype)
    join = lambda name, dtype: jnp.concatenate([getattr(m, name).astype(dtype) for m in parts])  # noqa: E731
    return Moments(join("count", real), join("mean", dtype), join("var", real))


def _step(old: dict[str, Any], batch: Update) -> dict[str, Array]:
    """A module's `mean`, `var` and perhaps `count`, of whatever shape holds the features, after a batch."""
    shape = batch.mean.shape
    mean = jnp.asarray(old["mean"])
    if jnp.iscomplexobj(batch.mean):
        mean = mean.astype(checks.wider(mean.dtype, jnp.complex64))
    count = jnp.asarray(old["count"]).reshape(shape) if "count" in old else jnp.zeros(())
    running = Moments(count, mean.reshape(shape), jnp.asarray(old["var"]).reshape(shape))
    batch = dataclasses.replace(batch, count=_leading(batch.count, len(shape)))
    check_momentum(batch.momentum, batch.unbiased)
    new = next_state(running, batch, batch.momentum, batch.unbiased)
    return {name: getattr(new, name).reshape(jnp.shape(leaf)) for name, leaf in old.items()}


def _like(old: Any, flat: Array) -> Array:
    """`flat` with the shape and dtype of `old`."""
    old = jnp.asarray(old)
    if not jnp.iscomplexobj(old):
        flat = flat.real
    return flat.reshape(old.shape).astype(old.dtype)


def _leading(count: Array, ndim: int) -> Array:
    """`count` at rank `ndim`: its own axes come first, as when modules are stacked by `vmap` or `scan`."""
    return count.reshape(count.shape + (1,) * (ndim - count.ndim)) if count.ndim else count


def named_leaves(tree: Any) -> tuple[dict[Path, Any], Any]:
    """The leaves by the names on their paths, and the structure. An `Update` is one leaf; boxes have no name."""
    leaves, structure = tree_flatten_with_path(tree, is_leaf=lambda t: isinstance(t, Update))
    boxed = GetAttrKey("value")
    return {tuple(map(key_name, (k for k in path if k != boxed))): leaf for path, leaf in leaves}, structure


def key_name(key: Any) -> Any:
    """The name of one step of a path through a tree."""
    return next(getattr(key, field) for field in ("key", "name", "idx") if hasattr(key, field))


def _shown(path: Sequence[Any]) -> str:
    return "/".join(map(str, path)) or "the top"
