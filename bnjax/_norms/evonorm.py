"""EvoNorm: normalization and activation in one, found by search; B0 by the batch, S0 by the example."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike, DTypeLike

from bnjax import _checks as checks
from bnjax._collectives.psum import AxisName
from bnjax._core.moments import Moments, ema, of_features
from bnjax._core.normalize import normalize_prepared
from bnjax._core.prepare import Arguments, parameter
from bnjax._norms.measure import (
    at_rank,
    in_stat_dtype,
    inf_var_where_empty,
    merged_over_batch,
    merged_over_groups,
    per_example,
    prepare_examples,
    scaled,
)
from bnjax._norms.spec import AFFINE, ONES, RUNNING, Measured, Spec, Sync


def evo_norm_b0(
    x: ArrayLike,
    running: Moments,
    scale: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    v: ArrayLike | None = None,
    *,
    axis: checks.Axes = -1,
    momentum: ArrayLike = 0.99,
    epsilon: ArrayLike = 1e-5,
    where: ArrayLike | None = None,
    zero_masked: bool = False,
    axis_name: AxisName | None = None,
    train: bool = True,
    dtype: DTypeLike | None = None,
) -> tuple[Array, Moments]:
    """EvoNorm B0: the output, and the new running state.

    Equivalent, with the variance of the batch (at evaluation the running one) and that of each example::

        left, right = jnp.sqrt(batch.var + epsilon), v * x + jnp.sqrt(example.var + epsilon)
        y = x / jnp.maximum(left, right) * scale + bias

    Args:
      x: real, examples first. Statistics are float32 or wider, variances biased.
      running: the state, of the features' shape; its mean is tracked but does not enter the output.
      scale: of the features' shape, or of the rank of `x` and broadcastable to it.
      bias: likewise.
      v: likewise; `None`: ones.
      axis: the feature axes, not the first.
      momentum: the fraction of the running state that is kept (1 - PyTorch's).
      epsilon: added to both variances.
      where: broadcastable to `x`, non-zero is valid. What is masked out counts for nothing in the statistics.
      zero_masked: make zero what is masked out, in the result and in all gradients, whatever stands there.
      axis_name: a name or names of `pmap`, `shard_map` or `vmap` to measure the batch over too.
      train: without, by the running state, which comes back as it is.
      dtype: of the output; that of `x` by default.

    Raises:
      ValueError: an argument that does not fit, by its name.

    References:
      Liu, Brock, Simonyan and Le, Evolving Normalization-Activation Layers, 2020 (arXiv 2004.02967).

    >>> running = Moments(jnp.zeros(()), jnp.zeros(1), jnp.ones(1))
    >>> y, running = evo_norm_b0(jnp.array([[[-1.0], [1.0]], [[3.0], [5.0]]]), running, momentum=0.5)
    >>> print((100 * y).ravel().round(), running.var)
    [-45.  45.  75.  83.] [3.]
    """
    ops = prepare_examples(x, Arguments(scale, bias, axis, epsilon, where, zero_masked, dtype=dtype))
    own = per_example(ops)
    kept = at_rank(running, ops)
    m = merged_over_batch(own, axis_name) if train else kept
    v, t = parameter(v, "v", ops), in_stat_dtype(ops.x)
    right = (t if v is None else t * checks.widened(v, t)) + jnp.sqrt(own.var + epsilon)
    y = t / jnp.maximum(jnp.sqrt(inf_var_where_empty(m).var + epsilon), right)
    y = scaled(y, ops.affine.scale, ops.affine.bias, ops)
    return y, lax.stop_gradient(ema(running, of_features(m, jnp.shape(running.mean)), momentum)) if train else running


def evo_norm_s0(
    x: ArrayLike,
    scale: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    v: ArrayLike | None = None,
    *,
    num_groups: int = 32,
    axis: int = -1,
    epsilon: ArrayLike = 1e-5,
    where: ArrayLike | None = None,
    zero_masked: bool = False,
    dtype: DTypeLike | None = None,
) -> Array:
    """EvoNorm S0: `x * sigmoid(v * x) / sqrt(var + epsilon) * scale + bias`, var of groups of channels of an example.

    Args:
      x: real, examples first. The variance is float32 or wider, and biased.
      scale: of the features' shape, or of the rank of `x` and broadcastable to it.
      bias: likewise.
      v: likewise; `None`: ones.
      num_groups: of neighbouring channels.
      axis: the channels' axis.
      epsilon: added to the variance.
      where: broadcastable to `x`, non-zero is valid. What is masked out counts for nothing in the statistics.
      zero_masked: make zero what is masked out, in the result and in all gradients, whatever stands there.
      dtype: of the output; that of `x` by default.

    Raises:
      ValueError: an argument that does not fit, by its name.

    References:
      Liu, Brock, Simonyan and Le, Evolving Normalization-Activation Layers, 2020 (arXiv 2004.02967).

    >>> print(evo_norm_s0(jnp.array([[[-1.0], [1.0]]]), num_groups=1).ravel().round(1))
    [-0.3  0.7]
    """
    ops = prepare_examples(x, Arguments(scale, bias, axis, epsilon, where, zero_masked, dtype=dtype), one_channel=True)
    m = inf_var_where_empty(merged_over_groups(per_example(ops), ops.features[0], num_groups))
    v, t = parameter(v, "v", ops), in_stat_dtype(ops.x)
    gated = t * jax.nn.sigmoid(t if v is None else t * checks.widened(v, t))
    about_zero = Moments(m.count, jnp.zeros_like(m.mean), m.var)
    return normalize_prepared(dataclasses.replace(ops, x=gated), about_zero)


EVO_NORM_B0 = Spec(
    name="evonorm_b0",
    function=evo_norm_b0,
    module="EvoNormB0",
    statistics=(Measured("NHW"), Measured("HW")),
    sync=Sync.YES,
    parameters=AFFINE | {"v": ONES},
    variables=RUNNING,
    paper="Liu et al. 2020, arXiv 2004.02967",
    use="batch norm and activation in one",
)
EVO_NORM_S0 = Spec(
    name="evonorm_s0",
    function=evo_norm_s0,
    module="EvoNormS0",
    statistics=(Measured("HWC", "each group of channels"),),
    parameters=EVO_NORM_B0.parameters,
    paper=EVO_NORM_B0.paper,
    use="group norm and activation in one",
)
SPECS = (EVO_NORM_B0, EVO_NORM_S0)
