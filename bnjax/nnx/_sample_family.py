"""Norms of each example by itself that Flax does not have, for nnx."""

from bnjax import _layers as shared
from bnjax.nnx._layers import SampleNorm


class EvoNormS0(SampleNorm):
    """`bnjax.evo_norm_s0` with its parameters."""

    layer = shared.EVO_NORM_S0


class FilterResponseNorm(SampleNorm):
    """`bnjax.filter_response_norm` with its parameters.

    `use_threshold=False`: no TLU.
    """

    layer = shared.FILTER_RESPONSE_NORM


class LocalResponseNorm(SampleNorm):
    """`bnjax.local_response_norm` as a module."""

    layer = shared.LOCAL_RESPONSE_NORM


class GlobalResponseNorm(SampleNorm):
    """`bnjax.global_response_norm` with its parameters.

    Scale and bias start at zero: the layer as the identity.
    """

    layer = shared.GLOBAL_RESPONSE_NORM


class PositionalNorm(SampleNorm):
    """`bnjax.positional_norm` with its parameters."""

    layer = shared.POSITIONAL_NORM


class PartialRMSNorm(SampleNorm):
    """`bnjax.partial_rms_norm` with its parameters."""

    layer = shared.PARTIAL_RMS_NORM


class ScaleNorm(SampleNorm):
    """`bnjax.scale_norm` with its parameters.

    The scale is one number, and starts at sqrt(d) of d features.
    """

    layer = shared.SCALE_NORM


class PixelNorm(SampleNorm):
    """`bnjax.pixel_norm` as a module."""

    layer = shared.PIXEL_NORM


class DynamicTanh(SampleNorm):
    """`bnjax.dynamic_tanh` with its parameters.

    A `mask` is taken and changes nothing: there are no statistics.
    """

    layer = shared.DYNAMIC_TANH
