"""The article's network, once for linen and nnx.

Its layers: a norm of the image; twice a 3x3 convolution, relu, a norm and a 2x2 pooling; a dense layer, relu and a
norm; a dense layer that gives the logits. The config may put a dropout before the last layer. So the norms come behind
the relus, where their paper has them before.

What is corrected: the batch norm starts with a mean of zero and a scale of one, and is evaluated with running
statistics, as in its paper (arXiv 1502.03167). The size of the dense layer comes from the image, so that images of any
size fit. A norm that would measure one number alone is left out.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import nnx
from jax import Array

from experiments.config import ModelConfig
from experiments.models.network import Job, Network, Shape, linen_network, nnx_network
from experiments.models.norms import SITES, Call, NormChoice, choice_of, linen_norm, nnx_norm, no_norm, why_not


class Layers(NamedTuple):
    """How a library makes its layers: from the numbers of input and output features, and the rank of the input."""

    norm: Callable[[int, int], Any]
    conv: Callable[[int, int], Any]
    dense: Callable[[int, int], Any]
    dropout: Callable[[float], Any]


def add_layers(net: Any, layers: Layers, config: ModelConfig, shape: Shape, classes: int) -> None:
    """Gives `net` the layers of the article, for images of `shape` (height, width, channels)."""
    height, width, channels = shape
    one, two, wide = config.widths
    net.relu = (lambda x: x) if choice_of(config, {}).active else jax.nn.relu
    net.norm0 = layers.norm(channels, 4)
    net.conv1 = layers.conv(channels, one)
    net.norm1 = layers.norm(one, 4)
    net.conv2 = layers.conv(one, two)
    net.norm2 = layers.norm(two, 4)
    net.dense = layers.dense(height // 4 * (width // 4) * two, wide)
    net.norm3 = layers.norm(wide, 2)
    net.dropout = layers.dropout(config.dropout) if config.dropout else no_norm
    net.head = layers.dense(wide, classes)


def forward(net: Any, x: Array, *, train: bool, mask: Array | None) -> Array:
    """The logits (n, classes) of images (n, height, width, channels)."""
    call = Call(train, mask)
    x = call(net.norm0, x)
    x = _pool(call(net.norm1, net.relu(net.conv1(x))))
    x = _pool(call(net.norm2, net.relu(net.conv2(x))))
    x = x.reshape(x.shape[0], -1)
    x = call(net.norm3, net.relu(net.dense(x)))
    return net.head(call.dropout(net.dropout, x))


def _where_it_measures(choice: NormChoice, make: Callable[..., Any]) -> Callable[[int, int], Any]:
    """Makes norms for features and a rank; where one would measure nothing, it is left out."""

    def norm(features: int, ndim: int) -> Any:
        site = SITES[ndim]
        return no_norm if why_not(choice.name, site, features) else make(choice, site, features)

    return norm


def _pool(x: Array) -> Array:
    return nn.max_pool(x, (2, 2), strides=(2, 2))


def build(config: ModelConfig, shape: Shape, classes: int, norm: Mapping[str, Any]) -> Network:
    """The network for images of `shape`; `norm` are arguments of every norm of the batch."""
    if config.api == "nnx":
        return nnx_network(lambda rngs: NnxCNN(config, shape, classes, norm, rngs=rngs), random=bool(config.dropout))
    job = Job(jax.ShapeDtypeStruct((1, *shape), jnp.float32), classes)
    return linen_network(LinenCNN(config, shape, classes, norm), job, random=bool(config.dropout))


class LinenCNN(nn.Module):
    """The article's network for linen."""

    config: ModelConfig
    shape: Shape
    classes: int
    norm: Mapping[str, Any]

    def setup(self) -> None:
        dtype = jnp.dtype(self.config.dtype)
        layers = Layers(
            norm=_where_it_measures(choice_of(self.config, self.norm), partial(linen_norm, dtype=dtype)),
            conv=lambda _, features: nn.Conv(features, (3, 3), dtype=dtype),
            dense=lambda _, features: nn.Dense(features, dtype=dtype),
            dropout=nn.Dropout,
        )
        add_layers(self, layers, self.config, self.shape, self.classes)

    def __call__(self, x: Array, *, train: bool, mask: Array | None = None) -> Array:
        return forward(self, x, train=train, mask=mask)


class NnxCNN(nnx.Module):
    """The article's network for nnx."""

    def __init__(self, config: ModelConfig, shape: Shape, classes: int, norm: Mapping[str, Any], *, rngs: nnx.Rngs):
        dtype = jnp.dtype(config.dtype)
        layers = Layers(
            norm=_where_it_measures(choice_of(config, norm), partial(nnx_norm, rngs=rngs, dtype=dtype)),
            conv=lambda inputs, features: nnx.Conv(inputs, features, (3, 3), dtype=dtype, rngs=rngs),
            dense=lambda inputs, features: nnx.Linear(inputs, features, dtype=dtype, rngs=rngs),
            dropout=partial(nnx.Dropout, rngs=rngs),
        )
        add_layers(self, layers, config, shape, classes)

    def __call__(self, x: Array, *, train: bool, mask: Array | None = None) -> Array:
        return forward(self, x, train=train, mask=mask)
