"""A small convolutional network as dense layers on patches: many of them are trained side by side in little time."""

import numpy as np
from flax import linen as nn
from jax import Array

from experiments.data import CLASSES
from experiments.models.norms import NormChoice, norms_of


class PatchCNN(nn.Module):
    """Convolutions of 3 by 3, each with a norm and relu, the later ones of stride 2; the mean over the image; a head.

    A dense layer on patches is a convolution. `jax.vmap` over its kernels is one product of matrices for each network,
    where `flax.linen.Conv` becomes a convolution in groups, which is slow on CPUs.

    Attributes:
      norm: which one.
      widths: channels of each layer.
    """

    norm: NormChoice
    widths: tuple[int, ...] = (8, 16, 32)

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        norms = norms_of(self.norm, train, None)
        for i, width in enumerate(self.widths, 1):
            x = patches(x, stride=1 if i == 1 else 2)
            x = nn.Dense(width, use_bias=norms.use_bias, kernel_init=nn.initializers.he_normal(), name=f"conv{i}")(x)
            x = norms.relu(x)
        return nn.Dense(CLASSES, name="head")(x.mean((1, 2)))


def patches(x: Array, stride: int) -> Array:
    """Of images (n, height, width, channels), what lies in the 3 by 3 around each place: (..., 9 * channels).

    A product with a constant matrix of zeros and ones: it compiles sooner than slices, and its gradient is a product.
    """
    n, height, width, channels = x.shape
    padded = np.pad(np.arange(height * width).reshape(height, width), 1, constant_values=-1)
    views = [padded[i : i + height : stride, j : j + width : stride] for i in range(3) for j in range(3)]
    places = np.stack(views, -1)  # of what is in each patch; -1 is outside of the image, where there are zeros
    chosen = places.reshape(-1, 1) == np.arange(height * width)[None]
    return (chosen.astype(np.float32) @ x.reshape(n, -1, channels)).reshape(n, *places.shape[:2], 9 * channels)
