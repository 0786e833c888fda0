"""ResNet, DenseNet, MobileNet, and blocks under the transformations, in Flax nnx."""

from functools import partial
from typing import Any

import jax.numpy as jnp
from flax import nnx


class Basic(nnx.Module):
    def __init__(self, inputs, filters, strides, *, rngs, **norm):
        conv = partial(nnx.Conv, use_bias=False, dtype=norm.get("dtype"), rngs=rngs)
        norm = partial(nnx.BatchNorm, momentum=0.9, rngs=rngs, **norm)
        self.conv1, self.norm1 = conv(inputs, filters, (3, 3), strides), norm(filters)
        self.conv2, self.norm2 = conv(filters, filters, (3, 3)), norm(filters)
        self.project = inputs != filters or strides != (1, 1)
        if self.project:
            self.conv_proj, self.norm_proj = conv(inputs, filters, (1, 1), strides), norm(filters)

    def __call__(self, x):
        y = self.norm2(self.conv2(nnx.relu(self.norm1(self.conv1(x)))))
        return nnx.relu(y + (self.norm_proj(self.conv_proj(x)) if self.project else x))


class ResNet(nnx.Module):
    def __init__(self, rngs, filters=8, stages=(1, 1), **norm):
        dtype: Any = norm.get("dtype")
        self.conv = nnx.Conv(3, filters, (7, 7), (2, 2), use_bias=False, dtype=dtype, rngs=rngs)
        self.norm = nnx.BatchNorm(filters, momentum=0.9, rngs=rngs, **norm)
        self.blocks, before = nnx.List([]), filters
        for i, length in enumerate(stages):
            for j in range(length):
                strides = (2, 2) if i > 0 and j == 0 else (1, 1)
                self.blocks.append(Basic(before, filters * 2**i, strides, rngs=rngs, **norm))
                before = filters * 2**i
        self.head = nnx.Linear(before, 10, dtype=dtype, rngs=rngs)

    def __call__(self, x):
        x = nnx.max_pool(nnx.relu(self.norm(self.conv(x))), (3, 3), strides=(2, 2), padding="SAME")
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean((1, 2)))


class DenseNet(nnx.Module):
    def __init__(self, rngs):
        norm = partial(nnx.BatchNorm, momentum=0.9, rngs=rngs)
        conv = partial(nnx.Conv, use_bias=False, rngs=rngs)
        self.stem = conv(3, 8, (3, 3))
        self.blocks = nnx.List(
            nnx.Sequential(norm(c), nnx.relu, conv(c, 8, (1, 1)), norm(8), nnx.relu, conv(8, 4, (3, 3)))
            for c in (8, 12)
        )
        self.norm, self.head = norm(16), nnx.Linear(16, 10, rngs=rngs)

    def __call__(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = jnp.concatenate([x, block(x)], -1)
        return self.head(nnx.relu(self.norm(x)).mean((1, 2)))


class MobileNet(nnx.Module):
    """Depthwise convolutions; the mode is given at the call."""

    def __init__(self, rngs):
        conv, norm = partial(nnx.Conv, rngs=rngs), partial(nnx.BatchNorm, momentum=0.9, rngs=rngs)
        self.stem, self.norm = conv(3, 8, (3, 3), (2, 2), use_bias=False), norm(8)
        self.blocks = nnx.List(
            nnx.Dict(
                depthwise=conv(8, 8, (3, 3), feature_group_count=8, use_bias=False),
                norm1=norm(8),
                pointwise=conv(8, features, (1, 1)),
                norm2=norm(features),
            )
            for features in (8, 16)
        )
        self.head = nnx.Linear(16, 10, rngs=rngs)

    def __call__(self, x, train):
        mode = {"use_running_average": not train}
        x = nnx.relu6(self.norm(self.stem(x), **mode))
        for block in self.blocks:
            x = nnx.relu6(block.norm1(block.depthwise(x), **mode))
            x = block.norm2(block.pointwise(x), **mode)
        return self.head(x.mean((1, 2)))


class Block(nnx.Module):
    def __init__(self, features, rngs, **norm):
        self.conv = nnx.Conv(features, features, (3, 3), use_bias=False, rngs=rngs)
        self.norm = nnx.BatchNorm(features, momentum=0.9, rngs=rngs, **norm)

    def __call__(self, x):
        return nnx.relu(self.norm(self.conv(x))) + x


class Lifted(nnx.Module):
    """A stack of blocks under scan and remat, one under vmap, and one under jit. Statistics are stacked on `axis`."""

    def __init__(self, rngs, axis=0, **norm):
        self.axes = nnx.StateAxes({nnx.BatchStat: axis, ...: 0})

        def stacked(length):
            @nnx.split_rngs(splits=length)
            @partial(nnx.vmap, in_axes=(0,), out_axes=self.axes, transform_metadata={nnx.PARTITION_NAME: "layers"})
            def make(rngs):
                return Block(8, rngs, **norm)

            return make(rngs)

        self.stem, self.head = nnx.Conv(3, 8, (3, 3), rngs=rngs), nnx.Linear(8, 4, rngs=rngs)
        self.scanned, self.vmapped = stacked(3), stacked(2)
        self.remat, self.jitted = Block(8, rngs, **norm), Block(8, rngs, **norm)

    def __call__(self, x):
        lift = {"transform_metadata": {nnx.PARTITION_NAME: "layers"}}
        one = nnx.remat(lambda block, x: block(x))
        x = nnx.scan(one, in_axes=(self.axes, nnx.Carry), out_axes=nnx.Carry, **lift)(self.scanned, self.stem(x))
        x = nnx.jit(lambda block, x: block(x))(self.jitted, one(self.remat, x))
        x = nnx.vmap(lambda block, x: block(x), in_axes=(self.axes, 0), **lift)(self.vmapped, jnp.stack([x, -x])).sum(0)
        return self.head(x.mean((1, 2)))
