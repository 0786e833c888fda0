"""Batch normalization for linen."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jax import Array
from jax.typing import ArrayLike

from bnjax import _checks as checks
from bnjax import _masks as masks
from bnjax._core.affine_map import Activation
from bnjax._core.moments import Moments
from bnjax._core.prepare import Arguments
from bnjax._modules.call import (
    batch_update,
    by_batch_only,
    call_batch_norm,
    check_batch_norm,
    check_state,
    floating,
    replaced,
    result_dtype,
    running_state,
)
from bnjax._norms.batch import BATCH


class BatchNorm(nn.BatchNorm):
    """`flax.linen.BatchNorm`, computed by `bnjax.batch_norm`.

    Attributes, defaults, variables (`params/{scale,bias}`, `batch_stats/{mean,var}`) and call are Flax's; a
    checkpoint of one loads into the other. See `flax.linen.BatchNorm` for those, and `bnjax.batch_norm` for
    the details of what is added. `apply(..., mutable="batch_moments")` leaves the running state as it is and hands
    out the `Moments` of the batch instead, to be reduced over micro-batches: `bnjax.accumulate`.

    Attributes:
      momentum: the fraction of the running state that is kept (1 - PyTorch's). `None`: the running state is the exact
        pool of all batches; adds `batch_stats/count`.
      use_fast_variance: `False` means `pivot=None`.
      pivot: `"running"`, `"sample"` or `None`: one pass about the running mean, one about a sample, two; also `"zero"`
        and `"auto"`, as in `bnjax.layer_norm`.
      virtual_batch_size: examples in a ghost batch.
      unbiased: keep the unbiased variance in the running state, as PyTorch does.
      track_running_stats: `False`: there is no running state; statistics are always the batch's, at evaluation, too.
        `pivot="running"` means `"auto"` then, and no moments are handed out.

    >>> layer = BatchNorm(use_running_average=False, activation="relu")
    >>> x = jnp.array([[1.0, 0.0], [3.0, 4.0]])
    >>> variables = layer.init(jax.random.key(0), x)
    >>> y, state = layer.apply(variables, x, mutable="batch_stats")
    >>> print(state["batch_stats"]["mean"].round(3))
    [0.02 0.02]
    """

    spec = BATCH

    momentum: float | None = 0.99  # type: ignore[assignment]
    pivot: checks.Pivot = "running"
    virtual_batch_size: int | None = None
    unbiased: bool = False
    track_running_stats: bool = True
    activation: Activation = None
    zero_masked: bool = False

    def __post_init__(self) -> None:
        check_batch_norm(self)
        super().__post_init__()

    @nn.compact
    def __call__(
        self,
        x: ArrayLike,
        use_running_average: bool | None = None,
        *,
        mask: ArrayLike | None = None,
        residual: ArrayLike | None = None,
        scale: ArrayLike | None = None,
        bias: ArrayLike | None = None,
    ) -> Array:
        """Normalizes `x`; in training (`use_running_average=False`) by its own statistics, which it records.

        While initialising the running state is not updated and `axis_name` need not exist.

        Args:
          x: the input; integers are taken as float32.
          use_running_average: normalize by the running state; overrides the attribute.
          mask: broadcastable to `x`, non-zero is valid; what is not valid counts for nothing in the statistics.
          residual: of the shape of `x`; added before the activation.
          scale: in place of the parameter (`use_scale=False`); of the features' shape, or per example.
          bias: likewise (`use_bias=False`).

        Raises:
          ValueError: an argument that does not fit; one value per feature in training.
        """
        if self.track_running_stats:
            use_running_average = nn.merge_param("use_running_average", self.use_running_average, use_running_average)
        else:
            use_running_average = by_batch_only(use_running_average)
        checks.flag(use_running_average, "use_running_average")
        x = jnp.asarray(x)
        features = checks.canonical_axes(self.axis, x.ndim)
        shape = tuple(x.shape[a] for a in features)
        stats: dict[str, Any] = {}
        if self.track_running_stats:
            dtype = jnp.float32 if self.force_float32_reductions else self.param_dtype
            stats["mean"] = self.variable("batch_stats", "mean", jnp.zeros, shape, dtype)
            stats["var"] = self.variable("batch_stats", "var", jnp.ones, shape, dtype)
            for name, variable in stats.items():
                check_state(self.path, f"batch_stats/{name}", variable.value, shape, x)
            if self.momentum is None and (self.is_initializing() or not use_running_average):
                stats["count"] = self.variable("batch_stats", "count", jnp.zeros, shape)
        running = running_state(shape, {name: variable.value for name, variable in stats.items()})

        own_scale = self.param("scale", self.scale_init, shape, self.param_dtype) if self.use_scale else None
        own_bias = self.param("bias", self.bias_init, shape, self.param_dtype) if self.use_bias else None
        scale = replaced(own_scale, scale, "scale", self.use_scale)
        bias = replaced(own_bias, bias, "bias", self.use_bias)
        dtype = result_dtype(x, scale, bias, dtype=self.dtype)
        where = masks.NamedMask(mask, "mask")
        arguments = Arguments(scale, bias, features=features, where=where, residual=residual, dtype=dtype)
        y, new, batch = self._compute(floating(x), running, arguments, not use_running_average)
        if new is None or batch is None or self.is_initializing() or not stats:
            return y
        out = self.is_mutable_collection("batch_moments")
        if out:
            self.sow("batch_moments", "batch", batch_update(self, batch))
        if self.is_mutable_collection("batch_stats") or not out:
            for name, variable in stats.items():
                variable.value = getattr(new, name)
        return y

    @nn.nowrap
    def _compute(
        self, x: Array, running: Moments, arguments: Arguments, train: bool
    ) -> tuple[Array, Moments | None, Moments | None]:
        """The output, the new running state if there is one, and the moments of the batch if it was measured."""
        y, new, batch = call_batch_norm(self, x, running, arguments, train=train, local_only=self.is_initializing())
        return (y, new, batch) if train else (y, None, None)
