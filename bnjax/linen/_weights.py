"""Spectral and weight norm for linen: wrappers that call a layer with normalized parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from bnjax import _checks as checks
from bnjax._modules.call import check_state, is_matrix, result_dtype
from bnjax._norms.spec import Spec
from bnjax._norms.weights import (
    SCALED_WEIGHT_STANDARDIZATION,
    SPECTRAL_NORM,
    WEIGHT_NORM,
    WEIGHT_STANDARDIZATION,
    spectral_norm,
)


class SpectralNorm(nn.SpectralNorm):
    """`flax.linen.SpectralNorm`, computed by `bnjax.spectral_norm`.

    Attributes, defaults, variables and call are Flax's; see there. The arithmetic is float32 or wider, and parameters
    are left as they are after initialization, mutable or not.

    >>> layer = SpectralNorm(nn.Dense(2), n_steps=20)
    >>> x = jnp.ones((1, 3))
    >>> variables = layer.init(jax.random.key(0), x, update_stats=True)
    >>> y, state = layer.apply(variables, x, update_stats=True, mutable="batch_stats")
    """

    spec = SPECTRAL_NORM

    @nn.compact
    def __call__(self, *args: Any, update_stats: bool, use_running_average: bool | None = None, **kwargs: Any) -> Any:
        """Calls the layer with its matrices divided by their largest singular value.

        Args:
          *args: for the layer.
          update_stats: keep the outcome of the power iteration in `u` and `sigma`.
          use_running_average: taken for the sake of norms with a running state; ignored, and not passed to the layer.
          **kwargs: for the layer.

        Raises:
          ValueError: parameters of a rank above 2 and `error_on_non_matrix`.
        """

        def normalized(path: Any, parameter: Any) -> Array:
            w = jnp.asarray(parameter)
            if not is_matrix(w, self.n_steps, self.error_on_non_matrix):
                return w
            name, init_u = _name(self.layer_instance, path), jax.random.normal
            known = self.has_variable(self.collection_name, f"{name}/u")
            key = None if known else self.make_rng("params")
            u = self.variable(self.collection_name, f"{name}/u", init_u, key, (1, w.shape[-1]), self.param_dtype)
            if u.value.size != w.shape[-1]:
                check_state(self.path, f"{self.collection_name}/{name}/u", u.value, (1, w.shape[-1]), w)
            sigma = self.variable(self.collection_name, f"{name}/sigma", jnp.ones, (), self.param_dtype)
            new_w, new_u, new_sigma = spectral_norm(w, u.value, n_steps=self.n_steps, epsilon=self.epsilon)
            if update_stats:
                u.value, sigma.value = new_u, new_sigma.astype(sigma.value.dtype)
            return new_w.astype(result_dtype(w, new_u, new_sigma, dtype=self.dtype))

        return _call(self, normalized, *args, **kwargs)


class WeightNorm(nn.WeightNorm):
    """`flax.linen.WeightNorm`, computed by `bnjax.weight_norm`.

    Attributes, defaults, parameters and call are Flax's; see there. Lengths are measured in float32 or wider.

    >>> layer = WeightNorm(nn.Dense(2))
    >>> variables = layer.init(jax.random.key(0), jnp.ones((1, 3)))
    >>> print(variables["params"]["layer_instance/kernel/scale"])
    [1. 1.]
    """

    spec: ClassVar[Spec] = WEIGHT_NORM

    @nn.compact
    def __call__(self, *args: Any, use_running_average: bool | None = None, **kwargs: Any) -> Any:
        """Calls the layer with its parameters of length one, times a scale.

        Args:
          *args: for the layer.
          use_running_average: taken for the sake of norms with a running state; ignored, and not passed to the layer.
          **kwargs: for the layer.
        """

        def normalized(path: Any, parameter: Any) -> Array:
            w = jnp.asarray(parameter)
            name = _name(self.layer_instance, path)
            if self.variable_filter and not any(part in name for part in self.variable_filter):
                return w
            axis = () if self.feature_axes is None else self.feature_axes
            shape = tuple(w.shape[a] for a in checks.canonical_axes(axis, w.ndim, "feature_axes"))
            scale = self.param(f"{name}/scale", self.scale_init, shape, self.param_dtype) if self.use_scale else None
            dtype = result_dtype(w, scale, dtype=self.dtype)
            options = {name: getattr(self, name) for name in self.spec.defaults if name != "axis"}
            return self.spec.function(w, scale, axis=axis, dtype=dtype, **options)

        return _call(self, normalized, *args, **kwargs)


class WeightStandardization(WeightNorm):
    """Calls a layer with its kernels standardized by `bnjax.weight_standardize`; attributes are those of `WeightNorm`.

    Attributes:
      epsilon: 1e-6 by default where it is added to the variance, 1e-5 where to the standard deviation.
      epsilon_to: what `epsilon` is added to: `"variance"`, or `"deviation"` as in BiT.

    >>> layer = WeightStandardization(nn.Dense(2))
    >>> y = layer.apply(layer.init(jax.random.key(0), jnp.ones((1, 3))), jnp.ones((1, 3)))
    >>> print(abs(y).max() < 1e-5)
    True
    """

    epsilon: float | None = None  # type: ignore[assignment]
    use_scale: bool = False
    epsilon_to: Literal["variance", "deviation"] = "variance"

    spec = WEIGHT_STANDARDIZATION


class ScaledWeightStandardization(WeightNorm):
    """Calls a layer with its kernels standardized by `bnjax.scaled_weight_standardize`, and scaled, as NF-nets do.

    Attributes are those of `WeightNorm`. A kernel (width, width, 1, C) of a depthwise convolution has width^2 inputs.
    """

    epsilon: float = 1e-4

    spec = SCALED_WEIGHT_STANDARDIZATION


def _call(
    module: nn.SpectralNorm | nn.WeightNorm, normalized: Callable[[Any, Any], Array], *args: Any, **kwargs: Any
) -> Any:
    """Calls the layer of `module` with each of its parameters `normalized`."""
    starting = module.is_initializing()
    return nn.map_variables(
        lambda layer: layer(*args, **kwargs),
        "params",
        trans_in_fn=lambda variables: jax.tree_util.tree_map_with_path(normalized, variables),
        init=starting,
        mutable=starting,  # initialization stores normalized parameters, as Flax's does; nothing else stores any
    )(module.layer_instance)


def _name(layer: nn.Module, path: Any) -> str:
    """What Flax calls a parameter of the layer: its path without the collection."""
    return f"{layer.name}/{jax.tree_util.keystr(path[1:], simple=True, separator='/')}"
