"""Batch normalization: measure, combine, normalize, and a running state in and out."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import ArrayLike, DTypeLike

from bnjax import _checks as checks
from bnjax._collectives.psum import AxisName, Groups, num_shards
from bnjax._core.affine_map import Activation, activate
from bnjax._core.moments import Moments, all_reduce, broadcast_count, of_features, of_sums, reduce, sums_about
from bnjax._core.prepare import Arguments, Prepared, prepare
from bnjax._core.rule import Reduction, pivot_of, standardize
from bnjax._core.state import check_momentum, next_state
from bnjax._norms.spec import RUNNING, Measured, Spec, Sync


def batch_norm(
    x: ArrayLike,
    running: Moments,
    scale: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    *,
    axis: checks.Axes = -1,
    momentum: ArrayLike | None = 0.99,
    epsilon: ArrayLike = 1e-5,
    where: ArrayLike | None = None,
    zero_masked: bool = False,
    axis_name: AxisName | None = None,
    axis_index_groups: Groups = None,
    virtual_batch_size: int | None = None,
    unbiased: bool = False,
    pivot: checks.Pivot = "running",
    residual: ArrayLike | None = None,
    activation: Activation = None,
    dtype: DTypeLike | None = None,
) -> tuple[Array, Moments]:
    """Batch normalization in training: the output, and the new running state.

    At evaluation there is nothing to measure: `normalize(x, running, scale, bias)`. Equivalent, but keeping
    more for the backward pass::

        batch = all_reduce(moments(x, measured_axes, where=where), axis_name)
        y = normalize(x, batch, scale, bias, residual=residual, activation=activation)
        running = jax.lax.stop_gradient(ema(running, batch, momentum))

    Args:
      x: floating-point or complex; channels last by default. Statistics are float32 or wider.
      running: the state, of the features' shape; comes back with the shapes and dtypes it had.
      scale: of the features' shape, or of the rank of `x` and broadcastable to it (per example).
      bias: likewise.
      axis: the feature axes, as in Flax; all others are measured over.
      momentum: the fraction of the running state that is kept (1 - PyTorch's). `None` merges instead: the
        exact pool of all that was seen, weighted by count (PyTorch averages batches equally).
      epsilon: added to the variance.
      where: broadcastable to `x`, non-zero is valid. What is masked out counts for nothing in the statistics;
        it goes through the same map, with its gradient. A feature with nothing valid becomes `bias`, has no
        gradient to `x`, and keeps its running state.
      zero_masked: make zero what is masked out, in the result and in all gradients, whatever stands there.
      axis_name: a name or names of `pmap`, `shard_map` or `vmap` to measure over too. Under plain `jit` a
        sharded batch needs none.
      axis_index_groups: groups of devices along `axis_name`, where JAX takes them.
      virtual_batch_size: measure every contiguous slice of this many examples (of axis 0) by itself: ghost
        batches. Slices stay on their device; the running state takes one step, with all slices merged.
      unbiased: keep n/(n - 1) times the variance in the running state, as PyTorch does.
      pivot: the number near which statistics are measured; it decides cost and accuracy, not the result.
        `"running"`: the running mean, one pass; exact once the running mean is near the data.
        `"sample"`: a sample of `x`, right from the first step (under a mask the mean: two passes).
        `None`: two passes. `"zero"` and `"auto"`: as in `layer_norm`.
      residual: of the shape of `x`; added after the affine map, before the activation.
      activation: `None`, `"relu"` (inside the rule), or by plain autodiff `"gelu"` (approximate, as `jax.nn.gelu`),
        `"silu"` or a callable.
      dtype: of the output; that of `x` by default.

    Raises:
      ValueError: an argument that does not fit, by its name; one value per feature and no `axis_name` that
        could add some.

    References:
      Ioffe and Szegedy, Batch Normalization, 2015 (arXiv 1502.03167). Ghost batches: Hoffer et al., Train longer,
      generalize better, 2017 (arXiv 1705.08741).

    >>> x = jnp.array([[1.0, 0.0], [3.0, 4.0]])
    >>> y, running = batch_norm(x, Moments(jnp.zeros(()), jnp.zeros(2), jnp.ones(2)), momentum=0.5)
    >>> print(y.round(3), running.mean, running.var)
    [[-1. -1.]
     [ 1.  1.]] [1. 1.] [1.  2.5]
    """
    ops = prepare(x, Arguments(scale, bias, axis, epsilon, where, zero_masked, residual, activation, dtype))
    options = BatchOptions(momentum, unbiased, axis_name, axis_index_groups, virtual_batch_size, pivot)
    y, state, _ = normalize_and_step(ops, running, options)
    return y, state


class BatchOptions(NamedTuple):
    """How batch norm measures its batch, and how its running state steps, as the caller gave it."""

    momentum: ArrayLike | None = 0.99
    unbiased: bool = False
    axis_name: AxisName | None = None
    axis_index_groups: Groups = None
    virtual_batch_size: int | None = None
    pivot: checks.Pivot = "running"
    local_only: bool = False  # measure this device's batch, whole, in two passes; one value per feature is no error
    keeps_state: bool = True  # if not, the running state comes back as it is


def normalize_and_step(ops: Prepared, running: Moments, options: BatchOptions) -> tuple[Array, Moments, Moments]:
    """`batch_norm` of a prepared call: the output, the new running state, and the moments of the batch."""
    # Check.
    options = _checked_options(options, ops, running)
    running = lax.stop_gradient(running)
    mean = checks.feature_array(running.mean, "running.mean", ops.x.shape, ops.features)
    if options.virtual_batch_size is None:
        # Measure, combine, normalize. One rule does the three, because its derivative needs them together.
        reduction = Reduction(ops.others, options.axis_name, options.axis_index_groups)
        c = pivot_of(options.pivot, ops.config, reduction, ops.x, ops.mask, mean)
        y, batch = standardize(ops.config, reduction, ops.x, ops.affine, c, ops.mask)
    else:
        # Measure and normalize each slice, then combine the slices.
        y, slices = _normalized_slices(ops, mean, options.virtual_batch_size, options.pivot)
        batch = _combined(slices, mean, options)
    y = activate(y, ops.activation, ops.zero)
    batch = of_features(batch, jnp.shape(running.mean))
    # Step.
    state = next_state(running, batch, options.momentum, options.unbiased) if options.keeps_state else running
    return y, state, batch


def _normalized_slices(ops: Prepared, mean: Array, size: int, pivot: checks.Pivot) -> tuple[Array, Moments]:
    """The output, and the moments of each slice, stacked."""
    arrays = ops.x, ops.affine, ops.mask, mean
    x, affine, mask, means = _slices(arrays, ops.x.shape[0], size)
    reduction = Reduction(tuple(a + 1 for a in ops.others))
    c = pivot_of(pivot, ops.config, reduction, x, mask, means)
    y, slices = standardize(ops.config, reduction, x, affine, c, mask)
    return y.reshape(ops.x.shape), slices


def _combined(slices: Moments, mean: Array, options: BatchOptions) -> Moments:
    """The moments of all slices, here and on the other devices."""
    common = mean if options.pivot == "running" else None
    batch = reduce(slices) if common is None else _reduce_about(common, slices)
    if options.axis_name is None:
        return batch
    return all_reduce(batch, options.axis_name, pivot=common, axis_index_groups=options.axis_index_groups)


def _checked_options(options: BatchOptions, ops: Prepared, running: Moments) -> BatchOptions:
    """`options` that fit the call, with names and groups that are hashable."""
    check_momentum(options.momentum, options.unbiased)
    checks.choice(options.pivot, "pivot", checks.PIVOTS)
    _check_running(running, ops)
    if options.axis_index_groups is not None and options.axis_name is None:
        raise ValueError("`axis_index_groups` are groups along `axis_name`, which is None; name the axis too.")
    _check_virtual_batch(options.virtual_batch_size, ops, options.local_only)
    if options.local_only:
        return options._replace(axis_name=None, axis_index_groups=None, virtual_batch_size=None, pivot=None)
    if options.axis_name is None or options.virtual_batch_size is not None:
        _check_several_values(ops.x, ops.others, options.virtual_batch_size)
    names, groups = checks.hashable_name(options.axis_name), checks.hashable(options.axis_index_groups)
    return options._replace(axis_name=names, axis_index_groups=groups)


def _check_running(running: Moments, ops: Prepared) -> None:
    """Raises for a running state that does not fit."""
    x, features = ops.x, ops.features
    checks.float_state(running, "running", "Moments", "mean", "var")
    want = tuple(x.shape[a] for a in features)
    for name in ("mean", "var"):
        checks.state_shape(getattr(running, name), f"running.{name}", x.shape, features)
    if jnp.shape(running.count) not in ((), want):
        raise ValueError(f"`running.count` must have the shape () or {want}, but it is {jnp.shape(running.count)}.")
    if jnp.issubdtype(ops.config.compute_dtype, jnp.complexfloating) and not jnp.iscomplexobj(running.mean):
        raise ValueError(
            f"`running.mean` must be complex for a complex `x`, but its dtype is {jnp.asarray(running.mean).dtype}; "
            "write `running.mean.astype(x.dtype)`."
        )


def check_virtual_batch_size(size: int | None) -> None:
    """Raises unless `size` is `None` or a positive integer."""
    if size is not None and (isinstance(size, bool) or not isinstance(size, int | np.integer) or size < 1):
        raise ValueError(
            "`virtual_batch_size` must be a positive integer, the examples of a slice that divides the batch, or None, "
            f"but it is {size!r}."
        )


def _check_virtual_batch(size: int | None, ops: Prepared, local_only: bool) -> None:
    """Raises for slices that do not divide the batch, or the part of it that a device has."""
    check_virtual_batch_size(size)
    x, features = ops.x, ops.features
    if size is None:
        return
    if 0 in features:
        raise ValueError(f"`virtual_batch_size` slices axis 0, but `axis` makes it a feature axis: {features}.")
    symbol = not isinstance(x.shape[0], int)
    if local_only and not symbol and x.shape[0] < size:  # models are often initialised with one example
        return
    if x.shape[0] % size:
        raise ValueError(
            f"`virtual_batch_size` must be a positive integer that divides the batch, but it is {size!r} for a "
            f"batch of {x.shape[0]}"
            + (f', a symbol of `jax.export`; export a multiple, `symbolic_shape("{size}*n, ...")`.' if symbol else ".")
        )
    shards = num_shards(x, 0)
    if x.shape[0] // size % shards:
        raise ValueError(
            f"`virtual_batch_size` must divide the {x.shape[0] // shards} examples that each of the {shards} shards of "
            f"an Explicit mesh has, but it is {size}. Where slices are to span devices, use an Auto mesh, or "
            "`shard_map` over a mesh of two axes with the inner one as `axis_name`."
        )


def _check_several_values(x: Array, measured: Sequence[int], size: int | None) -> None:
    """Raises for one value per feature, which has no variance. PyTorch raises, too; Flax returns the bias."""
    values = math.prod(x.shape[a] for a in measured)
    if size is not None:
        values = values // x.shape[0] * size if x.shape[0] else 0
    if values == 1 and x.size:
        raise ValueError(
            f"`x` has one value per feature to measure: its shape is {x.shape}, measured over axes {tuple(measured)}"
            + ("" if size is None else f" in slices of `virtual_batch_size={size}`")
            + ". Use a larger batch, an `axis_name` that adds other devices, or `normalize(x, running)`."
        )


def _reduce_about(c: Array, slices: Moments) -> Moments:
    """`reduce(slices)`, in sums about c: one all-reduce where slices lie on several devices, not two."""
    sums = sums_about(c[None], dataclasses.replace(slices, count=broadcast_count(slices.count, slices.mean, (0,))))
    return of_sums(c, *(t.sum(0) for t in sums))


def _slices(tree: Any, batch: int, size: int) -> Any:
    """Arrays of the input's rank with axis 0 split into slices of `size`. What all examples share, all slices share."""

    def split(t: Array) -> Array:
        whole = t.shape[0] == batch
        return t.reshape((batch // size, size, *t.shape[1:])) if whole else t[None]

    return jax.tree.map(split, tree)


BATCH = Spec(
    name="batch",
    function=batch_norm,
    module="BatchNorm",
    statistics=(Measured("NHW"),),
    sync=Sync.YES,
    variables=RUNNING,
    paper="Ioffe and Szegedy 2015, arXiv 1502.03167",
    use="convolutional networks with 16 or more examples a device",
)
GHOST = Spec(
    name="ghost",
    function=batch_norm,
    module="BatchNorm",
    statistics=(Measured("NHW", "each slice of the batch"),),
    sync=Sync.BY_SLICE,
    variables=RUNNING,
    paper="Hoffer, Hubara and Soudry 2017, arXiv 1705.08741",
    use="large batches: keeps the noise of small ones",
    arguments={"virtual_batch_size": 128},
)
SPECS = (BATCH, GHOST)
