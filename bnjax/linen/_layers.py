"""The norms that Flax does not have, for linen: one call for all, by the `Spec` of each."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax.numpy as jnp
from flax import linen as nn
from jax import Array
from jax.typing import ArrayLike, DTypeLike

from bnjax import _checks as checks
from bnjax._modules import family as shared
from bnjax._modules.call import check_state, floating, no_moments, replaced, result_dtype


class Norm(nn.Module):
    """What all norms of this package have that are not Flax's."""

    spec: ClassVar[shared.Spec]

    dtype: DTypeLike | None = None
    param_dtype: Any = jnp.float32
    zero_masked: bool = dataclasses.field(default=False, kw_only=True)

    @nn.compact
    def run(self, x: ArrayLike, *, train: bool, mask: ArrayLike | None, given: dict[str, Any], **inputs: Any) -> Array:
        """The call of every module: reads the parameters, makes one call, and writes the state."""
        x, spec = floating(x), self.spec
        shared.check_given(spec, given)
        kept = self.is_mutable_collection("batch_stats")
        if spec.variables and train and not kept and self.is_mutable_collection("batch_moments"):
            raise no_moments(type(self).__name__, '`mutable="batch_stats"`')
        options = {name: getattr(self, name) for name in spec.defaults}
        features = shared.features_of(x, options.get("axis", -1))
        parameters = {name: self._parameter(name, features, options, given.get(name)) for name in spec.parameters}
        state = {
            name: self.variable("batch_stats", name, shared.initial, part, features, options, jnp.float32)
            for name, part in spec.variables.items()
        }
        for name, part in spec.variables.items():
            check_state(self.path, f"batch_stats/{name}", state[name].value, part.shape(features, options), x)
        if self.is_initializing() and "axis_name" in options:
            options["axis_name"] = None  # it need not exist yet
        y, new = shared.call(
            spec, x, parameters, {name: variable.value for name, variable in state.items()}, options, train=train,
            mask=mask, dtype=result_dtype(x, *parameters.values(), dtype=self.dtype), **inputs,
        )  # fmt: skip
        if train and not self.is_initializing():
            for name, variable in state.items():
                variable.value = new[name]
        return y

    def _parameter(self, name: str, features: shared.Shape, options: shared.Options, given: Any) -> Any:
        used, variable = getattr(self, f"use_{name}", True), self.spec.parameters[name]

        def start(key: Array) -> Array:
            return shared.initial(
                variable, features, options, self.param_dtype, getattr(self, f"{name}_init", None), key
            )

        return replaced(self.param(name, start) if used else None, given, name, used)


class SampleNorm(Norm):
    """A norm of each example by itself."""

    def __call__(
        self,
        x: ArrayLike,
        *,
        mask: ArrayLike | None = None,
        scale: ArrayLike | None = None,
        bias: ArrayLike | None = None,
        use_running_average: bool | None = None,
    ) -> Array:
        """Normalizes `x`.

        Args:
          x: the input; integers are taken as float32.
          mask: broadcastable to `x`, non-zero is valid; what is not valid counts for nothing in the statistics.
          scale: in place of the parameter (`use_scale=False`); of the features' shape, or per example.
          bias: likewise (`use_bias=False`).
          use_running_average: taken for the sake of norms with a running state, and ignored: there is none here.

        Raises:
          ValueError: an argument that does not fit.
        """
        return self.run(x, train=True, mask=mask, given={"scale": scale, "bias": bias})


class StatefulNorm(Norm):
    """A norm with a running state."""

    use_running_average: bool | None = None

    def __post_init__(self) -> None:
        checks.flag(self.use_running_average, "use_running_average")
        super().__post_init__()

    def __call__(
        self,
        x: ArrayLike,
        use_running_average: bool | None = None,
        *,
        mask: ArrayLike | None = None,
        scale: ArrayLike | None = None,
        bias: ArrayLike | None = None,
        **inputs: Any,
    ) -> Array:
        """Normalizes `x`; in training (`use_running_average=False`) by its own statistics, which it records.

        While initialising the running state is not updated and `axis_name` need not exist.

        Args:
          x: the input; integers are taken as float32.
          use_running_average: normalize by the running state; overrides the attribute.
          mask: broadcastable to `x`, non-zero is valid; what is not valid counts for nothing in the statistics.
          scale: in place of the parameter (`use_scale=False`); of the features' shape, or per example.
          bias: likewise (`use_bias=False`).
          **inputs: what else the norm's function takes of the call, such as `domain`.

        Raises:
          ValueError: an argument that does not fit.
        """
        average = nn.merge_param("use_running_average", self.use_running_average, use_running_average)
        checks.flag(average, "use_running_average")
        return self.run(x, train=not average, mask=mask, given={"scale": scale, "bias": bias}, **inputs)


class Affine(nn.Module):
    """The attributes of a norm with scale and bias."""

    use_scale: bool = True
    use_bias: bool = True
    scale_init: shared.Start = None
    bias_init: shared.Start = None
