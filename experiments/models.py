"""The article's network, once for linen and nnx, and both of them as a pair of pure functions."""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import nnx
from jax import Array

import bnjax
from bnjax import linen as bnn
from bnjax import nnx as bnnx
from experiments.config import ModelConfig
from experiments.errors import UserError

Tree = Mapping[str, Any]
ACTIVE = ("frn", "evonorm_b0", "evonorm_s0")  # have an activation of their own: no relu before them
OF_IMAGES = ("instance", "frn", "evonorm_b0", "evonorm_s0", "grn", "switchable")  # measure an image's height and width
OF_CHANNELS = ("positional", "scale", "pixel", "prms", "grn")  # measure the channels of a position
OF_SOME_WIDTHS = ("prms", "dbn", "iternorm")  # take a part of the channels, or groups of so many
Shape = tuple[int, int, int]


class Network(NamedTuple):
    """A network as pure functions of its parameters and its running statistics."""

    init: Callable[[Array], tuple[Tree, Tree]]
    """`init(key)`: parameters and statistics."""
    apply: Callable[..., tuple[Array, Tree]]
    """`apply(params, stats, x, *, train, mask)`: logits and statistics; `mask` (n,) says which examples count."""
    measure: Callable[..., tuple[Array, Tree]]
    """`measure(params, stats, x, *, mask)`: as `apply` in training, but the moments in the place of the statistics.

    Of a norm that keeps more than moments: the new statistics, as `apply` returns them.
    """
    hands_out: bool = True
    """Whether `measure` returns moments."""


class Layers(NamedTuple):
    """How a library makes its layers: from the numbers of input and output features, and the rank of the input."""

    norm: Callable[[int, int], Any]
    conv: Callable[[int, int], Any]
    dense: Callable[[int, int], Any]


def add_layers(net: Any, layers: Layers, config: ModelConfig, shape: Shape, classes: int) -> None:
    """Gives `net` the layers of the article, for images of `shape` (height, width, channels)."""
    height, width, channels = shape
    one, two, wide = config.widths
    net.takes_state = config.norm != "none" and bnjax.NORMS[config.norm].takes_running_average
    net.relu = (lambda x: x) if config.norm in ACTIVE else jax.nn.relu
    net.norm0 = layers.norm(channels, 4)
    net.conv1 = layers.conv(channels, one)
    net.norm1 = layers.norm(one, 4)
    net.conv2 = layers.conv(one, two)
    net.norm2 = layers.norm(two, 4)
    net.dense = layers.dense(height // 4 * (width // 4) * two, wide)
    net.norm3 = layers.norm(wide, 2)
    net.head = layers.dense(wide, classes)


def forward(net: Any, x: Array, *, train: bool, mask: Array) -> Array:
    """The logits (n, classes) of images (n, height, width, channels)."""

    def norm(layer: Callable[..., Array], x: Array) -> Array:
        state = {"use_running_average": not train} if net.takes_state else {}
        return layer(x, mask=mask.reshape((-1,) + (1,) * (x.ndim - 1)), **state)

    x = norm(net.norm0, x)
    x = _pool(norm(net.norm1, net.relu(net.conv1(x))))
    x = _pool(norm(net.norm2, net.relu(net.conv2(x))))
    x = x.reshape(x.shape[0], -1)
    x = norm(net.norm3, net.relu(net.dense(x)))
    return net.head(x)


def _pool(x: Array) -> Array:
    return nn.max_pool(x, (2, 2), strides=(2, 2))


def _no_norm(x: Array, **_: Any) -> Array:
    return x


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


class LinenCNN(nn.Module):
    """The article's network for linen."""

    config: ModelConfig
    shape: Shape
    classes: int
    norm: Mapping[str, Any]

    def setup(self) -> None:
        def norm(features: int, ndim: int) -> Any:
            arguments = norm_arguments(self.config, features, ndim, self.norm)
            name = cast(bnjax.NormName, self.config.norm)
            return _no_norm if arguments is None else bnn.make_norm(name, **arguments)()

        layers = Layers(
            norm=norm,
            conv=lambda _, features: nn.Conv(features, (3, 3)),
            dense=lambda _, features: nn.Dense(features),
        )
        add_layers(self, layers, self.config, self.shape, self.classes)

    def __call__(self, x: Array, *, train: bool, mask: Array) -> Array:
        return forward(self, x, train=train, mask=mask)


class NnxCNN(nnx.Module):
    """The article's network for nnx."""

    def __init__(self, config: ModelConfig, shape: Shape, classes: int, norm: Mapping[str, Any], *, rngs: nnx.Rngs):
        def make(features: int, ndim: int) -> Any:
            arguments = norm_arguments(config, features, ndim, norm)
            name = cast(bnjax.NormName, config.norm)
            return _no_norm if arguments is None else bnnx.make_norm(name, features, **arguments, rngs=rngs)

        layers = Layers(
            norm=make,
            conv=lambda inputs, features: nnx.Conv(inputs, features, (3, 3), rngs=rngs),
            dense=lambda inputs, features: nnx.Linear(inputs, features, rngs=rngs),
        )
        add_layers(self, layers, config, shape, classes)

    def __call__(self, x: Array, *, train: bool, mask: Array) -> Array:
        return forward(self, x, train=train, mask=mask)


def make_network(config: ModelConfig, shape: Shape, classes: int, norm: Mapping[str, Any] | None = None) -> Network:
    """The network of a config, for images of `shape`; `norm` are arguments of every norm of the batch.

    Raises:
      UserError: widths that the norm cannot take.
    """
    make = {"linen": _linen_network, "nnx": _nnx_network}
    try:
        network = make[config.api](config, shape, classes, norm or {})
        if config.norm in OF_SOME_WIDTHS:
            jax.eval_shape(partial(_evaluated, network), jax.random.key(0), jnp.zeros((1, *shape)))
    except ValueError as error:
        raise UserError(
            f"`config.model.norm={config.norm}` cannot take `config.model.widths={config.widths}`: {error} "
            "Write other widths, or another norm."
        ) from error
    if hands_out_moments(config):
        return network
    return network._replace(measure=partial(network.apply, train=True), hands_out=False)


def _evaluated(network: Network, key: Array, x: Array) -> Array:
    logits, _ = network.apply(*network.init(key), x, train=False, mask=jnp.ones(len(x), bool))
    return logits


def hands_out_moments(config: ModelConfig) -> bool:
    """Whether moments are all that the norm's running statistics are stepped with."""
    stateless = config.norm == "none" or not bnjax.NORMS[config.norm].takes_running_average
    return stateless or config.norm in ("batch", "ghost")


def _linen_network(config: ModelConfig, shape: Shape, classes: int, norm: Mapping[str, Any]) -> Network:
    model = LinenCNN(config, shape, classes, norm)

    def init(key: Array) -> tuple[Tree, Tree]:
        variables = model.init(key, jnp.zeros((1, *shape)), train=False, mask=jnp.ones(1, bool))
        return variables["params"], variables.get("batch_stats", {})

    def apply(params: Tree, stats: Tree, x: Array, *, train: bool, mask: Array) -> tuple[Array, Tree]:
        variables = {"params": params, "batch_stats": stats}
        logits, new = model.apply(variables, x, train=train, mask=mask, mutable=["batch_stats"])
        return logits, new.get("batch_stats", {})

    def measure(params: Tree, stats: Tree, x: Array, *, mask: Array) -> tuple[Array, Tree]:
        variables = {"params": params, "batch_stats": stats}
        logits, new = model.apply(variables, x, train=True, mask=mask, mutable=["batch_moments"])
        return logits, new.get("batch_moments", {})

    return Network(init, apply, measure)


def _nnx_network(config: ModelConfig, shape: Shape, classes: int, norm: Mapping[str, Any]) -> Network:
    def model(key: Array) -> NnxCNN:
        return NnxCNN(config, shape, classes, norm, rngs=nnx.Rngs(key))

    graph = nnx.graphdef(nnx.eval_shape(model, jax.random.key(0)))

    def init(key: Array) -> tuple[Tree, Tree]:
        net = model(key)
        return nnx.to_pure_dict(nnx.state(net, nnx.Param)), nnx.to_pure_dict(nnx.state(net, nnx.BatchStat))

    def apply(params: Tree, stats: Tree, x: Array, *, train: bool, mask: Array) -> tuple[Array, Tree]:
        net = nnx.merge(graph, params, stats)
        logits = net(x, train=train, mask=mask)
        return logits, nnx.to_pure_dict(nnx.state(net, nnx.BatchStat))

    def measure(params: Tree, stats: Tree, x: Array, *, mask: Array) -> tuple[Array, Tree]:
        net = nnx.merge(graph, params, stats)
        return nnx.capture(net, bnnx.BatchMoments)(x, train=True, mask=mask)

    return Network(init, apply, measure)
