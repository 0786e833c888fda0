"""Layer, RMS, group and instance norm for nnx: one call, four rows."""

from typing import TYPE_CHECKING, Any, ClassVar

import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import ArrayLike

from bnjax import _modules as shared
from bnjax._affine import Activation


class _SampleNorm(nnx.Module):
    """What the modules of this file have in common: all but their names, their attributes and the function."""

    core: ClassVar[shared.Core]

    if TYPE_CHECKING:  # Flax's class, mixed in below, has the attributes

        def __getattr__(self, name: str) -> Any: ...

    def __init__(self, *flax_arguments: Any, activation: Activation = None, rngs: nnx.Rngs, **more: Any):
        super().__init__(*flax_arguments, rngs=rngs, **more)  # type: ignore[call-arg]
        self.activation = activation

    def __call__(
        self,
        x: ArrayLike,
        mask: ArrayLike | None = None,
        *,
        residual: ArrayLike | None = None,
        scale: ArrayLike | None = None,
        bias: ArrayLike | None = None,
    ) -> Array:
        """Normalizes `x`.

        Args:
          x: the input; integers are taken as float32.
          mask: broadcastable to `x`; what is not valid counts for nothing in the statistics.
          residual: of the shape of `x`; added before the activation.
          scale: in place of the parameter (`use_scale=False`); of the features' shape, or per example.
          bias: likewise (`use_bias=False`, or a norm that has none).

        Raises:
          ValueError: an argument that does not fit.
        """
        x = jnp.asarray(x)
        shape = shared.features_shape(self, x)
        own_scale, own_bias = (
            None if parameter is None else parameter[...].reshape(shape)
            for parameter in (self.scale, self.bias if self.core.centred else None)
        )
        scale = shared.replaced(own_scale, scale, "scale", self.use_scale)
        bias = shared.replaced(own_bias, bias, "bias", self.core.centred and self.use_bias)
        if self.core.centred:
            promoted, scale, bias = self.promote_dtype((x, scale, bias), dtype=self.dtype)
        else:
            promoted, scale = self.promote_dtype((x, scale), dtype=self.dtype)
        dtype = shared.result_dtype(promoted, scale, bias, dtype=self.dtype)
        x = shared.not_widened(x, promoted)
        return shared.call_sample_norm(self, x, scale, bias, mask=mask, residual=residual, dtype=dtype)


class LayerNorm(_SampleNorm, nnx.LayerNorm):
    """`flax.nnx.LayerNorm`, computed by `bnjax.layer_norm`.

    Arguments, defaults, parameters and call are Flax's; see there for those. Synchronised statistics are weighted
    by count, and one-pass ones (`use_fast_variance`) right at large means. Added, also to the other modules of
    this file:

    Args:
      activation: `None`, `"relu"` or a callable (a module, too), applied last.

    >>> layer = LayerNorm(2, activation="relu", rngs=nnx.Rngs(0))
    >>> print(layer(jnp.array([[1.0, 3.0], [30.0, 10.0]])).round(3))
    [[0. 1.]
     [1. 0.]]
    """

    core = shared.LAYER_NORM


class RMSNorm(_SampleNorm, nnx.RMSNorm):
    """`flax.nnx.RMSNorm`, computed by `bnjax.rms_norm`.

    >>> layer = RMSNorm(4, rngs=nnx.Rngs(0))
    >>> print(layer(jnp.array([[0.0, 4.0, 0.0, 0.0]])).round(3))
    [[0. 2. 0. 0.]]
    """

    core = shared.RMS_NORM


class GroupNorm(_SampleNorm, nnx.GroupNorm):
    """`flax.nnx.GroupNorm`, computed by `bnjax.group_norm`; takes any mask that broadcasts to the input.

    >>> layer = GroupNorm(4, num_groups=2, rngs=nnx.Rngs(0))
    >>> print(layer(jnp.array([[1.0, 3.0, 10.0, 30.0]])).round(3))
    [[-1.  1. -1.  1.]]
    """

    core = shared.GROUP_NORM


class InstanceNorm(_SampleNorm, nnx.InstanceNorm):
    """`flax.nnx.InstanceNorm`, computed by `bnjax.instance_norm`.

    >>> layer = InstanceNorm(2, rngs=nnx.Rngs(0))
    >>> print(layer(jnp.array([[[1.0, 10.0], [3.0, 30.0]]])).round(3))
    [[[-1. -1.]
      [ 1.  1.]]]
    """

    core = shared.INSTANCE_NORM
