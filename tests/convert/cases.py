"""One layout each, in PyTorch, Keras, linen and nnx: `CASES`. PyTorch and Keras are imported when they are called."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import nnx

from bnjax import linen as bl
from bnjax import nnx as bx


@dataclass(frozen=True)
class Case:
    """A model four times, and the shape of its input: channels last; of integers below 10, if it ends with 0.

    `torch(torch.nn)` and `keras(keras.layers)` give a module, or the layers of one. `linen(x)` is called in a compact
    module, `nnx(rngs)` gives a model. `back`: whether PyTorch's arrays come back bit-equal.
    """

    shape: tuple[int, ...]
    linen: Callable[[Any], Any]
    nnx: Callable[[nnx.Rngs], Any] | None = None
    torch: Callable[[Any], Any] | None = None
    keras: Callable[[Any], Any] | None = None
    back: bool = True

    @property
    def x(self):
        """An input, always the same."""
        rng = np.random.default_rng(0)
        if self.shape[-1] == 0:
            return rng.integers(0, 10, self.shape[:-1]).astype(np.int32)
        return rng.normal(size=self.shape).astype(np.float32)


class Compact(nn.Module):
    f: Callable[[Any], Any]

    @nn.compact
    def __call__(self, x):
        return self.f(x)


class Chain(nnx.Module):
    """Layers and functions, one after the other."""

    def __init__(self, *layers):
        self.layers = nnx.List(layers)

    def __call__(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


def flat(x):
    return x.reshape(x.shape[0], -1)


def shapes_of(case):
    """The linen model of a case, and the shapes of its variables."""
    model = Compact(case.linen)
    return model, jax.eval_shape(model.init, jax.random.key(0), case.x)


class Block(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        return nn.tanh(nn.LayerNorm(epsilon=1e-5)(nn.Dense(6)(x))), None


def scanned(x):
    return nn.scan(Block, variable_axes={"params": 0}, split_rngs={"params": True}, length=3)(name="blocks")(x, None)[0]


class NnxBlock(nnx.Module):
    def __init__(self, rngs):
        self.dense, self.norm = nnx.Linear(6, 6, rngs=rngs), nnx.LayerNorm(6, epsilon=1e-5, rngs=rngs)

    def __call__(self, x):
        return nnx.tanh(self.norm(self.dense(x)))


class NnxStack(nnx.Module):
    def __init__(self, rngs):
        self.blocks = nnx.split_rngs(splits=3)(nnx.vmap(NnxBlock))(rngs)

    def __call__(self, x):
        return nnx.scan(lambda b, x: b(x), in_axes=(0, nnx.Carry), out_axes=nnx.Carry)(self.blocks, x)


def tower(t):
    return t.Sequential(*(layer for _ in range(3) for layer in (t.Linear(6, 6), t.LayerNorm(6), t.Tanh())))


def by_hand(x, scale, bias):
    d = x - x.mean(-1, keepdims=True)
    return d / jnp.sqrt((d**2).mean(-1, keepdims=True) + 1e-5) * scale[None] + bias[None]


class Own(nn.Module):
    """A layer norm of somebody's own, whose scale is near `1 - plus`."""

    plus: float

    @nn.compact
    def __call__(self, x):
        scale, bias = (self.param(name, nn.initializers.zeros, x.shape[-1:]) for name in ("scale", "bias"))
        return by_hand(x, self.plus + scale, bias)


class NnxOwn(nnx.Module):
    def __init__(self, plus):
        self.scale, self.bias, self.plus = nnx.Param(jnp.zeros(6)), nnx.Param(jnp.zeros(6)), plus

    def __call__(self, x):
        return by_hand(x, self.plus + self.scale[...], self.bias[...])


def attention(t):
    class Attention(t.Module):
        def __init__(self):
            super().__init__()
            self.attn = t.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, x):
            return self.attn(x, x, x, need_weights=False)[0]

    return Attention()


def keras_attention(k):
    class Attention(k.Layer):
        def __init__(self):
            super().__init__()
            self.attn = k.MultiHeadAttention(2, 4)

        def call(self, x):
            return self.attn(x, x)

    return Attention()


Norm = partial(nn.BatchNorm, use_running_average=True)
LONG, UP = {"strides": (2, 2), "padding": "VALID"}, {"strides": (2, 2), "padding": "VALID", "transpose_kernel": True}
IMAGE, ROW = (2, 5, 4, 3), (2, 6)

CASES = {
    "convolution": Case(
        IMAGE,
        lambda x: nn.Conv(4, (3, 3))(x),
        lambda rngs: nnx.Conv(3, 4, (3, 3), rngs=rngs),
        lambda t: t.Conv2d(3, 4, 3, padding=1),
        lambda k: k.Conv2D(4, 3, padding="same"),
    ),
    "convolution, 1-D": Case(
        (2, 5, 3),
        lambda x: nn.Conv(4, (3,))(x),
        lambda rngs: nnx.Conv(3, 4, (3,), rngs=rngs),
        lambda t: t.Conv1d(3, 4, 3, padding=1),
        lambda k: k.Conv1D(4, 3, padding="same"),
    ),
    "convolution, 3-D": Case(
        (2, 3, 4, 5, 3),
        lambda x: nn.Conv(4, (3, 3, 3))(x),
        lambda rngs: nnx.Conv(3, 4, (3, 3, 3), rngs=rngs),
        lambda t: t.Conv3d(3, 4, 3, padding=1),
        lambda k: k.Conv3D(4, 3, padding="same"),
    ),
    "grouped": Case(
        (2, 5, 5, 4),
        lambda x: nn.Conv(6, (3, 3), feature_group_count=2)(x),
        lambda rngs: nnx.Conv(4, 6, (3, 3), feature_group_count=2, rngs=rngs),
        lambda t: t.Conv2d(4, 6, 3, padding=1, groups=2),
        lambda k: k.Conv2D(6, 3, padding="same", groups=2),
    ),
    "depthwise": Case(
        (2, 5, 5, 4),
        lambda x: nn.Conv(8, (3, 3), feature_group_count=4)(x),
        lambda rngs: nnx.Conv(4, 8, (3, 3), feature_group_count=4, rngs=rngs),
        lambda t: t.Conv2d(4, 8, 3, padding=1, groups=4),
        lambda k: k.DepthwiseConv2D(3, padding="same", depth_multiplier=2),
    ),
    "separable": Case(
        (2, 5, 5, 4),
        lambda x: nn.Conv(6, (1, 1))(nn.Conv(8, (3, 3), feature_group_count=4, use_bias=False)(x)),
        lambda rngs: Chain(
            nnx.Conv(4, 8, (3, 3), feature_group_count=4, use_bias=False, rngs=rngs), nnx.Conv(8, 6, (1, 1), rngs=rngs)
        ),
        lambda t: t.Sequential(t.Conv2d(4, 8, 3, padding=1, groups=4, bias=False), t.Conv2d(8, 6, 1)),
        lambda k: k.SeparableConv2D(6, 3, padding="same", depth_multiplier=2),
    ),
    "transposed": Case(
        IMAGE,
        lambda x: nn.ConvTranspose(4, (3, 3), **LONG)(x),
        lambda rngs: nnx.ConvTranspose(3, 4, (3, 3), **LONG, rngs=rngs),
        lambda t: t.ConvTranspose2d(3, 4, 3, stride=2),
        lambda k: k.Conv2DTranspose(4, 3, 2),
    ),
    "transposed, `transpose_kernel`": Case(
        IMAGE,
        lambda x: nn.ConvTranspose(4, (3, 3), **UP)(x),
        lambda rngs: nnx.ConvTranspose(3, 4, (3, 3), **UP, rngs=rngs),
        lambda t: t.ConvTranspose2d(3, 4, 3, stride=2),
        lambda k: k.Conv2DTranspose(4, 3, 2),
    ),
    "dense": Case(
        ROW,
        lambda x: nn.Dense(4)(x),
        lambda rngs: nnx.Linear(6, 4, rngs=rngs),
        lambda t: t.Linear(6, 4),
        lambda k: k.Dense(4),
    ),
    "dense after flatten": Case(
        IMAGE,
        lambda x: nn.Dense(5)(nn.Dense(5)(Norm()(flat(nn.relu(nn.Conv(4, (3, 3))(x)))))),
        lambda rngs: Chain(
            nnx.Conv(3, 4, (3, 3), rngs=rngs), nnx.relu, flat, nnx.BatchNorm(80, rngs=rngs),
            nnx.Linear(80, 5, rngs=rngs), nnx.Linear(5, 5, rngs=rngs),
        ),
        lambda t: t.Sequential(
            t.Conv2d(3, 4, 3, padding=1), t.ReLU(), t.Flatten(), t.BatchNorm1d(80), t.Linear(80, 5), t.Linear(5, 5)
        ),
        lambda k: [
            k.Conv2D(4, 3, padding="same", activation="relu"), k.Flatten(), k.BatchNormalization(epsilon=1e-5),
            k.Dense(5), k.Dense(5),
        ],
    ),
    "dense after pooling and flatten": Case(
        (2, 6, 4, 3),
        lambda x: nn.Dense(5)(flat(nn.max_pool(nn.Conv(4, (3, 3))(x), (2, 2), (2, 2)))),
        None,
        lambda t: t.Sequential(t.Conv2d(3, 4, 3, padding=1), t.MaxPool2d(2), t.Flatten(), t.Linear(24, 5)),
    ),
    "dense after flatten of the input": Case(
        IMAGE,
        lambda x: nn.Dense(5)(flat(x)),
        lambda rngs: Chain(flat, nnx.Linear(60, 5, rngs=rngs)),
        lambda t: t.Sequential(t.Flatten(), t.Linear(60, 5)),
    ),
    "dense after flatten, channels first": Case(
        IMAGE,
        lambda x: nn.Dense(5)(flat(nn.Conv(4, (3, 3))(x).transpose(0, 3, 1, 2))),
        None,
        lambda t: t.Sequential(t.Conv2d(3, 4, 3, padding=1), t.Flatten(), t.Linear(80, 5)),
    ),
    "dense before unflatten": Case(
        ROW,
        lambda x: nn.Conv(2, (3, 3))(nn.relu(Norm()(nn.Dense(60)(x))).reshape(-1, 5, 4, 3)),
        lambda rngs: Chain(
            nnx.Linear(6, 60, rngs=rngs), nnx.BatchNorm(60, rngs=rngs), nnx.relu, lambda x: x.reshape(-1, 5, 4, 3),
            nnx.Conv(3, 2, (3, 3), rngs=rngs),
        ),
        lambda t: t.Sequential(
            t.Linear(6, 60), t.BatchNorm1d(60), t.ReLU(), t.Unflatten(1, (3, 5, 4)), t.Conv2d(3, 2, 3, padding=1)
        ),
        lambda k: [
            k.Dense(60), k.BatchNormalization(epsilon=1e-5), k.ReLU(), k.Reshape((5, 4, 3)),
            k.Conv2D(2, 3, padding="same"),
        ],
    ),
    "dense of a 1 x 1 convolution": Case(
        IMAGE,
        lambda x: nn.Dense(4)(x),
        lambda rngs: nnx.Linear(3, 4, rngs=rngs),
        lambda t: t.Conv2d(3, 4, 1),
        lambda k: k.Conv2D(4, 1),
    ),
    "stack": Case(ROW, scanned, NnxStack, tower),
    "attention": Case(
        (2, 5, 8),
        lambda x: nn.MultiHeadDotProductAttention(2)(x),
        lambda rngs: nnx.MultiHeadAttention(2, 8, decode=False, rngs=rngs),
        attention,
        keras_attention,
    ),
    "embedding": Case(
        (2, 5, 0),
        lambda x: nn.Embed(10, 4)(x),
        lambda rngs: nnx.Embed(10, 4, rngs=rngs),
        lambda t: t.Embedding(10, 4),
        lambda k: k.Embedding(10, 4),
    ),
    "weight norm": Case(
        IMAGE,
        lambda x: bl.WeightNorm(nn.Conv(4, (3, 3)))(x),
        lambda rngs: bx.WeightNorm(nnx.Conv(3, 4, (3, 3), rngs=rngs), rngs=rngs),
        lambda t: t.utils.parametrizations.weight_norm(t.Conv2d(3, 4, 3, padding=1)),
    ),
    "weight norm of Flax": Case(
        ROW,
        lambda x: nn.WeightNorm(nn.Dense(4))(x),
        lambda rngs: nnx.WeightNorm(nnx.Linear(6, 4, rngs=rngs), rngs=rngs),
        lambda t: t.utils.parametrizations.weight_norm(t.Linear(6, 4)),
    ),
    "weight norm of before PyTorch 2": Case(
        ROW,
        lambda x: nn.WeightNorm(nn.Dense(4))(x),
        None,
        lambda t: t.utils.weight_norm(t.Linear(6, 4)),
    ),
    "weight norm, into a plain layer": Case(
        IMAGE,
        lambda x: nn.Conv(4, (3, 3))(x),
        lambda rngs: nnx.Conv(3, 4, (3, 3), rngs=rngs),
        lambda t: t.utils.parametrizations.weight_norm(t.Conv2d(3, 4, 3, padding=1)),
        back=False,
    ),
    "weight norm, of a plain layer": Case(
        IMAGE,
        lambda x: nn.WeightNorm(nn.Conv(4, (3, 3)))(x),
        None,
        lambda t: t.Conv2d(3, 4, 3, padding=1),
        lambda k: k.Conv2D(4, 3, padding="same"),
        back=False,
    ),
    "weight norm of a transposed convolution": Case(
        IMAGE,
        lambda x: nn.WeightNorm(nn.ConvTranspose(4, (3, 3), **LONG))(x),
        None,
        lambda t: t.utils.parametrizations.weight_norm(t.ConvTranspose2d(3, 4, 3, stride=2)),
        back=False,
    ),
    "batch norm": Case(
        IMAGE,
        lambda x: bl.BatchNorm(use_running_average=True)(x),
        lambda rngs: bx.BatchNorm(3, rngs=rngs),
        lambda t: t.BatchNorm2d(3),
        lambda k: k.BatchNormalization(epsilon=1e-5),
    ),
    "batch norm without parameters": Case(
        IMAGE,
        lambda x: Norm(use_scale=False, use_bias=False)(x),
        None,
        lambda t: t.BatchNorm2d(3, affine=False),
        lambda k: k.BatchNormalization(epsilon=1e-5, center=False, scale=False),
    ),
    "layer norm": Case(
        ROW,
        lambda x: nn.LayerNorm(epsilon=1e-5)(x),
        lambda rngs: nnx.LayerNorm(6, epsilon=1e-5, rngs=rngs),
        lambda t: t.LayerNorm(6),
        lambda k: k.LayerNormalization(epsilon=1e-5),
    ),
    "layer norm over images": Case(
        IMAGE,
        lambda x: nn.LayerNorm(epsilon=1e-5, reduction_axes=(1, 2, 3), feature_axes=(1, 2, 3))(x),
        None,
        lambda t: t.LayerNorm((3, 5, 4)),
    ),
    "RMS norm": Case(
        ROW,
        lambda x: bl.RMSNorm()(x),
        lambda rngs: bx.RMSNorm(6, rngs=rngs),
        lambda t: t.RMSNorm(6, eps=1e-6),
    ),
    "group norm": Case(
        (2, 3, 3, 4),
        lambda x: nn.GroupNorm(2, epsilon=1e-5)(x),
        lambda rngs: nnx.GroupNorm(4, 2, epsilon=1e-5, rngs=rngs),
        lambda t: t.GroupNorm(2, 4),
        lambda k: k.GroupNormalization(2, epsilon=1e-5),
    ),
    "instance norm": Case(
        IMAGE,
        lambda x: nn.InstanceNorm(epsilon=1e-5)(x),
        lambda rngs: nnx.InstanceNorm(3, epsilon=1e-5, rngs=rngs),
        lambda t: t.InstanceNorm2d(3, affine=True),
    ),
    "norm of one's own, scale": Case(ROW, lambda x: Own(0.0)(x), lambda rngs: NnxOwn(0.0), lambda t: t.LayerNorm(6)),
    "norm of one's own, 1 + scale": Case(
        ROW, lambda x: Own(1.0)(x), lambda rngs: NnxOwn(1.0), lambda t: t.LayerNorm(6), back=False
    ),
    "PReLU": Case(IMAGE, lambda x: nn.PReLU()(x), lambda rngs: nnx.PReLU(), lambda t: t.PReLU()),
}  # fmt: skip
