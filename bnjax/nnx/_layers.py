"""The norms that Flax does not have, for nnx: one call for all, by the `Spec` of each."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import KW_ONLY, InitVar, dataclass
from typing import Any, ClassVar

import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import ArrayLike, DTypeLike

from bnjax import _checks as checks
from bnjax._modules import family as shared
from bnjax._modules.call import check_num_features, floating, no_moments, replaced, result_dtype
from bnjax.nnx._batch import asked_for_moments
from bnjax.nnx._flax import first_given


@dataclass(eq=False, repr=False)
class Norm(nnx.Module):
    """What all norms of this package have that are not Flax's.

    Args:
      num_features: the number of features, or the lengths of several feature axes.
      rngs: for initializers that are given.
    """

    spec: ClassVar[shared.Spec]

    num_features: int | Sequence[int]
    _: KW_ONLY
    dtype: DTypeLike | None = None
    param_dtype: Any = jnp.float32
    zero_masked: bool = False
    rngs: InitVar[nnx.Rngs]

    def __post_init__(self, rngs: nnx.Rngs) -> None:
        given: Any = self.num_features
        several = isinstance(given, Iterable) and not checks.positive_integer(given)
        self.num_features = features = tuple(map(checks.positive_integer, given if several else (given,)))
        if not all(features):
            raise ValueError(
                "`num_features` must be a positive integer, or one for each of several feature axes, but it is "
                f"{given!r}."
            )
        options = {name: getattr(self, name) for name in self.spec.defaults}
        for name, part in self.spec.parameters.items():
            if getattr(self, f"use_{name}"):
                start = getattr(self, f"{name}_init")
                key = rngs.params() if callable(start) else None
                setattr(self, name, nnx.Param(shared.initial(part, features, options, self.param_dtype, start, key)))
        for name, part in self.spec.variables.items():
            setattr(self, name, nnx.BatchStat(shared.initial(part, features, options, jnp.float32)))

    def _run(self, x: ArrayLike, *, train: bool, mask: ArrayLike | None, given: dict[str, Any], **inputs: Any) -> Array:
        """The call of every module: reads the parameters, makes one call, and writes the state."""
        x, spec = floating(x), self.spec
        shared.check_given(spec, given)
        if spec.variables and train and asked_for_moments(self):
            raise no_moments(type(self).__name__, "the call without `nnx.capture`")
        options = {name: getattr(self, name) for name in spec.defaults}
        features = shared.features_of(x, options.get("axis", -1))
        check_num_features(self, self._made_for(len(features)), features, x)
        parameters = {}
        for name in spec.parameters:
            used = getattr(self, f"use_{name}")
            parameters[name] = replaced(getattr(self, name)[...] if used else None, given.get(name), name, used)
        state = {name: getattr(self, name)[...] for name in spec.variables}
        y, new = shared.call(
            spec, x, parameters, state, options, train=train, mask=mask,
            dtype=result_dtype(x, *parameters.values(), dtype=self.dtype), **inputs,
        )  # fmt: skip
        if train:
            for name in state:
                getattr(self, name)[...] = new[name]
        return y

    def _made_for(self, ndim: int) -> Sequence[int]:
        """The features that there are variables for: under `shard_map` a part of all."""
        variables = (getattr(self, name, None) for name in ("scale", "bias", "mean"))
        shapes = (v[...].shape for v in variables if isinstance(v, nnx.Variable))
        lengths: Any = self.num_features  # a tuple by now
        return next((shape[-ndim:] for shape in shapes if ndim and len(shape) >= ndim), lengths)


@dataclass(eq=False, repr=False, kw_only=True)
class SampleNorm(Norm):
    """A norm of each example by itself."""

    def __call__(
        self,
        x: ArrayLike,
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
        return self._run(x, train=True, mask=mask, given={"scale": scale, "bias": bias})


@dataclass(eq=False, repr=False, kw_only=True)
class StatefulNorm(Norm):
    """A norm with a running state: `model.eval()` normalizes by it, `model.train()` by the batch."""

    use_running_average: bool | None = False

    def __post_init__(self, rngs: nnx.Rngs) -> None:
        checks.flag(self.use_running_average, "use_running_average")
        super().__post_init__(rngs)

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
        average = first_given(
            use_running_average,
            self.use_running_average,
            error="`use_running_average` must be given to the constructor or the call, or set by `model.train()` "
            "or `model.eval()`.",
        )
        checks.flag(average, "use_running_average")
        return self._run(x, train=not average, mask=mask, given={"scale": scale, "bias": bias}, **inputs)

    def set_view(self, use_running_average: bool | None = None) -> None:
        """Called by `nnx.view`."""
        if use_running_average is not None:
            self.use_running_average = use_running_average


@dataclass(eq=False, repr=False, kw_only=True)
class Affine(nnx.Module):
    """The arguments of a norm with scale and bias. All bases are modules, so that an object can change its class."""

    use_scale: bool = True
    use_bias: bool = True
    scale_init: shared.Start = None
    bias_init: shared.Start = None
