"""The norms by name: what each measures, keeps and can do. `make_norm` and docs/norms/index.md come from this table.

A norm is in if it is published and used (in a peer library, or cited a hundred times), if its formula can be checked
against a second source, and if it costs less than a hundred lines of its own.
"""

import difflib
from collections.abc import Iterable
from typing import Literal

from bnjax import _checks as checks
from bnjax._norms.batch import batch_norm
from bnjax._norms.batch_channel import batch_channel_norm
from bnjax._norms.domain import domain_batch_norm
from bnjax._norms.evonorm import evo_norm_b0, evo_norm_s0
from bnjax._norms.example_weighted import example_weighted_batch_norm
from bnjax._norms.group import group_norm, instance_norm
from bnjax._norms.layer import layer_norm, rms_norm
from bnjax._norms.pointwise import dynamic_tanh
from bnjax._norms.renorm import batch_renorm
from bnjax._norms.response import filter_response_norm, global_response_norm, local_response_norm
from bnjax._norms.scale import partial_rms_norm, pixel_norm, positional_norm, scale_norm
from bnjax._norms.spec import Gradient, Mask, Norm, Sync
from bnjax._norms.switchable import switchable_norm
from bnjax._norms.weights import scaled_weight_standardize, spectral_norm, weight_norm, weight_standardize
from bnjax._norms.whitening import decorrelated_batch_norm, iterative_norm

# The keys of the table, for type checkers.
NormName = Literal[
    "batch", "ghost", "renorm", "layer", "rms", "group", "instance", "frn", "evonorm_b0", "evonorm_s0", "lrn",
    "grn", "positional", "prms", "scale", "pixel", "dyt", "example_weighted", "domain", "split", "switchable",
    "bcn", "dbn", "iternorm", "spectral", "weight", "ws", "scaled_ws",
]  # fmt: skip

# The classes and the functions, each a name of the first norm that has it.
NormAlias = Literal[
    "BatchNorm", "batch_norm", "BatchRenorm", "batch_renorm", "LayerNorm", "layer_norm", "RMSNorm", "rms_norm",
    "GroupNorm", "group_norm", "InstanceNorm", "instance_norm", "FilterResponseNorm", "filter_response_norm",
    "EvoNormB0", "evo_norm_b0", "EvoNormS0", "evo_norm_s0", "LocalResponseNorm", "local_response_norm",
    "GlobalResponseNorm", "global_response_norm", "PositionalNorm", "positional_norm", "PartialRMSNorm",
    "partial_rms_norm", "ScaleNorm", "scale_norm", "PixelNorm", "pixel_norm", "DynamicTanh", "dynamic_tanh",
    "ExampleWeightedBatchNorm", "example_weighted_batch_norm", "DomainBatchNorm", "domain_batch_norm",
    "SplitBatchNorm", "SwitchableNorm", "switchable_norm", "BatchChannelNorm", "batch_channel_norm",
    "DecorrelatedBatchNorm", "decorrelated_batch_norm", "IterativeNorm", "iterative_norm", "SpectralNorm",
    "spectral_norm", "WeightNorm", "weight_norm", "WeightStandardization", "weight_standardize",
    "ScaledWeightStandardization", "scaled_weight_standardize",
]  # fmt: skip

NORMS: dict[str, Norm] = {
    "batch": Norm(
        batch_norm, "BatchNorm", "N, H, W", "mean, var",
        Sync.YES, Mask.YES, Gradient.YES,
        "Ioffe and Szegedy 2015, arXiv 1502.03167", "convolutional networks with 16 or more examples a device",
    ),
    "ghost": Norm(
        batch_norm, "BatchNorm", "N, H, W of a slice of the batch", "mean, var",
        Sync.BY_SLICE, Mask.YES, Gradient.YES,
        "Hoffer, Hubara and Soudry 2017, arXiv 1705.08741",
        "large batches: keeps the noise of small ones", {"virtual_batch_size": 128},
    ),
    "renorm": Norm(
        batch_renorm, "BatchRenorm", "N, H, W", "mean, var, step",
        Sync.YES, Mask.YES, Gradient.CONSTANT_CORRECTION,
        "Ioffe 2017, arXiv 1702.03275", "small batches, or batches whose examples resemble each other",
    ),
    "layer": Norm(
        layer_norm, "LayerNorm", "C", "none",
        Sync.BY_EXAMPLE, Mask.YES, Gradient.YES,
        "Ba, Kiros and Hinton 2016, arXiv 1607.06450", "transformers and recurrent networks",
    ),
    "rms": Norm(
        rms_norm, "RMSNorm", "C", "none",
        Sync.BY_EXAMPLE, Mask.YES, Gradient.YES,
        "Zhang and Sennrich 2019, arXiv 1910.07467", "transformers; cheaper than layer norm",
    ),
    "group": Norm(
        group_norm, "GroupNorm", "H, W, and C of a group", "none",
        Sync.BY_EXAMPLE, Mask.YES, Gradient.YES,
        "Wu and He 2018, arXiv 1803.08494", "convolutional networks with few examples a device",
    ),
    "instance": Norm(
        instance_norm, "InstanceNorm", "H, W", "none",
        Sync.BY_EXAMPLE, Mask.YES, Gradient.YES,
        "Ulyanov, Vedaldi and Lempitsky 2016, arXiv 1607.08022", "style transfer and image generation",
    ),
    "frn": Norm(
        filter_response_norm, "FilterResponseNorm", "H, W", "none",
        Sync.BY_EXAMPLE, Mask.YES, Gradient.YES,
        "Singh and Krishnan 2019, arXiv 1911.09737", "convolutional networks with any batch; has its own activation",
    ),
    "evonorm_b0": Norm(
        evo_norm_b0, "EvoNormB0", "N, H, W; and H, W", "mean, var",
        Sync.YES, Mask.YES, Gradient.YES,
        "Liu et al. 2020, arXiv 2004.02967", "batch norm and activation in one",
    ),
    "evonorm_s0": Norm(
        evo_norm_s0, "EvoNormS0", "H, W, and C of a group", "none",
        Sync.BY_EXAMPLE, Mask.YES, Gradient.YES,
        "Liu et al. 2020, arXiv 2004.02967", "group norm and activation in one",
    ),
    "lrn": Norm(
        local_response_norm, "LocalResponseNorm", "neighbours in C", "none",
        Sync.BY_EXAMPLE, Mask.YES, Gradient.YES,
        "Krizhevsky, Sutskever and Hinton 2012", "AlexNet and its contemporaries",
    ),
    "grn": Norm(
        global_response_norm, "GlobalResponseNorm", "H, W; and C of those", "none",
        Sync.BY_EXAMPLE, Mask.YES, Gradient.YES,
        "Woo et al. 2023, arXiv 2301.00808", "ConvNeXt V2, after the expanding layer",
    ),
    "positional": Norm(
        positional_norm, "PositionalNorm", "C", "none",
        Sync.BY_EXAMPLE, Mask.YES, Gradient.YES,
        "Li et al. 2019, arXiv 1907.04312", "image generation, handing on what it takes off",
    ),
    "prms": Norm(
        partial_rms_norm, "PartialRMSNorm", "the first of C", "none",
        Sync.BY_EXAMPLE, Mask.YES, Gradient.YES,
        "Zhang and Sennrich 2019, arXiv 1910.07467", "RMS norm, cheaper",
    ),
    "scale": Norm(
        scale_norm, "ScaleNorm", "C", "none",
        Sync.BY_EXAMPLE, Mask.YES, Gradient.YES,
        "Nguyen and Salazar 2019, arXiv 1910.05895", "transformers with little data",
    ),
    "pixel": Norm(
        pixel_norm, "PixelNorm", "C", "none",
        Sync.BY_EXAMPLE, Mask.YES, Gradient.YES,
        "Karras et al. 2018, arXiv 1710.10196", "generators of GANs",
    ),
    "dyt": Norm(
        dynamic_tanh, "DynamicTanh", "none", "none",
        Sync.POINTWISE, Mask.POINTWISE, Gradient.YES,
        "Zhu et al. 2025, arXiv 2503.10622", "transformers, in the place of layer norm",
    ),
    "example_weighted": Norm(
        example_weighted_batch_norm, "ExampleWeightedBatchNorm", "N, H, W; evaluated with H, W", "mean, var",
        Sync.YES, Mask.YES, Gradient.YES,
        "Summers and Dinneen 2020, arXiv 1906.03548", "batch norm, when the network is evaluated on other data",
    ),
    "domain": Norm(
        domain_batch_norm, "DomainBatchNorm", "N, H, W of a domain", "mean, var of each domain",
        Sync.YES, Mask.YES, Gradient.YES,
        "Chang et al. 2019, arXiv 1906.03950", "data from several sources; adaptation to a new one",
    ),
    "split": Norm(
        domain_batch_norm, "SplitBatchNorm", "N, H, W of a part", "mean, var of each part",
        Sync.YES, Mask.YES, Gradient.YES,
        "Xie et al. 2020 (AdvProp), arXiv 1911.09665", "clean and adversarial (or augmented) examples in one batch",
    ),
    "switchable": Norm(
        switchable_norm, "SwitchableNorm", "N, H, W; H, W; and H, W, C", "mean, var",
        Sync.YES, Mask.YES, Gradient.YES,
        "Luo et al. 2018, arXiv 1806.10779", "where it is not known which of batch, instance and layer norm suits",
    ),
    "bcn": Norm(
        batch_channel_norm, "BatchChannelNorm", "N, H, W; then H, W, and C of a group", "mean, var",
        Sync.YES, Mask.YES, Gradient.YES,
        "Qiao et al. 2019, arXiv 1903.10520", "few examples a device, with weight standardization",
    ),
    "dbn": Norm(
        decorrelated_batch_norm, "DecorrelatedBatchNorm", "N, H, W: the covariance of C", "mean, matrix",
        Sync.YES, Mask.ONE_FOR_CHANNELS, Gradient.YES,
        "Huang et al. 2018, arXiv 1804.08450", "whitened features, exactly",
    ),
    "iternorm": Norm(
        iterative_norm, "IterativeNorm", "N, H, W: the covariance of C", "mean, matrix",
        Sync.YES, Mask.ONE_FOR_CHANNELS, Gradient.YES,
        "Huang et al. 2019, arXiv 1904.03441", "whitened features, on accelerators",
    ),
    "spectral": Norm(
        spectral_norm, "SpectralNorm", "the weights, as a matrix", "u, sigma",
        Sync.WEIGHTS, Mask.WEIGHTS, Gradient.CONSTANT_VECTORS,
        "Miyato et al. 2018, arXiv 1802.05957", "discriminators of GANs; wraps a layer",
    ),
    "weight": Norm(
        weight_norm, "WeightNorm", "the weights of an output", "none",
        Sync.WEIGHTS, Mask.WEIGHTS, Gradient.YES,
        "Salimans and Kingma 2016, arXiv 1602.07868", "networks that must not mix examples; wraps a layer",
    ),
    "ws": Norm(
        weight_standardize, "WeightStandardization", "the weights of an output", "none",
        Sync.WEIGHTS, Mask.WEIGHTS, Gradient.YES,
        "Qiao et al. 2019, arXiv 1903.10520", "with group norm and few examples a device; wraps a layer",
    ),
    "scaled_ws": Norm(
        scaled_weight_standardize, "ScaledWeightStandardization", "the weights of an output", "none",
        Sync.WEIGHTS, Mask.WEIGHTS, Gradient.YES,
        "Brock et al. 2021, arXiv 2101.08692", "networks without activation norms (NF-nets); wraps a layer",
    ),
}  # fmt: skip


ALIASES: dict[str, str] = {}
for _name, _norm in NORMS.items():
    ALIASES.setdefault(_norm.module, _name)
    ALIASES.setdefault(_norm.function.__name__, _name)


def norm_named(name: str) -> Norm:
    """The row of that name, or that of the class or function of that name.

    Raises:
      ValueError: no such name; says the nearest.
    """
    name = ALIASES.get(name, name)
    if name not in NORMS:
        near = difflib.get_close_matches(str(name), [*NORMS, "none"], cutoff=0.4) or sorted(NORMS)
        raise ValueError(
            f"`name` must be that of a norm, but it is {name!r}; did you mean {' or '.join(map(repr, near))}?"
        )
    return NORMS[name]


def check_arguments(name: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Raises where a norm does not take an argument; says which it takes."""
    checks.known_arguments(repr(name), given, sorted(set(known)))
