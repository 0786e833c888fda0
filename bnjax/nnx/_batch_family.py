"""Relatives of batch norm for nnx."""

from bnjax import _layers as shared
from bnjax.nnx._layers import StatefulNorm


class BatchRenorm(StatefulNorm):
    """`bnjax.batch_renorm` with its parameters and its running state.

    `r_max` and `d_max` may be numbers or schedules: functions of the number of steps, which is `step`. That is a
    float32, so that a weighted average of two states has the dtypes of the states. It counts to 2^24 steps.

    >>> from flax import nnx
    >>> layer = BatchRenorm(3, d_max=lambda step: 5.0 * (step > 100), rngs=nnx.Rngs(0))
    >>> y = layer(jnp.arange(6.0).reshape(2, 3))
    >>> print(layer.step[...])
    1.0
    """

    layer = shared.BATCH_RENORM


class EvoNormB0(StatefulNorm):
    """`bnjax.evo_norm_b0` with its parameters and its running state."""

    layer = shared.EVO_NORM_B0


class BatchChannelNorm(StatefulNorm):
    """`bnjax.batch_channel_norm` with its parameters and its running state.

    `num_groups` must divide the channels.
    """

    layer = shared.BATCH_CHANNEL


class DecorrelatedBatchNorm(StatefulNorm):
    """`bnjax.decorrelated_batch_norm` with its parameters and its running state."""

    layer = shared.DECORRELATED


class DomainBatchNorm(StatefulNorm):
    """`bnjax.domain_batch_norm` with its parameters and its running state.

    Scale and bias are shared by the `domains`. The call takes `domain`.

    >>> from flax import nnx
    >>> layer = DomainBatchNorm(3, domains=("source", "target"), rngs=nnx.Rngs(0))
    >>> y = layer(jnp.ones((4, 3)), domain="target")
    >>> print(layer.mean[:, 0])
    [0.   0.01]
    """

    layer = shared.DOMAIN


class ExampleWeightedBatchNorm(StatefulNorm):
    """`bnjax.example_weighted_batch_norm` with its parameters and its running state."""

    layer = shared.EXAMPLE_WEIGHTED


class IterativeNorm(StatefulNorm):
    """`bnjax.iterative_norm` with its parameters and its running state."""

    layer = shared.ITERATIVE


class SplitBatchNorm(StatefulNorm):
    """`bnjax.domain_batch_norm` with its parameters and its running state.

    Each of the `domains` has a scale and a bias of its own: the auxiliary batch norm of AdvProp. In training equal
    parts of the batch go each through its own, clean examples first; at evaluation all go through the first. The call
    takes `domain` for anything else.
    """

    layer = shared.SPLIT


class SwitchableNorm(StatefulNorm):
    """`bnjax.switchable_norm` with its parameters and its running state."""

    layer = shared.SWITCHABLE
