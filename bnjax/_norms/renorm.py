"""Batch renormalization: batch norm that trains as it will be evaluated, up to limits."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike, DTypeLike

from bnjax import _checks as checks
from bnjax import _masks as masks
from bnjax._collectives.psum import AxisName
from bnjax._core.moments import Moments, ema, of_features
from bnjax._core.normalize import normalize_prepared
from bnjax._core.prepare import Arguments, prepare
from bnjax._core.rule import Reduction, standardize
from bnjax._norms.measure import at_rank
from bnjax._norms.spec import RUNNING, Gradient, Measured, Spec, Sync, number


def batch_renorm(
    x: ArrayLike,
    running: Moments,
    scale: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    *,
    r_max: ArrayLike = 3.0,
    d_max: ArrayLike = 5.0,
    tracks: Literal["std", "var"] = "std",
    axis: checks.Axes = -1,
    momentum: ArrayLike = 0.99,
    epsilon: ArrayLike = 1e-3,
    where: ArrayLike | None = None,
    zero_masked: bool = False,
    axis_name: AxisName | None = None,
    train: bool = True,
    dtype: DTypeLike | None = None,
) -> tuple[Array, Moments]:
    """Batch renormalization: the output, and the new running state.

    Equivalent, with s the root of variance + `epsilon`, r and d constants to autodiff::

        r = jnp.clip(s_batch / s_running, 1 / r_max, r_max)
        d = jnp.clip((batch.mean - running.mean) / s_running, -d_max, d_max)
        y = ((x - batch.mean) / s_batch * r + d) * scale + bias
        s_running = momentum * s_running + (1 - momentum) * s_batch

    `tracks="var"` averages the variance, as batch norm does::

        running = ema(running, batch, momentum)  # instead of the last line

    `r_max=1, d_max=0` is batch norm, in the second form. The paper begins with these limits, and after 5,000 steps
    opens to `r_max=3` at step 40,000 and `d_max=5` at 25,000; the modules take schedules for that:
    `optax.linear_schedule(1.0, 3.0, 35_000, 5_000)` and `optax.linear_schedule(0.0, 5.0, 20_000, 5_000)`.

    Args:
      x: real, channels last by default. Statistics are float32 or wider.
      running: the state, of the features' shape; its mean is the pivot of the measurement. Either form keeps a
        variance, the first form s_running^2 - `epsilon`, so that evaluation is `normalize(x, running)`.
      scale: of the features' shape, or of the rank of `x` and broadcastable to it.
      bias: likewise.
      r_max: limit of r, at least 1.
      d_max: limit of d, not negative.
      tracks: what the running state averages: `"std"`, as in the paper, or `"var"`, as in CrossQ.
      axis: the feature axes; all others are measured over.
      momentum: the fraction of the running state that is kept (1 - PyTorch's).
      epsilon: added to the variances.
      where: broadcastable to `x`, non-zero is valid. What is masked out counts for nothing in the statistics.
      zero_masked: make zero what is masked out, in the result and in all gradients, whatever stands there.
      axis_name: a name or names of `pmap`, `shard_map` or `vmap` to measure over too.
      train: without, `normalize(x, running, scale, bias)`; the state comes back as it is.
      dtype: of the output; that of `x` by default.

    Raises:
      ValueError: an argument that does not fit, by its name.

    References:
      Ioffe, Batch Renormalization, 2017 (arXiv 1702.03275). CrossQ: Bhatt et al., 2024 (arXiv 1902.05605).

    >>> running = Moments(jnp.zeros(()), jnp.zeros(1), jnp.ones(1))
    >>> y, _ = batch_renorm(jnp.array([[1.0], [3.0]]), running, epsilon=0.0)
    >>> print(y.ravel())
    [1. 3.]
    """
    checks.choice(tracks, "tracks", ("std", "var"))
    arguments = Arguments(scale, bias, axis, epsilon, where, zero_masked, dtype=dtype)
    ops = prepare(x, arguments, real=True, round_last=train)
    old = at_rank(running, ops)
    if not train:
        return normalize_prepared(ops, running), running
    _check_limits(r_max, d_max)
    affine = ops.affine
    reduction = Reduction(ops.others, checks.hashable_name(axis_name))
    y, batch = standardize(ops.config, reduction, ops.x, affine._replace(bias=None), old.mean, ops.mask)
    r, d = _corrections(old, batch, affine.epsilon, r_max, d_max)
    shift = d if affine.scale is None else d * checks.widened(affine.scale, d)
    y = y * r + (shift if affine.bias is None else shift + checks.widened(affine.bias, d))
    new = of_features(batch, jnp.shape(running.mean))
    state = ema(running, new, momentum) if tracks == "var" else _ema_of_roots(running, new, momentum, epsilon)
    return masks.valid(ops.zero, y.astype(ops.dtype)), lax.stop_gradient(state)


def _ema_of_roots(running: Moments, batch: Moments, momentum: ArrayLike, epsilon: ArrayLike) -> Moments:
    """`ema` of the means and of the standard deviations, which are kept as variances."""
    dtype = checks.stat_dtype(running.var, batch.var)
    root = lambda m: Moments(m.count, m.mean, jnp.sqrt(jnp.asarray(m.var, dtype) + epsilon))  # noqa: E731
    state = ema(root(running), root(batch), momentum)
    var = jnp.maximum(jnp.square(state.var) - epsilon, 0)
    var = jnp.where(batch.count > 0, var, running.var).astype(jnp.asarray(running.var).dtype)
    return Moments(state.count, state.mean, var)


def _corrections(
    old: Moments, batch: Moments, epsilon: Array, r_max: ArrayLike, d_max: ArrayLike
) -> tuple[Array, Array]:
    """r and d, constants to autodiff."""
    old = lax.stop_gradient(old)  # the moments of the batch are constants already
    s, root = jnp.sqrt(old.var + epsilon), jnp.sqrt(batch.var + epsilon)
    seen = batch.count > 0
    r = jnp.where(seen, jnp.clip(root / s, 1 / jnp.asarray(r_max, s.dtype), r_max), 1)
    d = jnp.where(seen, jnp.clip((batch.mean - old.mean) / s, -jnp.asarray(d_max, s.dtype), d_max), 0)
    return r, d


def _check_limits(r_max: ArrayLike, d_max: ArrayLike) -> None:
    checks.at_least(r_max, "r_max", 1, " r is clipped to 1 / r_max and r_max.")
    checks.non_negative(d_max, "d_max")


class ScheduledMoments(NamedTuple):
    """The running state of the modules: it counts their steps."""

    step: Array
    mean: Array
    var: Array


def _scheduled_renorm(
    x: Array, *, running: ScheduledMoments, r_max: Any, d_max: Any, train: bool, **options: Any
) -> tuple[Array, ScheduledMoments]:
    """`batch_renorm`, whose limits may be schedules: functions of the number of steps taken."""
    limits = {n: v(running.step) if callable(v) else v for n, v in (("r_max", r_max), ("d_max", d_max))}
    moments = Moments(jnp.zeros(()), running.mean, running.var)
    y, moments = batch_renorm(x, moments, train=train, **limits, **options)
    # In the dtype that it has: an averaged state, or that of an older checkpoint, may have another than ours.
    step = jnp.asarray(running.step)
    return y, ScheduledMoments(step + jnp.asarray(train, step.dtype), moments.mean, moments.var)


BATCH_RENORM = Spec(
    name="renorm",
    function=batch_renorm,
    module="BatchRenorm",
    statistics=(Measured("NHW"),),
    sync=Sync.YES,
    gradient=Gradient.CONSTANT_CORRECTION,
    variables=RUNNING | {"step": number(0)},  # a float: averages of states keep its dtype
    pack=ScheduledMoments,
    called=_scheduled_renorm,
    paper="Ioffe 2017, arXiv 1702.03275",
    use="small batches, or batches whose examples resemble each other",
)
SPECS = (BATCH_RENORM,)
