"""DenseNet (arXiv 1608.06993), for ImageNet and for CIFAR, for linen: each layer sees the outputs of all before it.

The norm and relu come before each convolution. What differs from the reference: padding is `SAME`, which at even sizes
pads below and to the right alone where the stride is 2.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from experiments.models.layers import HE
from experiments.models.norms import NormChoice, Norms, norms_of
from experiments.models.sizes import Sizes, sized

CIFAR = {"images": "small", "classes": 10}
SIZES: Sizes = {
    "121": {"blocks": (6, 12, 24, 16)},
    "169": {"blocks": (6, 12, 32, 32)},
    "201": {"blocks": (6, 12, 48, 32)},
    "161": {"blocks": (6, 12, 36, 24), "growth": 48, "start": 96},
    "cifar40": CIFAR
    | {"blocks": (12,) * 3, "growth": 12, "start": 16, "bottleneck": False, "keeps": 1.0, "dropout": 0.2},
    "cifar100": CIFAR | {"blocks": (16,) * 3, "growth": 12, "start": 24, "dropout": 0.2},
    "small": CIFAR | {"blocks": (3,) * 3, "growth": 8, "start": 16},
}


class Block(nn.Module):
    """Layers that add channels to their input.

    Attributes:
      layers: how many.
      growth: the channels that each adds.
      bottleneck: a convolution of 1x1 with four times as many comes first.
      dropout: the rate, after each convolution.
      dtype: of the computation; that of inputs and parameters by default.
    """

    layers: int
    growth: int
    bottleneck: bool
    dropout: float
    dtype: Any

    @nn.compact
    def __call__(self, x: Array, norms: Norms) -> Array:
        conv = partial(nn.Conv, use_bias=norms.use_bias, dtype=self.dtype, kernel_init=HE)
        for _ in range(self.layers):
            y = x
            if self.bottleneck:
                y = conv(4 * self.growth, (1, 1))(norms.relu(y))
                y = norms.dropout(self.dropout, y)
            y = conv(self.growth, (3, 3))(norms.relu(y))
            x = jnp.concatenate([x, norms.dropout(self.dropout, y)], axis=-1)
        return x


class DenseNet(nn.Module):
    """Logits (n, classes) of images (n, height, width, channels); `mask` (n,) says which examples count.

    Attributes:
      norm: which one.
      blocks: the number of layers in each.
      growth: the channels that a layer adds.
      start: the channels of the first convolution.
      bottleneck: see `Block`.
      keeps: the part of the channels that is kept between two blocks.
      images: `large` ones go through a 7x7 convolution of stride 2 and a pooling first, `small` ones through a 3x3 one.
      dropout: the rate, after each convolution but the first.
      classes: the number of logits.
      dtype: of the computation; that of inputs and parameters by default.
    """

    norm: NormChoice
    blocks: Sequence[int] = (6, 12, 24, 16)
    growth: int = 32
    start: int = 64
    bottleneck: bool = True
    keeps: float = 0.5
    images: Literal["large", "small"] = "large"
    dropout: float = 0.0
    classes: int = 1000
    dtype: Any = None

    @nn.compact
    def __call__(self, inputs: Array, train: bool = True, mask: Array | None = None) -> Array:
        norms = norms_of(self.norm, train, mask, self.dtype)
        x = inputs if self.dtype is None else inputs.astype(self.dtype)
        conv = partial(nn.Conv, use_bias=norms.use_bias, dtype=self.dtype, kernel_init=HE)
        x = self.stem(x, norms, conv)
        for i, layers in enumerate(self.blocks):
            block = Block(layers, self.growth, self.bottleneck, self.dropout, self.dtype, name=f"stage{i}")
            x = block(x, norms)
            x = norms.relu(x)
            if i < len(self.blocks) - 1:
                features = int(x.shape[-1] * self.keeps)
                x = conv(features, (1, 1))(x)
                x = nn.avg_pool(norms.dropout(self.dropout, x), (2, 2), (2, 2))
        return nn.Dense(self.classes, dtype=self.dtype)(x.mean((1, 2)))

    def stem(self, x: Array, norms: Norms, conv: Callable[..., Any]) -> Array:
        """What comes before the blocks."""
        if self.images == "small":
            return conv(self.start, (3, 3))(x)
        x = conv(self.start, (7, 7), (2, 2))(x)
        return nn.max_pool(norms.relu(x), (3, 3), (2, 2), "SAME")


def build(
    *,
    norm: NormChoice,
    size: str = "small",
    classes: int | None = None,
    dropout: float | None = None,
    dtype: Any = None,
    **sizes: Any,
) -> DenseNet:
    """A DenseNet, of a published size.

    Args:
      norm: before each relu and convolution.
      size: of `SIZES`.
      classes: the number of logits; that of `size` by default.
      dropout: the rate; that of `size` by default.
      dtype: of the computation; that of inputs and parameters by default.
      **sizes: attributes of `DenseNet` in the place of those of `size`.
    """
    return DenseNet(norm, dtype=dtype, **sized(SIZES, size, {"classes": classes, "dropout": dropout, **sizes}))
