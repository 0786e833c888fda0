"""VGG (arXiv 1409.1556), for linen, with the norm as an option: after each convolution and before its relu.

What differs from the reference: convolutions keep their bias with every norm, as torchvision's do. Images are flattened
with the channels last. Convolutions start as He's (arXiv 1502.01852), since without a norm they would hardly train.
"""

from collections.abc import Sequence
from typing import Any

from flax import linen as nn
from jax import Array

from experiments.models.layers import HE
from experiments.models.norms import NormChoice, Norms, norms_of
from experiments.models.sizes import Sizes, sized

SIZES: Sizes = {
    "11": {"stages": ((64,), (128,), (256,) * 2, (512,) * 2, (512,) * 2)},
    "13": {"stages": ((64,) * 2, (128,) * 2, (256,) * 2, (512,) * 2, (512,) * 2)},
    "16": {"stages": ((64,) * 2, (128,) * 2, (256,) * 3, (512,) * 3, (512,) * 3)},
    "19": {"stages": ((64,) * 2, (128,) * 2, (256,) * 4, (512,) * 4, (512,) * 4)},
    "small": {"stages": ((8,), (16,), (32,) * 2, (64,) * 2, (64,) * 2), "pools": 3, "hidden": 512, "classes": 10},
}


class Stage(nn.Module):
    """Convolutions of 3x3, each with a norm and relu, and a pooling.

    Attributes:
      widths: of the convolutions.
      pools: whether there is a pooling at the end.
      dtype: of the computation; that of inputs and parameters by default.
    """

    widths: Sequence[int]
    pools: bool
    dtype: Any

    @nn.compact
    def __call__(self, x: Array, norms: Norms) -> Array:
        for width in self.widths:
            x = norms.relu(nn.Conv(width, (3, 3), dtype=self.dtype, kernel_init=HE)(x))
        return nn.max_pool(x, (2, 2), (2, 2)) if self.pools else x


class VGG(nn.Module):
    """Logits (n, classes) of images (n, height, width, channels); `mask` (n,) says which examples count.

    Attributes:
      norm: which one.
      stages: the widths of the convolutions, stage by stage.
      pools: how many stages end with a pooling, from the first.
      hidden: features of the two dense layers.
      dropout: the rate, after each of them.
      classes: the number of logits.
      dtype: of the computation; that of inputs and parameters by default.
    """

    norm: NormChoice
    stages: Sequence[Sequence[int]] = SIZES["11"]["stages"]
    pools: int = 5
    hidden: int = 4096
    dropout: float = 0.5
    classes: int = 1000
    dtype: Any = None

    @nn.compact
    def __call__(self, inputs: Array, train: bool = True, mask: Array | None = None) -> Array:
        norms = norms_of(self.norm, train, mask, self.dtype)
        x = inputs if self.dtype is None else inputs.astype(self.dtype)
        for i, widths in enumerate(self.stages):
            x = Stage(widths, i < self.pools, self.dtype, name=f"stage{i}")(x, norms)
        x = x.reshape(x.shape[0], -1)
        for _ in range(2):
            x = nn.Dense(self.hidden, dtype=self.dtype, kernel_init=HE)(x)
            x = norms.dropout(self.dropout, nn.relu(x))
        return nn.Dense(self.classes, dtype=self.dtype)(x)


def build(
    *,
    norm: NormChoice,
    size: str = "small",
    classes: int | None = None,
    dropout: float | None = None,
    dtype: Any = None,
    **sizes: Any,
) -> VGG:
    """A VGG, of a published size.

    Args:
      norm: after each convolution.
      size: of `SIZES`.
      classes: the number of logits; that of `size` by default.
      dropout: the rate; that of `size` by default.
      dtype: of the computation; that of inputs and parameters by default.
      **sizes: attributes of `VGG` in the place of those of `size`.
    """
    return VGG(norm, dtype=dtype, **sized(SIZES, size, {"classes": classes, "dropout": dropout, **sizes}))
