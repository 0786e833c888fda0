"""ResNet as in Flax's ImageNet example, with the norm as an argument.

The benchmark and `experiments.scale` compile it. It takes no mask of examples, so that it is not in `MODELS`.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from bnjax import linen as bnn

FIFTY = (3, 4, 6, 3)  # blocks in every stage


def norm_and_relu(make: Callable[..., Callable[..., Array]], inside: bool) -> Callable[..., Array]:
    """A norm as the blocks call it, made by `make`, with shortcut and relu: `inside` it, or after it."""

    def norm(x: Array, shortcut: Callable[[], Array | None] = lambda: None, relu: bool = True, **more: Any) -> Array:
        if inside:
            return make(activation="relu" if relu else None, **more)(x, residual=shortcut())
        y = make(**more)(x)  # before the shortcut, as in Flax's example: the order decides a per cent of memory
        residual = shortcut()
        y = y if residual is None else residual + y
        return nn.relu(y) if relu else y

    return norm


class Bottleneck(nn.Module):
    """Three convolutions beside a shortcut."""

    filters: int
    conv: Any
    norm: Callable[..., Array]
    strides: tuple[int, int] = (1, 1)

    @nn.compact
    def __call__(self, x: Array) -> Array:
        y = self.norm(self.conv(self.filters, (1, 1))(x))
        y = self.norm(self.conv(self.filters, (3, 3), self.strides)(y))
        y = self.conv(self.filters * 4, (1, 1))(y)

        def shortcut() -> Array:
            if x.shape == y.shape:
                return x
            projected = self.conv(self.filters * 4, (1, 1), self.strides, name="conv_proj")(x)
            return self.norm(projected, relu=False, name="norm_proj")

        return self.norm(y, shortcut=shortcut, scale_init=nn.initializers.zeros)


class Stem(nn.Module):
    """What comes before the stages: a quarter of the resolution."""

    filters: int
    conv: Any
    norm: Callable[..., Array]

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = self.conv(self.filters, (7, 7), (2, 2), padding=[(3, 3), (3, 3)], name="conv_init")(x)
        return nn.max_pool(self.norm(x, name="bn_init"), (3, 3), strides=(2, 2), padding="SAME")


class Stage(nn.Module):
    """Blocks in a row, at one resolution."""

    first: int  # the number of its first block in the network
    blocks: int
    halves: bool  # the resolution, in its first block
    filters: int
    conv: Any
    norm: Callable[..., Array]

    @nn.compact
    def __call__(self, x: Array) -> Array:
        for j in range(self.blocks):
            strides = (2, 2) if self.halves and j == 0 else (1, 1)
            x = Bottleneck(self.filters, self.conv, self.norm, strides, name=f"Bottleneck_{self.first + j}")(x)
        return x


class ResNet(nn.Module):
    """Version 1.5: the strides are in the 3x3 convolutions."""

    norm: Any  # a class with the attributes of `flax.linen.BatchNorm`
    relu_inside: bool = False  # whether it takes the residual and relu, too
    remat: bool = False  # `bnjax.linen.remat` of the stem and of every stage
    stages: Sequence[int] = FIFTY
    filters: int = 64
    classes: int = 1000
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool = True) -> Array:
        conv = partial(nn.Conv, use_bias=False, dtype=self.dtype)

        make = partial(self.norm, use_running_average=not train, momentum=0.9, epsilon=1e-5, dtype=self.dtype)
        norm = norm_and_relu(make, self.relu_inside)
        stem = bnn.remat(Stem) if self.remat else Stem
        stage = bnn.remat(Stage) if self.remat else Stage
        x = stem(self.filters, conv, norm, name="Stem")(x)
        for i, blocks in enumerate(self.stages):
            x = stage(sum(self.stages[:i]), blocks, i > 0, self.filters * 2**i, conv, norm, name=f"Stage_{i}")(x)
        x = jnp.mean(x, (1, 2))
        return nn.Dense(self.classes, dtype=self.dtype)(x)
