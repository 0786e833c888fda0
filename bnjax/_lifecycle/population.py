"""The statistics of a whole population, from the moments of its batches.

While batches are measured, four more leaves stand beside the mean and the variance of each norm in the running state:
count, mean and variance of what was measured so far, and the number of calls. All have the shape of the mean, so that
what stacks the state of a norm (`scan`, `vmap`) stacks them alike, along whichever axis.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import jax.numpy as jnp
from jax import Array

from bnjax import _checks as checks
from bnjax._core.moments import Moments, average, merge

Law = Literal["merge", "average"]
LAWS = ("merge", "average")
MEASURED = ("count", "mean", "var", "calls")
PREFIX = "measured_"  # of the leaves in the state

Measured = Mapping[str, Array]  # by the names in MEASURED


def nothing_measured(mean: Any) -> dict[str, Array]:
    """The measurement of a norm before its first batch."""
    dtype = checks.wider(jnp.result_type(mean), jnp.float32)
    real = checks.real_dtype(dtype)
    return {name: jnp.zeros(jnp.shape(mean), dtype if name == "mean" else real) for name in MEASURED}


def add(so_far: Measured, batch: Moments, law: Law) -> dict[str, Array]:
    """The measurement with one more call of the norm."""
    shape = so_far["mean"].shape
    count = jnp.broadcast_to(batch.count, batch.mean.shape).reshape(shape)
    batch = Moments(count, batch.mean.reshape(shape), batch.var.reshape(shape))
    new = combine(Moments(so_far["count"], so_far["mean"], so_far["var"]), batch, law)
    parts = {"count": new.count, "mean": new.mean, "var": new.var, "calls": so_far["calls"] + 1}
    return {name: part.astype(so_far[name].dtype) for name, part in parts.items()}


def combine(a: Moments, b: Moments, law: Law) -> Moments:
    """Two measurements as one, weighted by count: `"merge"` is exact, `"average"` leaves out the variance between."""
    if law == "merge":
        return merge(a, b)
    count = a.count + b.count
    share = a.count / jnp.where(count > 0, count, 1)
    mixed = average(a, b, share)
    return Moments(count, mixed.mean, mixed.var)


def with_prior(old: Mapping[str, Any], measured: Measured, prior: float, examples: float, law: Law) -> dict[str, Array]:
    """The new mean and variance; the old ones weigh as much as `prior` of `examples`.

    Where nothing was measured the old ones stay.
    """
    seen = measured["count"] > 0
    new = {"mean": measured["mean"], "var": measured["var"]}
    if prior:
        dtype = measured["mean"].dtype
        before = Moments(jnp.float32(prior), jnp.asarray(old["mean"], dtype), jnp.asarray(old["var"], new["var"].dtype))
        after = combine(before, Moments(jnp.float32(examples), new["mean"], new["var"]), law)
        new = {"mean": after.mean, "var": after.var}
    return {name: jnp.where(seen, value, old[name]) for name, value in new.items()}
