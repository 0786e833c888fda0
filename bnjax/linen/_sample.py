"""Layer, RMS, group and instance norm for linen: one call for all, by the `Spec` of each."""

from __future__ import annotations

from typing import ClassVar

import jax.numpy as jnp
from flax import linen as nn
from jax import Array
from jax.typing import ArrayLike

from bnjax._core.affine_map import Activation
from bnjax._modules import call as shared
from bnjax._norms.group import GROUP_NORM, INSTANCE_NORM, check_groups
from bnjax._norms.layer import LAYER_NORM, RMS_NORM
from bnjax._norms.spec import Spec


class _SampleNorm(nn.Module):
    """What the modules of this file have in common: all but their names, their attributes and the function."""

    spec: ClassVar[Spec]

    activation: Activation = None
    zero_masked: bool = False

    @nn.compact
    def __call__(
        self,
        x: ArrayLike,
        *,
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
        use_bias = "bias" in self.spec.parameters and self.use_bias
        own_scale = self.param("scale", self.scale_init, shape, self.param_dtype) if self.use_scale else None
        own_bias = self.param("bias", self.bias_init, shape, self.param_dtype) if use_bias else None
        scale = shared.replaced(own_scale, scale, "scale", self.use_scale)
        bias = shared.replaced(own_bias, bias, "bias", use_bias)
        dtype = shared.result_dtype(x, scale, bias, dtype=self.dtype)
        return shared.call_sample_norm(self, x, scale, bias, mask=mask, residual=residual, dtype=dtype)


class LayerNorm(_SampleNorm, nn.LayerNorm):
    """`flax.linen.LayerNorm`, computed by `bnjax.layer_norm`.

    Attributes, defaults, parameters and call are Flax's; see there for those. Statistics are always float32 or
    wider (`force_float32_reductions` changes nothing), synchronised ones weighted by count, and one-pass ones
    (`use_fast_variance`) right at large means. `activation` and `zero_masked` are added.

    >>> layer = LayerNorm(activation="relu")
    >>> x = jnp.array([[1.0, 3.0], [30.0, 10.0]])
    >>> print(layer.apply(layer.init(jax.random.key(0), x), x).round(3))
    [[0. 1.]
     [1. 0.]]
    """

    spec = LAYER_NORM


class RMSNorm(_SampleNorm, nn.RMSNorm):
    """`flax.linen.RMSNorm`, computed by `bnjax.rms_norm`.

    >>> layer = RMSNorm()
    >>> x = jnp.array([[0.0, 4.0, 0.0, 0.0]])
    >>> print(layer.apply(layer.init(jax.random.key(0), x), x).round(3))
    [[0. 2. 0. 0.]]
    """

    spec = RMS_NORM


class GroupNorm(_SampleNorm, nn.GroupNorm):
    """`flax.linen.GroupNorm`, computed by `bnjax.group_norm`; takes any mask that broadcasts to the input.

    >>> layer = GroupNorm(num_groups=2)
    >>> x = jnp.array([[1.0, 3.0, 10.0, 30.0]])
    >>> print(layer.apply(layer.init(jax.random.key(0), x), x).round(3))
    [[-1.  1. -1.  1.]]
    """

    spec = GROUP_NORM

    def __post_init__(self) -> None:
        check_groups(self.num_groups, self.group_size)
        super().__post_init__()


class InstanceNorm(_SampleNorm, nn.InstanceNorm):
    """`flax.linen.InstanceNorm`, computed by `bnjax.instance_norm`.

    >>> layer = InstanceNorm()
    >>> x = jnp.array([[[1.0, 10.0], [3.0, 30.0]]])
    >>> print(layer.apply(layer.init(jax.random.key(0), x), x).round(3))
    [[[-1. -1.]
      [ 1.  1.]]]
    """

    spec = INSTANCE_NORM
