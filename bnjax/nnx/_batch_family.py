"""Relatives of batch norm for nnx."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from jax import Array
from jax.typing import ArrayLike

from bnjax._checks import Axes
from bnjax._collectives.psum import AxisName
from bnjax._modules.family import Start
from bnjax._norms.batch_channel import BATCH_CHANNEL_NORM
from bnjax._norms.domain import DOMAIN_BATCH_NORM, SPLIT_BATCH_NORM
from bnjax._norms.evonorm import EVO_NORM_B0
from bnjax._norms.example_weighted import EXAMPLE_WEIGHTED_BATCH_NORM
from bnjax._norms.renorm import BATCH_RENORM
from bnjax._norms.switchable import SWITCHABLE_NORM
from bnjax._norms.whitening import DECORRELATED_BATCH_NORM, ITERATIVE_NORM
from bnjax.nnx._layers import Affine, StatefulNorm

Limit = ArrayLike | Callable[[Array], ArrayLike]  # a number, or a function of the number of steps


@dataclass(eq=False, repr=False, kw_only=True)
class BatchRenorm(Affine, StatefulNorm):
    """`bnjax.batch_renorm` with its parameters and its running state.

    `r_max` and `d_max` may be numbers or schedules: functions of the number of steps, which is `step`.
    That is a float32, so that an average of two states (`optax.incremental_update`) has the dtypes of the states, and
    is exact up to 2^24 steps; a float16 or bfloat16 would soon stop counting.

    >>> from flax import nnx
    >>> layer = BatchRenorm(3, d_max=lambda step: 5.0 * (step > 100), rngs=nnx.Rngs(0))
    >>> y = layer(jnp.arange(6.0).reshape(2, 3))
    >>> print(layer.step[...])
    1.0
    """

    spec = BATCH_RENORM

    axis: Axes = -1
    momentum: float = 0.99
    epsilon: float = 1e-3
    axis_name: AxisName | None = None
    r_max: Limit = 3.0
    d_max: Limit = 5.0
    tracks: Literal["std", "var"] = "std"


@dataclass(eq=False, repr=False, kw_only=True)
class EvoNormB0(Affine, StatefulNorm):
    """`bnjax.evo_norm_b0` with its parameters and its running state."""

    spec = EVO_NORM_B0

    axis: Axes = -1
    momentum: float = 0.99
    epsilon: float = 1e-5
    axis_name: AxisName | None = None
    use_v: bool = True
    v_init: Start = None


@dataclass(eq=False, repr=False, kw_only=True)
class BatchChannelNorm(Affine, StatefulNorm):
    """`bnjax.batch_channel_norm` with its parameters and its running state.

    `num_groups` must divide the channels.
    """

    spec = BATCH_CHANNEL_NORM

    num_groups: int = 32
    axis: int = -1
    momentum: float = 0.99
    epsilon: float = 1e-5
    axis_name: AxisName | None = None
    use_channel_scale: bool = True
    use_channel_bias: bool = True
    channel_scale_init: Start = None
    channel_bias_init: Start = None


@dataclass(eq=False, repr=False, kw_only=True)
class DecorrelatedBatchNorm(Affine, StatefulNorm):
    """`bnjax.decorrelated_batch_norm` with its parameters and its running state."""

    spec = DECORRELATED_BATCH_NORM

    group_size: int = 16
    axis: int = -1
    momentum: float = 0.9
    epsilon: float = 1e-5
    axis_name: AxisName | None = None


@dataclass(eq=False, repr=False, kw_only=True)
class DomainBatchNorm(Affine, StatefulNorm):
    """`bnjax.domain_batch_norm` with its parameters and its running state.

    Scale and bias are shared by the `domains`. The call takes `domain`.

    >>> from flax import nnx
    >>> layer = DomainBatchNorm(3, domains=("source", "target"), rngs=nnx.Rngs(0))
    >>> y = layer(jnp.ones((4, 3)), domain="target")
    >>> print(layer.mean[:, 0])
    [0.   0.01]
    """

    spec = DOMAIN_BATCH_NORM

    domains: Sequence[str] = ("main", "auxiliary")
    axis: Axes = -1
    momentum: float = 0.99
    epsilon: float = 1e-5
    axis_name: AxisName | None = None


@dataclass(eq=False, repr=False, kw_only=True)
class ExampleWeightedBatchNorm(Affine, StatefulNorm):
    """`bnjax.example_weighted_batch_norm` with its parameters and its running state."""

    spec = EXAMPLE_WEIGHTED_BATCH_NORM

    example_weight: float = 0.0
    axis: Axes = -1
    momentum: float = 0.99
    epsilon: float = 1e-5
    axis_name: AxisName | None = None


@dataclass(eq=False, repr=False, kw_only=True)
class IterativeNorm(Affine, StatefulNorm):
    """`bnjax.iterative_norm` with its parameters and its running state."""

    spec = ITERATIVE_NORM

    steps: int = 5
    group_size: int = 64
    axis: int = -1
    momentum: float = 0.9
    epsilon: float = 1e-5
    axis_name: AxisName | None = None


@dataclass(eq=False, repr=False, kw_only=True)
class SplitBatchNorm(Affine, StatefulNorm):
    """`bnjax.domain_batch_norm` with its parameters and its running state.

    Each of the `domains` has a scale and a bias of its own: the auxiliary batch norm of AdvProp. In training equal
    parts of the batch go each through its own, clean examples first; at evaluation all go through the first. The call
    takes `domain` for anything else.
    """

    spec = SPLIT_BATCH_NORM

    domains: Sequence[str] = ("main", "auxiliary")
    axis: Axes = -1
    momentum: float = 0.99
    epsilon: float = 1e-5
    axis_name: AxisName | None = None


@dataclass(eq=False, repr=False, kw_only=True)
class SwitchableNorm(Affine, StatefulNorm):
    """`bnjax.switchable_norm` with its parameters and its running state."""

    spec = SWITCHABLE_NORM

    axis: Axes = -1
    momentum: float = 0.9
    epsilon: float = 1e-5
    axis_name: AxisName | None = None
    use_mean_weight: bool = True
    use_var_weight: bool = True
    mean_weight_init: Start = None
    var_weight_init: Start = None
