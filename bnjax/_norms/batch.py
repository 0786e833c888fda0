"""Batch normalization: measure, combine, normalize, and a running state in and out."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import ArrayLike, DTypeLike

from bnjax import _checks as checks
from bnjax import _masks as masks
from bnjax._collectives.psum import AxisName, Groups, num_shards
from bnjax._core.affine_map import Activation, activate, affine_operands, map_config
from bnjax._core.moments import Moments, all_reduce, broadcast_count, of_features, of_sums, reduce, sums_about
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
    check_momentum(momentum, unbiased)
    y, batch = normalize_by_batch(
        x, running, scale, bias,
        axis=axis, epsilon=epsilon, where=where, zero_masked=zero_masked, axis_name=axis_name,
        axis_index_groups=axis_index_groups, virtual_batch_size=virtual_batch_size, pivot=pivot, residual=residual,
        activation=activation, dtype=dtype,
    )  # fmt: skip
    state = next_state(running, batch, momentum, unbiased)
    return y, lax.stop_gradient(state)


def normalize_by_batch(
    x: ArrayLike,
    running: Moments,
    scale: ArrayLike | None,
    bias: ArrayLike | None,
    *,
    axis: checks.Axes,
    epsilon: ArrayLike,
    where: ArrayLike | None,
    zero_masked: bool,
    axis_name: AxisName | None,
    axis_index_groups: Groups,
    virtual_batch_size: int | None,
    pivot: checks.Pivot,
    residual: ArrayLike | None,
    activation: Activation,
    dtype: DTypeLike | None,
    local_only: bool = False,
) -> tuple[Array, Moments]:
    """`batch_norm` before the step of the running state: the output, and the moments of the batch.

    `local_only`: this device measures its batch as one set, in two passes, and one value per feature is no error.
    """
    x, mask = masks.read(checks.inexact_array(x), where)
    x, zero = masks.zeroed(x, mask, zero_masked)
    axis_name = checks.hashable_name(axis_name)
    features = checks.canonical_axes(axis, x.ndim)
    measured = checks.other_axes(features, x.ndim)
    checks.choice(pivot, "pivot", checks.PIVOTS)
    config = map_config(x, activation, dtype)
    _check_running(running, x, features, config.compute_dtype)
    if axis_index_groups is not None and axis_name is None:
        raise ValueError("`axis_index_groups` are groups along `axis_name`, which is None; name the axis too.")
    _check_virtual_batch(virtual_batch_size, x, features, local_only)
    if local_only:
        axis_name = axis_index_groups = virtual_batch_size = pivot = None
    if not local_only and (axis_name is None or virtual_batch_size is not None):
        _check_several_values(x, measured, virtual_batch_size)
    affine = affine_operands(config, x, features, scale, bias, residual, epsilon, zero)
    center = checks.feature_array(running.mean, "running.mean", x.shape, features)

    if virtual_batch_size is None:
        reduction = Reduction(measured, axis_name, checks.hashable(axis_index_groups))
        y, batch = standardize(config, reduction, x, affine, pivot_of(pivot, config, reduction, x, mask, center), mask)
    else:
        reduction = Reduction(tuple(a + 1 for a in measured))
        xs, affine, mask, centers = _slices((x, affine, mask, center), x.shape[0], virtual_batch_size)
        y, slices = standardize(
            config, reduction, xs, affine, pivot_of(pivot, config, reduction, xs, mask, centers), mask
        )
        common = center if pivot == "running" else None
        y, batch = y.reshape(x.shape), reduce(slices) if common is None else _reduce_about(common, slices)
        if axis_name is not None:
            batch = all_reduce(batch, axis_name, pivot=common, axis_index_groups=axis_index_groups)
    return activate(y, activation, zero), of_features(batch, jnp.shape(running.mean))


def _check_running(running: Moments, x: Array, features: Sequence[int], compute_dtype: Any) -> None:
    checks.float_state(running, "running", "Moments", "mean", "var")
    want = tuple(x.shape[a] for a in features)
    for name in ("mean", "var"):
        checks.state_shape(getattr(running, name), f"running.{name}", x.shape, features)
    if jnp.shape(running.count) not in ((), want):
        raise ValueError(f"`running.count` must have the shape () or {want}, but it is {jnp.shape(running.count)}.")
    if jnp.issubdtype(compute_dtype, jnp.complexfloating) and not jnp.iscomplexobj(running.mean):
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


def _check_virtual_batch(size: int | None, x: Array, features: Sequence[int], local_only: bool) -> None:
    check_virtual_batch_size(size)
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
