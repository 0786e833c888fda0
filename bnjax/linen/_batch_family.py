"""Relatives of batch norm for linen."""

from typing import Any

from bnjax import _layers as shared
from bnjax.linen._layers import Affine, StatefulNorm


class BatchRenorm(Affine, StatefulNorm):
    """`bnjax.batch_renorm` with its parameters and its running state.

    `r_max` and `d_max` may be numbers or schedules: functions of the number of steps, which is `batch_stats/step`.
    """

    layer = shared.BATCH_RENORM

    axis: Any = -1
    momentum: float = 0.99
    epsilon: float = 1e-3
    axis_name: Any = None
    r_max: Any = 3.0
    d_max: Any = 5.0


class EvoNormB0(Affine, StatefulNorm):
    """`bnjax.evo_norm_b0` with its parameters and its running state."""

    layer = shared.EVO_NORM_B0

    axis: Any = -1
    momentum: float = 0.99
    epsilon: float = 1e-5
    axis_name: Any = None
    use_v: bool = True
    v_init: Any = None
