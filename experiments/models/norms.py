"""The norm of a config, at every place where a model has one."""

import math
from collections.abc import Callable, Mapping
from typing import Any, cast

from flax import nnx
from jax import Array

import bnjax
from bnjax import linen as bnn
from bnjax import nnx as bnnx
from experiments.config import ModelConfig

ACTIVE = ("frn", "evonorm_b0", "evonorm_s0")  # have an activation of their own: no relu before them
OF_IMAGES = ("instance", "frn", "evonorm_b0", "evonorm_s0", "grn", "switchable")  # measure an image's height and width
OF_CHANNELS = ("positional", "scale", "pixel", "prms", "grn")  # measure the channels of a position
OF_SOME_WIDTHS = ("prms", "dbn", "iternorm")  # take a part of the channels, or groups of so many


def norm_arguments(config: ModelConfig, features: int, ndim: int, batch: Mapping[str, Any]) -> dict[str, Any] | None:
    """What the norm of a config is made with, for an input of so many features and that rank; None: left out.

    A norm that would measure one number alone, and so return nothing of it, is left out: one of channels where there
    is one, one of images where there is none.
    """
    name = config.norm
    if name == "none" or (ndim == 2 and name in OF_IMAGES) or (features == 1 and name in OF_CHANNELS):
        return None
    row = bnjax.NORMS[name]
    arguments: dict[str, Any] = {"momentum": config.momentum} if row.takes_running_average else {}
    if name in ("batch", "ghost"):
        arguments |= {"virtual_batch_size": config.ghost_size} if name == "ghost" else {}
        arguments |= batch
    elif row.takes_running_average:
        arguments |= {k: v for k, v in batch.items() if k == "axis_name"}
    if name in ("group", "evonorm_s0", "bcn"):
        arguments["num_groups"] = math.gcd(config.groups, features)
    if name in ("layer", "rms"):
        arguments["reduction_axes"] = tuple(range(1, ndim))  # of the whole example, as Group Norm's paper compares
    return arguments


def hands_out_moments(config: ModelConfig) -> bool:
    """Whether moments are all that the norm's running statistics are stepped with."""
    return not takes_state(config) or config.norm in ("batch", "ghost")


def takes_state(config: ModelConfig) -> bool:
    """Whether the norm keeps running statistics, and so takes `use_running_average`."""
    return config.norm != "none" and bnjax.NORMS[config.norm].takes_running_average


def linen_norm(config: ModelConfig, features: int, ndim: int, batch: Mapping[str, Any]) -> Callable[..., Array]:
    """The norm as a linen module, or the identity where it is left out."""
    arguments = norm_arguments(config, features, ndim, batch)
    return no_norm if arguments is None else bnn.make_norm(cast(bnjax.NormName, config.norm), **arguments)()


def nnx_norm(
    config: ModelConfig, features: int, ndim: int, batch: Mapping[str, Any], rngs: nnx.Rngs
) -> Callable[..., Array]:
    """The norm as an nnx module, or the identity where it is left out."""
    arguments = norm_arguments(config, features, ndim, batch)
    name = cast(bnjax.NormName, config.norm)
    return no_norm if arguments is None else bnnx.make_norm(name, features, **arguments, rngs=rngs)


def no_norm(x: Array, **_: Any) -> Array:
    """What stands where a norm is left out."""
    return x
