"""Relatives of batch norm for nnx."""

from bnjax import _layers as shared
from bnjax.nnx._layers import StatefulNorm


class BatchRenorm(StatefulNorm):
    """`bnjax.batch_renorm` with its parameters and its running state.

    `r_max` and `d_max` may be numbers or schedules: functions of the number of steps, which is `batch_stats/step`.
    """

    layer = shared.BATCH_RENORM


class EvoNormB0(StatefulNorm):
    """`bnjax.evo_norm_b0` with its parameters and its running state."""

    layer = shared.EVO_NORM_B0
