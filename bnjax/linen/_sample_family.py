"""Norms of each example by itself that Flax does not have, for linen."""

from __future__ import annotations

from bnjax._checks import Axes
from bnjax._modules.family import Start
from bnjax._norms.evonorm import EVO_NORM_S0
from bnjax._norms.pointwise import DYNAMIC_ERF, DYNAMIC_TANH
from bnjax._norms.response import FILTER_RESPONSE_NORM, GLOBAL_RESPONSE_NORM, LOCAL_RESPONSE_NORM
from bnjax._norms.scale import PARTIAL_RMS_NORM, PIXEL_NORM, POSITIONAL_NORM, SCALE_NORM
from bnjax.linen._layers import Affine, SampleNorm


class EvoNormS0(Affine, SampleNorm):
    """`bnjax.evo_norm_s0` with its parameters."""

    spec = EVO_NORM_S0

    num_groups: int = 32
    axis: int = -1
    epsilon: float = 1e-5
    use_v: bool = True
    v_init: Start = None


class FilterResponseNorm(Affine, SampleNorm):
    """`bnjax.filter_response_norm` with its parameters.

    `use_threshold=False`: no TLU.
    """

    spec = FILTER_RESPONSE_NORM

    axis: Axes = -1
    epsilon: float = 1e-6
    use_threshold: bool = True
    threshold_init: Start = None


class LocalResponseNorm(SampleNorm):
    """`bnjax.local_response_norm` as a module."""

    spec = LOCAL_RESPONSE_NORM

    size: int = 5
    alpha: float = 1e-4
    beta: float = 0.75
    k: float = 2.0
    axis: int = -1


class GlobalResponseNorm(Affine, SampleNorm):
    """`bnjax.global_response_norm` with its parameters.

    Scale and bias start at zero: the layer as the identity.
    """

    spec = GLOBAL_RESPONSE_NORM

    axis: int = -1
    epsilon: float = 1e-6


class PositionalNorm(Affine, SampleNorm):
    """`bnjax.positional_norm` with its parameters."""

    spec = POSITIONAL_NORM

    axis: Axes = -1
    epsilon: float = 1e-5


class PartialRMSNorm(SampleNorm):
    """`bnjax.partial_rms_norm` with its parameters."""

    spec = PARTIAL_RMS_NORM

    fraction: float = 0.0625
    axis: int = -1
    epsilon: float = 1e-6
    use_scale: bool = True
    scale_init: Start = None


class ScaleNorm(SampleNorm):
    """`bnjax.scale_norm` with its parameters.

    The scale is one number, and starts at sqrt(d) of d features.
    """

    spec = SCALE_NORM

    axis: Axes = -1
    epsilon: float = 1e-5
    use_scale: bool = True
    scale_init: Start = None


class PixelNorm(SampleNorm):
    """`bnjax.pixel_norm` as a module."""

    spec = PIXEL_NORM

    axis: Axes = -1
    epsilon: float = 1e-8


class DynamicTanh(Affine, SampleNorm):
    """`bnjax.dynamic_tanh` with its parameters.

    A `mask` is taken and changes nothing: there are no statistics.
    """

    spec = DYNAMIC_TANH

    axis: Axes = -1
    use_alpha: bool = True
    alpha_init: Start = None


class DynamicErf(Affine, SampleNorm):
    """`bnjax.family.dynamic_erf` with its parameters.

    A `mask` is taken and changes nothing: there are no statistics.
    """

    spec = DYNAMIC_ERF

    axis: Axes = -1
    use_alpha: bool = True
    use_shift: bool = True
    alpha_init: Start = None
    shift_init: Start = None
