"""ResNet, DenseNet, MobileNet, and a block under the transformations, in Flax linen."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax.numpy as jnp
from flax import linen as nn


class Basic(nn.Module):
    filters: int
    conv: Callable
    norm: Callable
    strides: tuple[int, int]

    @nn.compact
    def __call__(self, x):
        y = nn.relu(self.norm()(self.conv(self.filters, (3, 3), self.strides)(x)))
        y = self.norm(scale_init=nn.initializers.zeros)(self.conv(self.filters, (3, 3))(y))
        if x.shape != y.shape:
            x = self.norm(name="norm_proj")(self.conv(y.shape[-1], (1, 1), self.strides, name="conv_proj")(x))
        return nn.relu(x + y)


class Bottleneck(Basic):
    @nn.compact
    def __call__(self, x):
        y = nn.relu(self.norm()(self.conv(self.filters, (1, 1))(x)))
        y = nn.relu(self.norm()(self.conv(self.filters, (3, 3), self.strides)(y)))
        y = self.norm(scale_init=nn.initializers.zeros)(self.conv(4 * self.filters, (1, 1))(y))
        if x.shape != y.shape:
            x = self.norm(name="norm_proj")(self.conv(y.shape[-1], (1, 1), self.strides, name="conv_proj")(x))
        return nn.relu(x + y)


class ResNet(nn.Module):
    """Like the example of ImageNet in Flax: the norm is a partial, made anew in every call."""

    block: Callable
    filters: int = 8
    stages: Sequence[int] = (1, 1)
    axis_name: str | None = None
    dtype: Any = None

    @nn.compact
    def __call__(self, x, train: bool = True):
        conv = partial(nn.Conv, use_bias=False, dtype=self.dtype)
        norm = partial(
            nn.BatchNorm,
            use_running_average=not train,
            momentum=0.9,
            epsilon=1e-5,
            dtype=self.dtype,
            axis_name=self.axis_name,
        )
        x = conv(self.filters, (7, 7), (2, 2), padding=[(3, 3), (3, 3)], name="conv_init")(x)
        x = nn.max_pool(nn.relu(norm(name="bn_init")(x)), (3, 3), strides=(2, 2), padding="SAME")
        for i, length in enumerate(self.stages):
            for j in range(length):
                strides = (2, 2) if i > 0 and j == 0 else (1, 1)
                x = self.block(self.filters * 2**i, conv, norm, strides)(x)
        return nn.Dense(10, dtype=self.dtype)(x.mean((1, 2)))


class DenseNet(nn.Module):
    """Norm, relu, convolution; what was computed before is concatenated."""

    @nn.compact
    def __call__(self, x, train: bool):
        norm = partial(nn.BatchNorm, use_running_average=not train, momentum=0.9)
        x = nn.Conv(8, (3, 3), use_bias=False)(x)
        for _ in range(2):
            y = nn.Conv(8, (1, 1), use_bias=False)(nn.relu(norm()(x)))
            y = nn.Conv(4, (3, 3), use_bias=False)(nn.relu(norm()(y)))
            x = jnp.concatenate([x, y], -1)
        return nn.Dense(10)(nn.relu(norm()(x)).mean((1, 2)))


class MobileNet(nn.Module):
    """Depthwise convolutions; the mode is given at the call."""

    @nn.compact
    def __call__(self, x, is_training: bool):
        def norm(x):
            return nn.BatchNorm(momentum=0.9)(x, use_running_average=not is_training)

        x = nn.relu6(norm(nn.Conv(8, (3, 3), (2, 2), use_bias=False)(x)))
        for features in (8, 16):
            channels = x.shape[-1]
            x = nn.Conv(channels, (3, 3), feature_group_count=channels, use_bias=False)(x)
            x = norm(nn.Conv(features, (1, 1))(nn.relu6(norm(x))))
        return nn.Dense(10)(x.mean((1, 2)))


class Block(nn.Module):
    norm: Callable = nn.BatchNorm

    @nn.compact
    def __call__(self, x, train: bool):
        y = self.norm(use_running_average=not train, momentum=0.9)(nn.Conv(x.shape[-1], (3, 3), use_bias=False)(x))
        return nn.relu(y) + x


class Lifted(nn.Module):
    """One block under each transformation, and under several."""

    axis: int = 0
    norm: Callable = nn.BatchNorm

    @nn.compact
    def __call__(self, x, train: bool):
        axes = {"params": 0, "batch_stats": self.axis}
        lift = {"variable_axes": axes, "split_rngs": {"params": True}, "metadata_params": {nn.PARTITION_NAME: "layers"}}
        block = partial(Block, self.norm)
        remat = nn.remat(Block, static_argnums=(2,))
        x = nn.Conv(8, (3, 3))(x)
        x, _ = nn.scan(lambda m, x, _: (m(x, train), None), length=3, **lift)(remat(self.norm, name="scanned"), x, None)
        x = nn.remat(Block, static_argnums=(2,))(self.norm, name="remat")(x, train)
        x = nn.jit(Block, static_argnums=(2,))(self.norm, name="jit")(x, train)
        x = nn.vmap(Block, in_axes=(0, None), **lift)(self.norm, name="vmap")(jnp.stack([x, -x]), train).sum(0)
        return nn.Dense(4)(block(name="plain")(x, train).mean((1, 2)))
