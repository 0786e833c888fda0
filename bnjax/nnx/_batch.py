"""Batch normalization for nnx."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import ArrayLike, DTypeLike

from bnjax import _checks as checks
from bnjax import _masks as masks
from bnjax._checks import Axes, Pivot
from bnjax._collectives.psum import AxisName, Groups
from bnjax._core.affine_map import Activation
from bnjax._core.moments import Moments
from bnjax._core.prepare import Arguments
from bnjax._modules.call import (
    batch_update,
    by_batch_only,
    call_batch_norm,
    check_batch_norm,
    check_num_features,
    not_widened,
    one_value,
    replaced,
    result_dtype,
    running_state,
)
from bnjax._norms.batch import BATCH
from bnjax.nnx._flax import NO_METADATA, construct, first_given
from bnjax.nnx._unstable import PromoteDtypeFn, captures, promote_dtype


class BatchMoments(nnx.Variable):
    """The `Moments` of the batches that went through a BatchNorm while `nnx.capture(f, BatchMoments)` called it.

    >>> model = BatchNorm(2, rngs=nnx.Rngs(0))
    >>> y, batch_moments = nnx.capture(model, BatchMoments)(jnp.array([[1.0, 0.0], [3.0, 4.0]]))
    >>> print(batch_moments["batch"][0].mean)
    [2. 2.]
    """


class BatchNorm(nnx.BatchNorm):
    """`flax.nnx.BatchNorm`, computed by `bnjax.batch_norm`.

    Arguments, defaults, variables (`Param` scale and bias, `BatchStat` mean and var) and call are Flax's; the
    state of one loads into the other. See `flax.nnx.BatchNorm` for those, and `bnjax.batch_norm` for the
    details of what is added:

    Args:
      momentum: the fraction of the running state that is kept (1 - PyTorch's). `None`: the running state is the exact
        pool of all batches; adds the `BatchStat` count.
      use_fast_variance: `False` means `pivot=None`.
      promote_dtype: called as Flax calls it, but never rounds the running state.
      pivot: `"running"`, `"sample"` or `None`: one pass about the running mean, one about a sample, two; also `"zero"`
        and `"auto"`, as in `bnjax.layer_norm`.
      virtual_batch_size: examples in a ghost batch.
      unbiased: keep the unbiased variance in the running state, as PyTorch does.
      track_running_stats: `False`: there is no running state; statistics are always the batch's, also after
        `model.eval()`, as in PyTorch. `pivot="running"` means `"auto"` then, and no moments are handed out.

    >>> layer = BatchNorm(2, activation="relu", rngs=nnx.Rngs(0))
    >>> y = layer(jnp.array([[1.0, 0.0], [3.0, 4.0]]))
    >>> print(layer.mean[...].round(3))
    [0.02 0.02]
    """

    spec = BATCH

    def __init__(
        self,
        num_features: int,
        *,
        use_running_average: bool | None = False,
        axis: Axes = -1,
        momentum: float | None = 0.99,
        epsilon: float = 1e-5,
        dtype: DTypeLike | None = None,
        param_dtype: Any = jnp.float32,
        use_bias: bool = True,
        use_scale: bool = True,
        bias_init: nnx.Initializer = nnx.initializers.zeros,
        scale_init: nnx.Initializer = nnx.initializers.ones,
        axis_name: AxisName | None = None,
        axis_index_groups: Groups = None,
        use_fast_variance: bool = True,
        promote_dtype: PromoteDtypeFn = promote_dtype,
        rngs: nnx.Rngs,
        bias_metadata: Mapping[str, Any] = NO_METADATA,
        scale_metadata: Mapping[str, Any] = NO_METADATA,
        pivot: Pivot = "running",
        virtual_batch_size: int | None = None,
        unbiased: bool = False,
        track_running_stats: bool = True,
        activation: Activation = None,
        zero_masked: bool = False,
    ):
        construct(super().__init__, locals())
        self.pivot = pivot
        self.virtual_batch_size = virtual_batch_size
        self.unbiased = unbiased
        self.track_running_stats = track_running_stats
        self.activation = activation
        self.zero_masked = zero_masked
        check_batch_norm(self)
        if not track_running_stats:
            self.mean = self.var = nnx.data(None)  # type: ignore[arg-type]
        elif momentum is None:
            self.count = nnx.BatchStat(jnp.zeros(num_features))

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

        Args:
          x: the input; integers are taken as float32.
          use_running_average: normalize by the running state; overrides the attribute.
          mask: broadcastable to `x`, non-zero is valid; what is not valid counts for nothing in the statistics.
          residual: of the shape of `x`; added before the activation.
          scale: in place of the parameter (`use_scale=False`); of the features' shape, or per example.
          bias: likewise (`use_bias=False`).

        Raises:
          ValueError: an argument that does not fit.
        """
        if self.track_running_stats:
            use_running_average = first_given(
                use_running_average,
                self.use_running_average,
                error="`use_running_average` must be given to the constructor or the call of BatchNorm, or set by "
                "`nnx.view(model, use_running_average=...)`, `model.train()` or `model.eval()`.",
            )
        else:  # the attribute is set by `model.eval()` in all modules that have it
            use_running_average = by_batch_only(use_running_average)
        checks.flag(use_running_average, "use_running_average")
        x = jnp.asarray(x)
        features = checks.canonical_axes(self.axis, x.ndim)
        shape = tuple(x.shape[a] for a in features)
        for variable in (self.mean, self.var, self.scale, self.bias):
            if variable is not None:
                check_num_features(self, (variable[...].size,), (math.prod(shape),), x)
        scale = replaced(None if self.scale is None else self.scale[...], scale, "scale", self.use_scale)
        bias = replaced(None if self.bias is None else self.bias[...], bias, "bias", self.use_bias)
        counted = self.momentum is None and not use_running_average
        names = (("mean", "var", "count") if counted else ("mean", "var")) if self.track_running_stats else ()
        stats = {name: getattr(self, name)[...] for name in names}
        # The running state is never rounded to `dtype`, and x is not widened: the rule does that, and keeps x.
        checks.named_dtype(self.dtype)
        promoted, _, _, scale, bias = self.promote_dtype(
            (x, stats.get("mean"), stats.get("var"), scale, bias), dtype=self.dtype
        )
        x = not_widened(x, promoted)
        running = running_state(shape, stats)
        dtype = result_dtype(promoted, scale, bias, dtype=self.dtype)
        where = masks.NamedMask(mask, "mask")
        arguments = Arguments(scale, bias, features=features, where=where, residual=residual, dtype=dtype)
        y, new, batch = self._compute(x, running, arguments, not use_running_average)
        if stats and new is not None and batch is not None:
            for name in stats:
                _write(getattr(self, name), getattr(new, name))
            if asked_for_moments(self):
                self.sow(BatchMoments, "batch", batch_update(self, batch))
        return y

    def _compute(
        self, x: Array, running: Moments, arguments: Arguments, train: bool
    ) -> tuple[Array, Moments | None, Moments | None]:
        """The output, the new running state if there is one, and the moments of the batch if it was measured."""
        y, new, batch = call_batch_norm(
            self, x, running, arguments, train=train, local_only=self._local_only(x, arguments)
        )
        return (y, new, batch) if train else (y, None, None)

    def _local_only(self, x: Array, arguments: Arguments) -> bool:
        """Whether one value per feature is no error: as in Flax, where modules are tried with one example."""
        return self.track_running_stats and self.axis_name is None and one_value(x, arguments.features or ())


def asked_for_moments(module: nnx.Module) -> bool:
    """Whether `nnx.capture` collects them; elsewhere `sow` would add a variable to the module."""
    return any(isinstance(v, BatchMoments) for v in captures(module))


def _write(variable: nnx.BatchStat, value: Array) -> None:
    """Sets `variable`, of whatever shape holds the features; Flax's way drops the imaginary part."""
    value = value.reshape(variable.shape)
    if value.dtype == variable.dtype:
        variable[...] = value
    else:
        variable.set_value(value)
