"""Spectral and weight norm for nnx: wrappers that call a layer with normalized parameters."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import jax.numpy as jnp
from flax import errors, nnx
from jax import Array
from jax.typing import DTypeLike

from bnjax import _checks as checks
from bnjax._checks import Axes
from bnjax._core.state import Path
from bnjax._modules.call import is_matrix, result_dtype
from bnjax._norms.spec import Spec
from bnjax._norms.weights import (
    SCALED_WEIGHT_STANDARDIZATION,
    SPECTRAL_NORM,
    WEIGHT_NORM,
    WEIGHT_STANDARDIZATION,
    spectral_norm,
)
from bnjax.nnx._copies import Named, with_values
from bnjax.nnx._flax import construct
from bnjax.nnx._unstable import PromoteDtypeFn, promote_dtype

KERNELS = nnx.PathContains("kernel")


class SpectralNorm(nnx.SpectralNorm):
    """`flax.nnx.SpectralNorm`, computed by `bnjax.spectral_norm`.

    Arguments, defaults, variables and call are Flax's; see there. The call is that of a shallow copy of the layer with
    normalized parameters; the layer's own stay as they are, so that what is trained is what the gradient belongs to, as
    in linen. Flax leaves them normalized. The arithmetic is float32 or wider.

    A transformation of JAX that closes over the module (`jax.jit(lambda x: layer(x))`) cannot write `u` and `sigma`:
    there call it with `update_stats=False`, or after `layer.eval()`. Those of `flax.nnx` take it as an argument.

    >>> layer = SpectralNorm(nnx.Linear(3, 2, rngs=nnx.Rngs(0)), n_steps=20, rngs=nnx.Rngs(1))
    >>> y = layer(jnp.ones((1, 3)))
    >>> print(layer.batch_stats["kernel", "u"].shape)
    (1, 2)
    """

    spec = SPECTRAL_NORM

    def __call__(
        self, x: Any, update_stats: bool | None = None, *, use_running_average: bool | None = None, **kwargs: Any
    ) -> Any:
        """Calls the layer with its matrices divided by their largest singular value.

        Args:
          x: for the layer.
          update_stats: keep the outcome of the power iteration in `u` and `sigma`; in training by default.
          use_running_average: taken for the sake of norms with a running state; ignored, and not passed to the layer.
          **kwargs: for the layer.

        Raises:
          ValueError: a layer with other parameters than at construction; parameters of a rank above 2 and
            `error_on_non_matrix`.
          TraceContextError: (Flax's) `u` and `sigma` were to be kept in a transformation of JAX that closes over this.
        """
        update = not self.use_running_average if update_stats is None else update_stats
        named = [(path, p) for path, p in _parameters(self.layer_instance) if self._is_matrix(p)]
        steps = [self._step(path, p[...]) for path, p in named]
        with with_values(self.layer_instance, named, [w for w, _ in steps]) as layer:
            y = layer(x, **kwargs)
        if update:
            for (path, _), (_, new) in zip(named, steps, strict=True):
                self._keep(path, new)
        return y

    def _is_matrix(self, parameter: nnx.Param) -> bool:
        return is_matrix(parameter[...], self.n_steps, self.error_on_non_matrix)

    def _step(self, path: Path, w: Array) -> tuple[Array, dict[str, Array]]:
        """The parameter normalized, and what is to be kept."""
        u = _known(self.batch_stats, (*path, "u"), path)[...]
        w, new_u, sigma = spectral_norm(w, u, n_steps=self.n_steps, epsilon=self.epsilon)
        return w.astype(result_dtype(w, new_u, sigma, dtype=self.dtype)), {"u": new_u, "sigma": sigma}

    def _keep(self, path: Path, new: dict[str, Array]) -> None:
        for name, value in new.items():
            kept = _known(self.batch_stats, (*path, name), path)
            try:
                kept[...] = value.astype(kept.dtype)
            except errors.TraceContextError as error:
                error.add_note(
                    "`SpectralNorm` keeps `u` and `sigma`, but a transformation of JAX that closes over the module "
                    "cannot write them. Call it with `update_stats=False` there, or use the transformation of the same "
                    "name in `flax.nnx` and pass the module as an argument."
                )
                raise


class WeightNorm(nnx.WeightNorm):
    """`flax.nnx.WeightNorm`, computed by `bnjax.weight_norm`.

    Arguments, defaults and call are Flax's; see there. The call is that of a shallow copy of the layer with normalized
    parameters; the layer's own stay as they are, as in linen. Flax leaves them normalized. `scales` are `Param` (in
    Flax since 0.12.12), of `param_dtype`, and may be initialised at random. Lengths are measured in float32 or wider.

    >>> layer = WeightNorm(nnx.Linear(3, 2, rngs=nnx.Rngs(0)), rngs=nnx.Rngs(1))
    >>> print(layer.scales["kernel",].shape)
    (2,)
    """

    spec: ClassVar[Spec] = WEIGHT_NORM

    def __init__(
        self,
        layer_instance: nnx.Module,
        *,
        feature_axes: Axes | None = -1,
        use_scale: bool = True,
        scale_init: nnx.Initializer = nnx.initializers.ones,
        epsilon: float = 1e-12,
        dtype: DTypeLike | None = None,
        param_dtype: Any = jnp.float32,
        variable_filter: nnx.filterlib.Filter = KERNELS,
        promote_dtype: PromoteDtypeFn = promote_dtype,
        rngs: nnx.Rngs,
    ):
        construct(super().__init__, locals() | {"use_scale": False})
        self.use_scale = use_scale
        if use_scale:
            self.scales = nnx.data({path: self._new_scale(p, rngs) for path, p in self._selected()})

    def __call__(self, x: Any, *args: Any, use_running_average: bool | None = None, **kwargs: Any) -> Any:
        """Calls the layer with its parameters of length one, times a scale.

        Args:
          x: for the layer.
          *args: for the layer.
          use_running_average: taken for the sake of norms with a running state; ignored, and not passed to the layer.
          **kwargs: for the layer.

        Raises:
          ValueError: a layer with other parameters than at construction.
        """
        named = self._selected()
        with with_values(self.layer_instance, named, [self._normalized(path, p[...]) for path, p in named]) as layer:
            return layer(x, *args, **kwargs)

    def _selected(self) -> Named:
        """The layer's parameters that are normalized."""
        return [(path, p) for path, p in _parameters(self.layer_instance) if self.variable_filter(path, p)]

    def _new_scale(self, w: nnx.Param, rngs: nnx.Rngs) -> nnx.Param:
        shape = tuple(w.shape[a] for a in checks.canonical_axes(self.feature_axes, w.ndim, "feature_axes"))
        try:  # as Flax calls it: a constant takes no key from the stream, so that all other parameters get Flax's keys
            return nnx.Param(self.scale_init(rngs["params"], shape, self.param_dtype))
        except TypeError:
            return nnx.Param(self.scale_init(rngs.params(), shape, self.param_dtype))

    def _normalized(self, path: Path, w: Array) -> Array:
        scale = _known(self.scales, path, path)[...] if self.use_scale else None
        dtype = result_dtype(w, scale, dtype=self.dtype)
        options = {name: getattr(self, name) for name in self.spec.defaults if name != "axis"}
        return self.spec.function(w, scale, axis=self.feature_axes, dtype=dtype, **options)


class WeightStandardization(WeightNorm):
    """Calls a layer with its kernels standardized by `bnjax.weight_standardize`; arguments are those of `WeightNorm`.

    Args:
      epsilon: 1e-6 by default where it is added to the variance, 1e-5 where to the standard deviation.
      epsilon_to: what `epsilon` is added to: `"variance"`, or `"deviation"` as in BiT.

    >>> layer = WeightStandardization(nnx.Linear(3, 2, rngs=nnx.Rngs(0)), rngs=nnx.Rngs(1))
    >>> print(abs(layer(jnp.ones((1, 3)))).max() < 1e-5)
    True
    """

    spec = WEIGHT_STANDARDIZATION

    def __init__(
        self,
        layer_instance: nnx.Module,
        *,
        feature_axes: Axes | None = -1,
        use_scale: bool = False,
        scale_init: nnx.Initializer = nnx.initializers.ones,
        epsilon: float | None = None,
        dtype: DTypeLike | None = None,
        param_dtype: Any = jnp.float32,
        variable_filter: nnx.filterlib.Filter = KERNELS,
        promote_dtype: PromoteDtypeFn = promote_dtype,
        rngs: nnx.Rngs,
        epsilon_to: Literal["variance", "deviation"] = "variance",
    ):
        construct(super().__init__, locals())
        self.epsilon_to = epsilon_to


class ScaledWeightStandardization(WeightNorm):
    """Calls a layer with its kernels standardized by `bnjax.scaled_weight_standardize`, and scaled, as NF-nets do.

    Arguments are those of `WeightNorm`. A kernel (width, width, 1, C) of a depthwise convolution has width^2 inputs.
    """

    spec = SCALED_WEIGHT_STANDARDIZATION

    def __init__(
        self,
        layer_instance: nnx.Module,
        *,
        feature_axes: Axes | None = -1,
        use_scale: bool = True,
        scale_init: nnx.Initializer = nnx.initializers.ones,
        epsilon: float = 1e-4,
        dtype: DTypeLike | None = None,
        param_dtype: Any = jnp.float32,
        variable_filter: nnx.filterlib.Filter = KERNELS,
        promote_dtype: PromoteDtypeFn = promote_dtype,
        rngs: nnx.Rngs,
    ):
        construct(super().__init__, locals())


def _parameters(layer: nnx.Module) -> Named:
    return list(nnx.to_flat_state(nnx.state(layer, nnx.Param)))


def _known(entries: Any, key: Path, path: Path) -> Any:
    if key not in entries:
        raise ValueError(
            f"`layer_instance` has a parameter {path} that it did not have at construction; its parameters should not "
            "change. Wrap the layer after it has been changed."
        )
    return entries[key]
