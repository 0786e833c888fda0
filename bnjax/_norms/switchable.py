"""Switchable normalization: a learned mixture of the statistics of instance, layer and batch norm."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike, DTypeLike

from bnjax import _checks as checks
from bnjax._collectives.psum import AxisName
from bnjax._core.moments import Moments, ema, of_features
from bnjax._core.normalize import normalize_prepared
from bnjax._core.prepare import Arguments
from bnjax._norms.measure import (
    at_rank,
    inf_var_where_empty,
    merged,
    merged_over_batch,
    per_example,
    prepare_examples,
)
from bnjax._norms.spec import AFFINE, RUNNING, Measured, Spec, Sync, Variable


def switchable_norm(
    x: ArrayLike,
    running: Moments,
    scale: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    mean_weight: ArrayLike | None = None,
    var_weight: ArrayLike | None = None,
    *,
    axis: checks.Axes = -1,
    momentum: ArrayLike = 0.9,
    epsilon: ArrayLike = 1e-5,
    where: ArrayLike | None = None,
    zero_masked: bool = False,
    axis_name: AxisName | None = None,
    train: bool = True,
    dtype: DTypeLike | None = None,
) -> tuple[Array, Moments]:
    """Switchable normalization: by a learned mixture of the statistics of instance, layer and batch norm.

    Equivalent, with w = softmax(mean_weight) and u = softmax(var_weight)::

        mean = w[0] * instance.mean + w[1] * layer.mean + w[2] * batch.mean
        var = u[0] * instance.var + u[1] * layer.var + u[2] * batch.var
        y = normalize(x, Moments(1, mean, var), scale, bias)

    Args:
      x: real, examples first. Statistics are float32 or wider.
      running: the state, of the features' shape; in the place of the batch at evaluation.
      scale: of the features' shape, or of the rank of `x` and broadcastable to it.
      bias: likewise.
      mean_weight: of shape (3,); `None`: equal.
      var_weight: likewise.
      axis: the feature axes, not the first.
      momentum: the fraction of the running state that is kept (1 - PyTorch's).
      epsilon: added to the variance.
      where: broadcastable to `x`, non-zero is valid. What is masked out counts for nothing in the statistics.
      zero_masked: make zero what is masked out, in the result and in all gradients, whatever stands there.
      axis_name: a name or names of `pmap`, `shard_map` or `vmap` to measure the batch over too.
      train: without, by the running state, which comes back as it is.
      dtype: of the output; that of `x` by default.

    Returns:
      The output, and the new running state.

    Raises:
      ValueError: an argument that does not fit, by its name.

    References:
      Luo et al., Differentiable Learning-to-Normalize via Switchable Normalization, 2018 (arXiv 1806.10779).

    >>> running = Moments(jnp.zeros(()), jnp.zeros(1), jnp.ones(1))
    >>> y, _ = switchable_norm(jnp.array([[[1.0], [3.0]], [[1.0], [3.0]]]), running)
    >>> print(y.ravel().round(3))
    [-1.  1. -1.  1.]
    """
    ops = prepare_examples(x, Arguments(scale, bias, axis, epsilon, where, zero_masked, dtype=dtype))
    instance = per_example(ops)
    layer = merged(instance, ops.features)
    kept = at_rank(running, ops)
    batch = merged_over_batch(instance, axis_name) if train else kept
    means, variances = ([getattr(m, name) for m in (instance, layer, batch)] for name in ("mean", "var"))
    mean, var = _mixture(means, mean_weight, "mean_weight"), _mixture(variances, var_weight, "var_weight")
    m = inf_var_where_empty(Moments(batch.count, mean, var))
    y = normalize_prepared(ops, m)
    if not train:
        return y, running
    return y, lax.stop_gradient(ema(running, of_features(batch, jnp.shape(running.mean)), momentum))


def _mixture(values: list[Array], weight: ArrayLike | None, name: str) -> Array:
    weight = jnp.zeros(3) if weight is None else jnp.asarray(weight)
    if weight.shape != (3,):
        raise ValueError(f"`{name}` must have the shape (3,), for instance, layer and batch, but it is {weight.shape}.")
    share = jax.nn.softmax(weight.astype(values[0].dtype))
    full = jnp.broadcast_shapes(*(v.shape for v in values))
    return sum((jnp.broadcast_to(share[i] * v, full) for i, v in enumerate(values)), jnp.zeros(full, values[0].dtype))


# One number each for instance, layer and batch.
_WEIGHTS = Variable(lambda features, options: 1.0, lambda features, options: (3,))

SWITCHABLE_NORM = Spec(
    name="switchable",
    function=switchable_norm,
    module="SwitchableNorm",
    statistics=(Measured("NHW"), Measured("HW"), Measured("HWC")),
    sync=Sync.YES,
    parameters=AFFINE | {"mean_weight": _WEIGHTS, "var_weight": _WEIGHTS},
    variables=RUNNING,
    paper="Luo et al. 2018, arXiv 1806.10779",
    use="where it is not known which of batch, instance and layer norm suits",
)
SPECS = (SWITCHABLE_NORM,)
