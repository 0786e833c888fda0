"""Batch norm that is evaluated with a share of the statistics of each example."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike, DTypeLike

from bnjax import _checks as checks
from bnjax._collectives.psum import AxisName
from bnjax._core.moments import Moments, merge
from bnjax._core.normalize import normalize_prepared
from bnjax._core.prepare import Arguments
from bnjax._norms.batch import BatchOptions, normalize_and_step
from bnjax._norms.measure import (
    at_rank,
    per_example,
    prepare_examples,
)
from bnjax._norms.spec import RUNNING, Measured, Spec, Sync


def example_weighted_batch_norm(
    x: ArrayLike,
    running: Moments,
    scale: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    *,
    example_weight: ArrayLike = 0.0,
    axis: checks.Axes = -1,
    momentum: ArrayLike = 0.99,
    epsilon: ArrayLike = 1e-5,
    where: ArrayLike | None = None,
    zero_masked: bool = False,
    axis_name: AxisName | None = None,
    train: bool = True,
    dtype: DTypeLike | None = None,
) -> tuple[Array, Moments]:
    """Batch norm whose evaluation counts the example in.

    In training that is `batch_norm`. Equivalent at evaluation::

        m = merge(Moments(1 - example_weight, running...), Moments(example_weight, example...))
        y = normalize(x, m, scale, bias)

    The same average of E[x] and of E[x^2] as the paper's. The weight is chosen on held-out data.

    Args:
      x: real, examples first. Statistics are float32 or wider.
      running: the state, of the features' shape.
      scale: of the features' shape, or of the rank of `x` and broadcastable to it.
      bias: likewise.
      example_weight: of the example itself at evaluation, from 0 (batch norm) to 1 (instance norm).
      axis: the feature axes, not the first.
      momentum: the fraction of the running state that is kept (1 - PyTorch's).
      epsilon: added to the variance.
      where: broadcastable to `x`, non-zero is valid. What is masked out counts for nothing in the statistics.
      zero_masked: make zero what is masked out, in the result and in all gradients, whatever stands there.
      axis_name: a name or names of `pmap`, `shard_map` or `vmap` to measure over too.
      train: without, evaluation as above; the running state comes back as it is.
      dtype: of the output; that of `x` by default.

    Returns:
      The output, and the new running state.

    Raises:
      ValueError: an argument that does not fit, by its name.

    References:
      Summers and Dinneen, Four Things Everyone Should Know to Improve Batch Normalization, 2020 (arXiv
      1906.03548).

    >>> running = Moments(jnp.zeros(()), jnp.zeros(1), jnp.ones(1))
    >>> y, _ = example_weighted_batch_norm(jnp.array([[[1.0], [3.0]]]), running, example_weight=1.0, train=False)
    >>> print(y.ravel().round(3))
    [-1.  1.]
    """
    ops = prepare_examples(x, Arguments(scale, bias, axis, epsilon, where, zero_masked, dtype=dtype))
    checks.unit_interval(example_weight, "example_weight")
    if train:
        y, running, _ = normalize_and_step(ops, running, BatchOptions(momentum, axis_name=axis_name))
        return y, running
    own, kept = per_example(ops), at_rank(running, ops)
    own = Moments(jnp.where(own.count > 0, example_weight, 0), own.mean, own.var)
    m = merge(Moments(1 - own.count, kept.mean, kept.var), own)
    return normalize_prepared(ops, m), running


EXAMPLE_WEIGHTED_BATCH_NORM = Spec(
    name="example_weighted",
    function=example_weighted_batch_norm,
    module="ExampleWeightedBatchNorm",
    statistics=(Measured("NHW"), Measured("HW", "at evaluation, too")),
    sync=Sync.YES,
    variables=RUNNING,
    paper="Summers and Dinneen 2020, arXiv 1906.03548",
    use="batch norm, when the network is evaluated on other data",
)
SPECS = (EXAMPLE_WEIGHTED_BATCH_NORM,)
