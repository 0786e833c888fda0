"""AlexNet (Krizhevsky, Sutskever and Hinton 2012), for linen: local response norm behind the first two relus.

`two_groups` is the network of the paper, with the groups that were split over two GPUs. Its sizes need 227x227 pixels.
`one_column` is that of arXiv 1404.5997, which torchvision has, for 224x224 pixels; it was published without a norm.
Any other norm sits at the same two places. Images are flattened with the channels last.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from flax import linen as nn
from jax import Array

from experiments.models.norms import NormChoice, Norms, norms_of
from experiments.models.sizes import Sizes, sized


class Layer(NamedTuple):
    """A convolution with its relu.

    Attributes:
      features: of its output.
      kernel: its size.
      stride: its stride.
      padding: on each side.
      groups: of channels, which do not see each other.
      norm: there is one behind the relu.
      pool: there is a pooling of 3x3, of stride 2, at the end.
    """

    features: int
    kernel: int = 3
    stride: int = 1
    padding: int = 1
    groups: int = 1
    norm: bool = False
    pool: bool = False


SIZES: Sizes = {
    "two_groups": {
        "layers": (
            Layer(96, 11, 4, 0, norm=True, pool=True),
            Layer(256, 5, 1, 2, groups=2, norm=True, pool=True),
            Layer(384),
            Layer(384, groups=2),
            Layer(256, groups=2, pool=True),
        )
    },
    "one_column": {
        "layers": (
            Layer(64, 11, 4, 2, norm=True, pool=True),
            Layer(192, 5, 1, 2, norm=True, pool=True),
            Layer(384),
            Layer(256),
            Layer(256, pool=True),
        )
    },
    "small": {
        "layers": (Layer(32, norm=True, pool=True), Layer(64, norm=True, pool=True), Layer(64)),
        "hidden": (128,),
        "classes": 10,
    },
}


class Stage(nn.Module):
    """One convolution and what follows it.

    Attributes:
      layer: its sizes.
      dtype: of the computation; that of inputs and parameters by default.
    """

    layer: Layer
    dtype: Any

    @nn.compact
    def __call__(self, x: Array, norms: Norms) -> Array:
        features, kernel, stride, padding, groups, norm, pool = self.layer
        conv = nn.Conv(
            features, (kernel, kernel), (stride, stride), padding, feature_group_count=groups, dtype=self.dtype
        )
        x = conv(x)
        x = norms(nn.relu(x)) if norm else nn.relu(x)
        return nn.max_pool(x, (3, 3), (2, 2)) if pool else x


class AlexNet(nn.Module):
    """Logits (n, classes) of images (n, height, width, channels); `mask` (n,) says which examples count.

    Attributes:
      norm: which one; "lrn" is the paper's.
      layers: the convolutions.
      hidden: features of the dense layers before the last.
      dropout: the rate, before each of them.
      classes: the number of logits.
      dtype: of the computation; that of inputs and parameters by default.
    """

    norm: NormChoice
    layers: Sequence[Layer] = SIZES["two_groups"]["layers"]
    hidden: Sequence[int] = (4096, 4096)
    dropout: float = 0.5
    classes: int = 1000
    dtype: Any = None

    @nn.compact
    def __call__(self, inputs: Array, train: bool = True, mask: Array | None = None) -> Array:
        norms = norms_of(self.norm, train, mask, self.dtype)
        x = inputs if self.dtype is None else inputs.astype(self.dtype)
        for i, layer in enumerate(self.layers):
            x = Stage(layer, self.dtype, name=f"stage{i}")(x, norms)
        x = x.reshape(x.shape[0], -1)
        for features in self.hidden:
            x = nn.relu(nn.Dense(features, dtype=self.dtype)(norms.dropout(self.dropout, x)))
        return nn.Dense(self.classes, dtype=self.dtype)(x)


def build(
    *,
    norm: NormChoice,
    size: str = "small",
    classes: int | None = None,
    dropout: float | None = None,
    dtype: Any = None,
    **sizes: Any,
) -> AlexNet:
    """An AlexNet.

    Args:
      norm: behind the first two relus.
      size: of `SIZES`.
      classes: the number of logits; that of `size` by default.
      dropout: the rate; that of `size` by default.
      dtype: of the computation; that of inputs and parameters by default.
      **sizes: attributes of `AlexNet` in the place of those of `size`.
    """
    return AlexNet(norm, dtype=dtype, **sized(SIZES, size, {"classes": classes, "dropout": dropout, **sizes}))
