"""Whitening: decorrelated batch norm and iterative normalization, which divide by the root of the covariance."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike, DTypeLike

from bnjax import _checks as checks
from bnjax import _masks as masks
from bnjax._collectives.psum import AxisName, psum
from bnjax._core.moments import Moments, all_reduce, at_least_one, ema, moments
from bnjax._core.prepare import Arguments, Prepared
from bnjax._norms.measure import in_stat_dtype, prepare_examples, scaled
from bnjax._norms.spec import ZEROS, Mask, Measured, Options, Shape, Spec, Sync, Variable


class Whitening(NamedTuple):
    """The running state: the mean that is subtracted, and the matrix that multiplies.

    Attributes:
      mean: of each channel, (C,).
      matrix: the whitening matrix of each group of m neighbouring channels, (C // m, m, m).
    """

    mean: Array
    matrix: Array


checks.in_exported_files(Whitening, "bnjax.Whitening")


def decorrelated_batch_norm(
    x: ArrayLike,
    running: Whitening,
    scale: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    *,
    group_size: int = 16,
    axis: int = -1,
    momentum: ArrayLike = 0.9,
    epsilon: ArrayLike = 1e-5,
    where: ArrayLike | None = None,
    zero_masked: bool = False,
    axis_name: AxisName | None = None,
    train: bool = True,
    dtype: DTypeLike | None = None,
) -> tuple[Array, Whitening]:
    """Decorrelated batch normalization (DBN), ZCA whitening: the output, and the new running state.

    Equivalent, for each group of channels, with `cov` the covariance of the batch + `epsilon` on its diagonal::

        values, vectors = jnp.linalg.eigh(cov)
        y = (x - mean) @ (vectors / jnp.sqrt(values)) @ vectors.T * scale + bias

    differentiable where eigenvalues are equal, too.

    Args:
      x: real, examples first. Statistics are float32 or wider.
      running: the state; its matrix is the average of whitening matrices, as in the papers.
      scale: of the features' shape, or of the rank of `x` and broadcastable to it.
      bias: likewise.
      group_size: neighbouring channels that are whitened together, a divisor of all; if there are fewer, all.
      axis: the channels' axis, not the first.
      momentum: the fraction of the running state that is kept (1 - PyTorch's).
      epsilon: added to the variances.
      where: broadcastable to `x`, of length 1 along `axis`; non-zero is valid. What is masked out counts for nothing.
      zero_masked: make zero what is masked out, in the result and in all gradients, whatever stands there.
      axis_name: a name or names of `pmap`, `shard_map` or `vmap` to measure over too.
      train: without, by the running state, which comes back as it is.
      dtype: of the output; that of `x` by default.

    Raises:
      ValueError: an argument that does not fit, by its name.

    References:
      Huang, Yang, Lang and Deng, Decorrelated Batch Normalization, 2018 (arXiv 1804.08450).

    >>> x = jnp.array([[1.0, 1.0], [-1.0, -1.0], [2.0, -2.0], [-2.0, 2.0]])
    >>> y, _ = decorrelated_batch_norm(x, Whitening(jnp.zeros(2), jnp.eye(2)[None]))
    >>> print(jnp.cov(y, rowvar=False, bias=True).round(2) + 0.0)
    [[1. 0.]
     [0. 1.]]
    """
    arguments = Arguments(scale, bias, axis, epsilon, where, zero_masked, dtype=dtype)
    return _whitened(x, running, arguments, WhiteningOptions(group_size, momentum, axis_name, train), inverse_root)


def iterative_norm(
    x: ArrayLike,
    running: Whitening,
    scale: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    *,
    steps: int = 5,
    group_size: int = 64,
    axis: int = -1,
    momentum: ArrayLike = 0.9,
    epsilon: ArrayLike = 1e-5,
    where: ArrayLike | None = None,
    zero_masked: bool = False,
    axis_name: AxisName | None = None,
    train: bool = True,
    dtype: DTypeLike | None = None,
) -> tuple[Array, Whitening]:
    """Iterative normalization (IterNorm): whitening by `steps` of Newton's method: the output, and the new state.

    Equivalent to `decorrelated_batch_norm`, whose other arguments it has, but with::

        p = jnp.eye(m)
        for _ in range(steps):
            p = 1.5 * p - 0.5 * p @ p @ p @ (cov / jnp.trace(cov))
        y = (x - mean) @ p / jnp.sqrt(jnp.trace(cov)) * scale + bias

    Args:
      steps: with few, the smallest eigenvalues are whitened only in part.
      momentum: the fraction of the running state that is kept (1 - PyTorch's).

    Raises:
      ValueError: an argument that does not fit, by its name.

    References:
      Huang, Zhou, Zhu, Liu and Shao, Iterative Normalization, 2019 (arXiv 1904.03441).

    >>> x = jnp.array([[1.0, 1.0], [-1.0, -1.0], [2.0, -2.0], [-2.0, 2.0]])
    >>> y, _ = iterative_norm(x, Whitening(jnp.zeros(2), jnp.eye(2)[None]))
    >>> print(jnp.cov(y, rowvar=False, bias=True).round(1) + 0.0)
    [[1. 0.]
     [0. 1.]]
    """
    if not checks.positive_integer(steps):
        raise ValueError(f"`steps` must be a positive integer, but it is {steps!r}.")
    arguments = Arguments(scale, bias, axis, epsilon, where, zero_masked, dtype=dtype)
    return _whitened(
        x, running, arguments, WhiteningOptions(group_size, momentum, axis_name, train), partial(_newton, steps)
    )


class WhiteningOptions(NamedTuple):
    """What is measured together, and how the running state steps."""

    group_size: int
    momentum: ArrayLike
    axis_name: AxisName | None
    train: bool


def _whitened(
    x: ArrayLike, running: Whitening, arguments: Arguments, options: WhiteningOptions, root: Callable[[Array], Array]
) -> tuple[Array, Whitening]:
    ops = prepare_examples(x, arguments, one_channel=True)
    (channel,), mask = ops.features, ops.mask
    size = group_of(ops.x.shape[channel], options.group_size)
    _check(ops, masks.name_for_errors(arguments.where), running, size)
    rows = jnp.moveaxis(in_stat_dtype(ops.x), channel, -1)
    valid_rows = None if mask is None else jnp.moveaxis(mask, channel, -1)
    state, m = running, running
    if options.train:
        count, mean, cov = _covariance(rows, valid_rows, size, options.axis_name)
        eye = jnp.broadcast_to(jnp.eye(size, dtype=cov.dtype), cov.shape)
        # Where nothing is valid the map is constant, the bias: the root of the unit matrix, times zero.
        cov = jnp.where(count > 0, cov + arguments.epsilon * eye, eye)
        m = Whitening(mean, jnp.where(count > 0, _of_unit_size(root, cov), 0))
        kept = ema(Moments(count, *running), Moments(count, *m), options.momentum)
        state = lax.stop_gradient(Whitening(kept.mean, kept.var))
    d = rows - m.mean.astype(rows.dtype).reshape((1,) * (ops.x.ndim - 1) + (-1,))
    groups = d.reshape(*d.shape[:-1], d.shape[-1] // size, size)
    y = _dot("...gi,gij->...gj", groups, m.matrix.astype(rows.dtype)).reshape(rows.shape)
    return scaled(jnp.moveaxis(y, -1, channel), ops.affine.scale, ops.affine.bias, ops), state


def _covariance(rows: Any, mask: Array | None, size: int, axis_name: AxisName | None) -> tuple[Array, Array, Array]:
    """Count, mean (C,) and covariance of each group, in two passes: the second about the mean."""
    axes = tuple(range(rows.ndim - 1))
    name = checks.hashable_name(axis_name)
    m = moments(rows, axes, where=mask)
    m = m if name is None else all_reduce(m, name)
    c = lax.stop_gradient(m.mean)
    d = masks.valid(mask, rows - c.reshape((1,) * len(axes) + (-1,)))
    groups = d.reshape(math.prod(d.shape[:-1]), d.shape[-1] // size, size)
    s1, s2 = psum((groups.sum(0), _dot("ngi,ngj->gij", groups, groups)), name)
    n = at_least_one(m.count)
    delta = s1 / n
    return m.count, c + delta.reshape(-1), s2 / n - delta[:, :, None] * delta[:, None, :]


def _of_unit_size(root: Callable[[Array], Array], cov: Array) -> Array:
    """`root(cov)`, an inverse square root, computed from `cov` divided by its mean variance.

    For every constant c it is `root(cov / c) / sqrt(c)`. Without it, derivatives underflow in float32 where the
    deviation is 1e8.
    """
    size = lax.stop_gradient(jnp.trace(cov, axis1=-2, axis2=-1)[:, None, None] / max(cov.shape[-1], 1))
    return root(cov / size) / jnp.sqrt(size)


def _newton(steps: int, cov: Array) -> Array:
    trace = jnp.trace(cov, axis1=-2, axis2=-1)[:, None, None]
    p = jnp.broadcast_to(jnp.eye(cov.shape[-1], dtype=cov.dtype), cov.shape)
    for _ in range(steps):
        p = 1.5 * p - 0.5 * _dot("gij,gjk->gik", _dot("gij,gjk->gik", _dot("gij,gjk->gik", p, p), p), cov / trace)
    return p * lax.rsqrt(trace)


@jax.custom_jvp
def inverse_root(cov: Array) -> Array:
    """The inverse square root of symmetric positive definite matrices."""
    values, vectors = jnp.linalg.eigh(cov)
    return _dot("gij,gkj->gik", vectors * lax.rsqrt(values)[:, None, :], vectors)


@inverse_root.defjvp
def _inverse_root_jvp(primals: Any, tangents: Any) -> tuple[Array, Array]:
    """The divided differences of 1 / sqrt, -1 / (a b (a + b)) with a and b the roots: finite where values are equal."""
    values, vectors = jnp.linalg.eigh(*primals)
    a = jnp.sqrt(values)
    differences = -1 / (a[:, :, None] * a[:, None, :] * (a[:, :, None] + a[:, None, :]))
    inner = differences * _dot("gji,gjk,gkl->gil", vectors, *tangents, vectors)
    out = _dot("gij,gkj->gik", vectors * (1 / a)[:, None, :], vectors)
    return out, _dot("gij,gjk,glk->gil", vectors, inner, vectors)


def _dot(subscripts: str, *factors: Array) -> Array:
    """A product of matrices at full precision: by default accelerators round the factors."""
    return jnp.einsum(subscripts, *factors, precision=lax.Precision.HIGHEST)


def group_of(channels: int, group_size: int) -> int:
    """How many channels are whitened together."""
    size = checks.positive_integer(group_size)
    if isinstance(channels, int):  # not a symbol of `jax.export`, which must be a multiple of the group
        size = min(size, channels or 1)
    if not size or channels % size:
        raise ValueError(f"`group_size` must be a positive divisor of {channels} channels, but it is {group_size!r}.")
    return size


def _check(ops: Prepared, mask_name: str, running: Whitening, size: int) -> None:
    """Raises for a mask that varies along the channels, and for a state of another shape."""
    (channel,), mask = ops.features, ops.mask
    channels = ops.x.shape[channel]
    if mask is not None and mask.shape[channel] != 1 and channels != 1:
        raise ValueError(
            f"`{mask_name}` must have length 1 along the channels, axis {channel}, which are measured together, but "
            f"its shape is {mask.shape}."
        )
    checks.float_state(running, "running", "Whitening", "mean", "matrix")
    for name, want in (("mean", (channels,)), ("matrix", (channels // size, size, size))):
        if (shape := jnp.shape(getattr(running, name))) != want:
            raise ValueError(f"`running.{name}` must have the shape {want}, but it has {shape}.")


def _unit_matrix(features: Shape, options: Options) -> Array:
    return jnp.eye(group_of(features[0], options["group_size"]))


def _matrices(features: Shape, options: Options) -> Shape:
    size = group_of(features[0], options["group_size"])
    return features[0] // size, size, size


DECORRELATED_BATCH_NORM = Spec(
    name="dbn",
    function=decorrelated_batch_norm,
    module="DecorrelatedBatchNorm",
    statistics=(Measured("NHW", "the covariance of C"),),
    sync=Sync.YES,
    mask=Mask.ONE_FOR_CHANNELS,
    variables={"mean": ZEROS, "matrix": Variable(_unit_matrix, _matrices)},
    pack=Whitening,
    paper="Huang et al. 2018, arXiv 1804.08450",
    use="whitened features, exactly",
)
ITERATIVE_NORM = Spec(
    name="iternorm",
    function=iterative_norm,
    module="IterativeNorm",
    statistics=DECORRELATED_BATCH_NORM.statistics,
    sync=Sync.YES,
    mask=Mask.ONE_FOR_CHANNELS,
    variables=DECORRELATED_BATCH_NORM.variables,
    pack=Whitening,
    paper="Huang et al. 2019, arXiv 1904.03441",
    use="whitened features, on accelerators",
)
SPECS = (DECORRELATED_BATCH_NORM, ITERATIVE_NORM)
