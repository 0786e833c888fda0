"""Xception (arXiv 1610.02357), for linen: depthwise and pointwise convolutions beside shortcuts.

The norm comes after each plain convolution and after each pair of a depthwise and a pointwise one. As in Keras, the
first two convolutions are without padding, a pair has nothing in between, and no convolution has a bias where the norm
adds one.
"""

from typing import Any

from flax import linen as nn
from jax import Array

from experiments.models.norms import NormChoice, Norms, norms_of
from experiments.models.sizes import Sizes, sized

SIZES: Sizes = {
    "299": {},
    "small": {
        "stem": (16, 32),
        "entry": (64,),
        "middle": 3,
        "exits": (64, 64, 96, 128),
        "stem_stride": 1,
        "classes": 10,
    },
}


class Separable(nn.Module):
    """A depthwise convolution of 3x3, then a pointwise one.

    Attributes:
      features: of the output.
      use_bias: of the pointwise convolution.
      dtype: of the computation; that of inputs and parameters by default.
    """

    features: int
    use_bias: bool
    dtype: Any

    @nn.compact
    def __call__(self, x: Array) -> Array:
        channels = x.shape[-1]
        depthwise = nn.Conv(channels, (3, 3), feature_group_count=channels, use_bias=False, dtype=self.dtype)
        return nn.Conv(self.features, (1, 1), use_bias=self.use_bias, dtype=self.dtype)(depthwise(x))


class Block(nn.Module):
    """Separable convolutions beside a shortcut.

    Attributes:
      widths: of the convolutions.
      halves: the resolution, in a pooling at the end and in the shortcut.
      relu_first: whether there is a relu before the first convolution.
      dtype: of the computation; that of inputs and parameters by default.
    """

    widths: tuple[int, ...]
    halves: bool
    relu_first: bool
    dtype: Any

    @nn.compact
    def __call__(self, x: Array, norms: Norms) -> Array:
        y = nn.relu(x) if self.relu_first else x
        for i, width in enumerate(self.widths):
            y = Separable(width, norms.use_bias, self.dtype)(y)
            y = norms(y) if i == len(self.widths) - 1 else norms.relu(y)
        if not self.halves:
            return x + y
        y = nn.max_pool(y, (3, 3), (2, 2), "SAME")
        shortcut = nn.Conv(self.widths[-1], (1, 1), (2, 2), use_bias=norms.use_bias, dtype=self.dtype)(x)
        return norms(shortcut) + y


class Xception(nn.Module):
    """Logits (n, classes) of images (n, height, width, channels); `mask` (n,) says which examples count.

    Attributes:
      norm: which one.
      stem: the widths of the first two convolutions.
      stem_stride: of the first one.
      entry: the widths of the blocks that halve the resolution.
      middle: how many blocks of three convolutions there are behind them.
      exits: the widths of the last block, and of the two convolutions behind it.
      classes: the number of logits.
      dtype: of the computation; that of inputs and parameters by default.
    """

    norm: NormChoice
    stem: tuple[int, int] = (32, 64)
    stem_stride: int = 2
    entry: tuple[int, ...] = (128, 256, 728)
    middle: int = 8
    exits: tuple[int, int, int, int] = (728, 1024, 1536, 2048)
    classes: int = 1000
    dtype: Any = None

    @nn.compact
    def __call__(self, inputs: Array, train: bool = True, mask: Array | None = None) -> Array:
        norms = norms_of(self.norm, train, mask, self.dtype)
        x = inputs if self.dtype is None else inputs.astype(self.dtype)
        for width, stride in zip(self.stem, (self.stem_stride, 1), strict=True):
            conv = nn.Conv(width, (3, 3), (stride, stride), "VALID", use_bias=norms.use_bias, dtype=self.dtype)
            x = norms.relu(conv(x))
        for i, width in enumerate(self.entry):
            x = Block((width, width), True, i > 0, self.dtype, name=f"stage{i}")(x, norms)
        first = len(self.entry)
        for i in range(self.middle):
            x = Block((x.shape[-1],) * 3, False, True, self.dtype, name=f"stage{first + i}")(x, norms)
        x = Block(self.exits[:2], True, True, self.dtype, name=f"stage{first + self.middle}")(x, norms)
        for width in self.exits[2:]:
            x = norms.relu(Separable(width, norms.use_bias, self.dtype)(x))
        return nn.Dense(self.classes, dtype=self.dtype)(x.mean((1, 2)))


def build(
    *, norm: NormChoice, size: str = "small", classes: int | None = None, dtype: Any = None, **sizes: Any
) -> Xception:
    """An Xception, for 299x299 pixels or small.

    Args:
      norm: after each convolution.
      size: of `SIZES`.
      classes: the number of logits; that of `size` by default.
      dtype: of the computation; that of inputs and parameters by default.
      **sizes: attributes of `Xception` in the place of those of `size`.
    """
    return Xception(norm, dtype=dtype, **sized(SIZES, size, {"classes": classes, **sizes}))
