"""The article's network, once for linen and nnx, and both of them as a pair of pure functions."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import nnx
from jax import Array

from bnjax import linen as bnn
from bnjax import nnx as bnnx
from experiments.config import ModelConfig

Tree = Mapping[str, Any]
Shape = tuple[int, int, int]


class Network(NamedTuple):
    """A network as pure functions of its parameters and its running statistics."""

    init: Callable[[Array], tuple[Tree, Tree]]
    """`init(key)`: parameters and statistics."""
    apply: Callable[..., tuple[Array, Tree]]
    """`apply(params, stats, x, *, train, mask)`: logits and statistics; `mask` (n,) says which examples count."""
    measure: Callable[..., tuple[Array, Tree]]
    """`measure(params, stats, x, *, mask)`: as `apply` in training, but the moments in the place of the statistics."""


class Layers(NamedTuple):
    """How a library makes its layers, from the numbers of input and output features."""

    norm: Callable[[int], Any]
    conv: Callable[[int, int], Any]
    dense: Callable[[int, int], Any]


def add_layers(net: Any, layers: Layers, config: ModelConfig, shape: Shape, classes: int) -> None:
    """Gives `net` the layers of the article, for images of `shape` (height, width, channels)."""
    height, width, channels = shape
    one, two, wide = config.widths
    net.norm0 = layers.norm(channels)
    net.conv1 = layers.conv(channels, one)
    net.norm1 = layers.norm(one)
    net.conv2 = layers.conv(one, two)
    net.norm2 = layers.norm(two)
    net.dense = layers.dense(height // 4 * (width // 4) * two, wide)
    net.norm3 = layers.norm(wide)
    net.head = layers.dense(wide, classes)


def forward(net: Any, x: Array, *, train: bool, mask: Array) -> Array:
    """The logits (n, classes) of images (n, height, width, channels)."""

    def norm(layer: Callable[..., Array], x: Array) -> Array:
        return layer(x, use_running_average=not train, mask=mask.reshape((-1,) + (1,) * (x.ndim - 1)))

    x = norm(net.norm0, x)
    x = _pool(norm(net.norm1, jax.nn.relu(net.conv1(x))))
    x = _pool(norm(net.norm2, jax.nn.relu(net.conv2(x))))
    x = x.reshape(x.shape[0], -1)
    x = norm(net.norm3, jax.nn.relu(net.dense(x)))
    return net.head(x)


def _pool(x: Array) -> Array:
    return nn.max_pool(x, (2, 2), strides=(2, 2))


def _no_norm(x: Array, **_: Any) -> Array:
    return x


class LinenCNN(nn.Module):
    """The article's network for linen."""

    config: ModelConfig
    shape: Shape
    classes: int
    norm: Mapping[str, Any]

    def setup(self) -> None:
        arguments = {"momentum": self.config.momentum, **self.norm}
        norms = {"none": lambda _: _no_norm, "batch": lambda _: bnn.BatchNorm(**arguments)}
        layers = Layers(
            norm=norms[self.config.norm],
            conv=lambda _, features: nn.Conv(features, (3, 3)),
            dense=lambda _, features: nn.Dense(features),
        )
        add_layers(self, layers, self.config, self.shape, self.classes)

    def __call__(self, x: Array, *, train: bool, mask: Array) -> Array:
        return forward(self, x, train=train, mask=mask)


class NnxCNN(nnx.Module):
    """The article's network for nnx."""

    def __init__(self, config: ModelConfig, shape: Shape, classes: int, norm: Mapping[str, Any], *, rngs: nnx.Rngs):
        arguments = {"momentum": config.momentum, **norm, "rngs": rngs}
        norms = {"none": lambda _: _no_norm, "batch": lambda features: bnnx.BatchNorm(features, **arguments)}
        layers = Layers(
            norm=norms[config.norm],
            conv=lambda inputs, features: nnx.Conv(inputs, features, (3, 3), rngs=rngs),
            dense=lambda inputs, features: nnx.Linear(inputs, features, rngs=rngs),
        )
        add_layers(self, layers, config, shape, classes)

    def __call__(self, x: Array, *, train: bool, mask: Array) -> Array:
        return forward(self, x, train=train, mask=mask)


def make_network(config: ModelConfig, shape: Shape, classes: int, norm: Mapping[str, Any] | None = None) -> Network:
    """The network of a config, for images of `shape`; `norm` are arguments of every `BatchNorm`."""
    make = {"linen": _linen_network, "nnx": _nnx_network}
    return make[config.api](config, shape, classes, norm or {})


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
