"""Layer, RMS, group and instance norm for nnx: one call for all, by the `Spec` of each."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import ArrayLike, DTypeLike

from bnjax import _checks as checks
from bnjax._checks import Axes
from bnjax._collectives.psum import AxisName, Groups
from bnjax._core.affine_map import Activation
from bnjax._modules import call as shared
from bnjax._norms.group import GROUP_NORM, INSTANCE_NORM, check_groups
from bnjax._norms.layer import LAYER_NORM, RMS_NORM
from bnjax._norms.spec import Spec
from bnjax.nnx._flax import NO_METADATA, construct
from bnjax.nnx._unstable import PromoteDtypeFn, promote_dtype


class _SampleNorm(nnx.Module):
    """What the modules of this file have in common: all but their names, their attributes and the function."""

    spec: ClassVar[Spec]

    if TYPE_CHECKING:  # Flax's class, mixed in below, has the attributes

        def __getattr__(self, name: str) -> Any: ...

    def __call__(
        self,
        x: ArrayLike,
        mask: ArrayLike | None = None,
        residual: ArrayLike | None = None,
        scale: ArrayLike | None = None,
        bias: ArrayLike | None = None,
        use_running_average: bool | None = None,
    ) -> Array:
        """Normalizes `x`.

        Args:
          x: the input; integers are taken as float32.
          mask: broadcastable to `x`, non-zero is valid; what is not valid counts for nothing in the statistics.
          residual: of the shape of `x`; added before the activation.
          scale: in place of the parameter (`use_scale=False`); of the features' shape, or per example.
          bias: likewise (`use_bias=False`, or a norm that has none).
          use_running_average: taken for the sake of norms with a running state, and ignored: there is none here.

        Raises:
          ValueError: an argument that does not fit.
        """
        x = jnp.asarray(x)
        shape = shared.features_shape(self, x)
        for size in self._sizes():
            shared.check_num_features(self, (size,), (math.prod(shape),), x)
        own_scale, own_bias = (
            None if parameter is None else parameter[...].reshape(shape)
            for parameter in (self.scale, self.bias if self.spec.centred else None)
        )
        scale = shared.replaced(own_scale, scale, "scale", self.use_scale)
        bias = shared.replaced(own_bias, bias, "bias", self.spec.centred and self.use_bias)
        checks.named_dtype(self.dtype)
        if self.spec.centred:
            promoted, scale, bias = self.promote_dtype((x, scale, bias), dtype=self.dtype)
        else:
            promoted, scale = self.promote_dtype((x, scale), dtype=self.dtype)
        dtype = shared.result_dtype(promoted, scale, bias, dtype=self.dtype)
        x = shared.not_widened(x, promoted)
        return shared.call_sample_norm(self, x, scale, bias, mask=mask, residual=residual, dtype=dtype)

    def _sizes(self) -> list[int]:
        """Of the parameters; without any, `x` may have any number of features, as in Flax."""
        parameters = (self.scale, self.bias if self.spec.centred else None)
        return [parameter[...].size for parameter in parameters if parameter is not None]


class LayerNorm(_SampleNorm, nnx.LayerNorm):
    """`flax.nnx.LayerNorm`, computed by `bnjax.layer_norm`.

    Arguments, defaults, parameters and call are Flax's; see there for those. Synchronised statistics are weighted
    by count, and one-pass ones (`use_fast_variance`) right at large means. `activation` and `zero_masked`
    are added.

    >>> layer = LayerNorm(2, activation="relu", rngs=nnx.Rngs(0))
    >>> print(layer(jnp.array([[1.0, 3.0], [30.0, 10.0]])).round(3))
    [[0. 1.]
     [1. 0.]]
    """

    spec = LAYER_NORM

    def __init__(
        self,
        num_features: int,
        *,
        epsilon: float = 1e-6,
        dtype: DTypeLike | None = None,
        param_dtype: Any = jnp.float32,
        use_bias: bool = True,
        use_scale: bool = True,
        bias_init: nnx.Initializer = nnx.initializers.zeros,
        scale_init: nnx.Initializer = nnx.initializers.ones,
        reduction_axes: Axes = -1,
        feature_axes: Axes = -1,
        axis_name: AxisName | None = None,
        axis_index_groups: Groups = None,
        use_fast_variance: bool = True,
        promote_dtype: PromoteDtypeFn = promote_dtype,
        rngs: nnx.Rngs,
        bias_metadata: Mapping[str, Any] = NO_METADATA,
        scale_metadata: Mapping[str, Any] = NO_METADATA,
        activation: Activation = None,
        zero_masked: bool = False,
    ):
        construct(super().__init__, locals())
        self.activation = activation
        self.zero_masked = zero_masked


class RMSNorm(_SampleNorm, nnx.RMSNorm):
    """`flax.nnx.RMSNorm`, computed by `bnjax.rms_norm`.

    >>> layer = RMSNorm(4, rngs=nnx.Rngs(0))
    >>> print(layer(jnp.array([[0.0, 4.0, 0.0, 0.0]])).round(3))
    [[0. 2. 0. 0.]]
    """

    spec = RMS_NORM

    def __init__(
        self,
        num_features: int,
        *,
        epsilon: float = 1e-6,
        dtype: DTypeLike | None = None,
        param_dtype: Any = jnp.float32,
        use_scale: bool = True,
        scale_init: nnx.Initializer = nnx.initializers.ones,
        reduction_axes: Axes = -1,
        feature_axes: Axes = -1,
        axis_name: AxisName | None = None,
        axis_index_groups: Groups = None,
        use_fast_variance: bool = True,
        promote_dtype: PromoteDtypeFn = promote_dtype,
        rngs: nnx.Rngs,
        scale_metadata: Mapping[str, Any] = NO_METADATA,
        activation: Activation = None,
        zero_masked: bool = False,
    ):
        construct(super().__init__, locals())
        self.activation = activation
        self.zero_masked = zero_masked


class GroupNorm(_SampleNorm, nnx.GroupNorm):
    """`flax.nnx.GroupNorm`, computed by `bnjax.group_norm`; takes any mask that broadcasts to the input.

    >>> layer = GroupNorm(4, num_groups=2, rngs=nnx.Rngs(0))
    >>> print(layer(jnp.array([[1.0, 3.0, 10.0, 30.0]])).round(3))
    [[-1.  1. -1.  1.]]
    """

    spec = dataclasses.replace(GROUP_NORM, attributes={name: name for name in ("num_groups", "reduction_axes")})

    def __init__(
        self,
        num_features: int,
        num_groups: int | None = 32,
        group_size: int | None = None,
        *,
        epsilon: float = 1e-6,
        dtype: DTypeLike | None = None,
        param_dtype: Any = jnp.float32,
        use_bias: bool = True,
        use_scale: bool = True,
        bias_init: nnx.Initializer = nnx.initializers.zeros,
        scale_init: nnx.Initializer = nnx.initializers.ones,
        reduction_axes: Axes | None = None,
        axis_name: AxisName | None = None,
        axis_index_groups: Groups = None,
        use_fast_variance: bool = True,
        promote_dtype: PromoteDtypeFn = promote_dtype,
        rngs: nnx.Rngs,
        bias_metadata: Mapping[str, Any] = NO_METADATA,
        scale_metadata: Mapping[str, Any] = NO_METADATA,
        activation: Activation = None,
        zero_masked: bool = False,
    ):
        check_groups(num_groups, group_size)
        construct(super().__init__, locals())
        self.activation = activation
        self.zero_masked = zero_masked

    def _sizes(self) -> list[int]:
        return [self.num_groups * self.group_size, *super()._sizes()]


class InstanceNorm(_SampleNorm, nnx.InstanceNorm):
    """`flax.nnx.InstanceNorm`, computed by `bnjax.instance_norm`.

    >>> layer = InstanceNorm(2, rngs=nnx.Rngs(0))
    >>> print(layer(jnp.array([[[1.0, 10.0], [3.0, 30.0]]])).round(3))
    [[[-1. -1.]
      [ 1.  1.]]]
    """

    spec = INSTANCE_NORM

    def __init__(
        self,
        num_features: int,
        *,
        epsilon: float = 1e-6,
        dtype: DTypeLike | None = None,
        param_dtype: Any = jnp.float32,
        use_bias: bool = True,
        use_scale: bool = True,
        bias_init: nnx.Initializer = nnx.initializers.zeros,
        scale_init: nnx.Initializer = nnx.initializers.ones,
        feature_axes: Axes = -1,
        axis_name: AxisName | None = None,
        axis_index_groups: Groups = None,
        use_fast_variance: bool = True,
        promote_dtype: PromoteDtypeFn = promote_dtype,
        rngs: nnx.Rngs,
        bias_metadata: Mapping[str, Any] = NO_METADATA,
        scale_metadata: Mapping[str, Any] = NO_METADATA,
        activation: Activation = None,
        zero_masked: bool = False,
    ):
        construct(super().__init__, locals())
        self.activation = activation
        self.zero_masked = zero_masked
