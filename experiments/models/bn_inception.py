"""BN-Inception (arXiv 1502.03167, figure 5), for linen: GoogLeNet with 3x3 convolutions in the place of the 5x5 ones.

The norm comes after each convolution, before the activation. What differs from the reference: the auxiliary heads are
left out, and no convolution has a bias where the norm adds one. `activation="sigmoid"` is the network of section 4.2.2.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from experiments.models.norms import NormChoice, Norms, norms_of
from experiments.models.sizes import Sizes, sized

ACTIVATIONS = {"relu": jax.nn.relu, "sigmoid": jax.nn.sigmoid}


class Widths(NamedTuple):
    """The widths of a module of branches side by side.

    Attributes:
      one: of the 1x1 branch; 0 where there is none: the module has a stride of 2 then, and the pooling no convolution.
      three: of the 1x1 and the 3x3 convolution.
      double: of the 1x1 and both of the 3x3 convolutions.
      pool: of the convolution behind the pooling.
      kind: of the pooling.
    """

    one: int
    three: tuple[int, int]
    double: tuple[int, int]
    pool: int = 0
    kind: Literal["avg", "max"] = "avg"


MODULES = {
    "3a": Widths(64, (64, 64), (64, 96), 32),
    "3b": Widths(64, (64, 96), (64, 96), 64),
    "3c": Widths(0, (128, 160), (64, 96), kind="max"),
    "4a": Widths(224, (64, 96), (96, 128), 128),
    "4b": Widths(192, (96, 128), (96, 128), 128),
    "4c": Widths(160, (128, 160), (128, 160), 128),
    "4d": Widths(96, (128, 192), (160, 192), 128),
    "4e": Widths(0, (128, 192), (192, 256), kind="max"),
    "5a": Widths(352, (192, 320), (160, 224), 128),
    "5b": Widths(352, (192, 320), (192, 224), 128, "max"),
}
SIZES: Sizes = {
    "224": {},
    "small": {"modules": ("3a", "3b", "4a"), "divided_by": 4, "images": "small", "classes": 10},
}


class Inception(nn.Module):
    """Branches side by side.

    Attributes:
      widths: of the branches.
      unit: makes a convolution with its norm and activation.
    """

    widths: Widths
    unit: Any

    @nn.compact
    def __call__(self, x: Array, norms: Norms) -> Array:
        one, three, double, pool, kind = self.widths
        unit = partial(self.unit, norms)
        stride = 1 if one else 2
        branches = [unit(one, 1)(x)] if one else []
        branches.append(unit(three[1], 3, stride)(unit(three[0], 1)(x)))
        branches.append(unit(double[1], 3, stride)(unit(double[1], 3)(unit(double[0], 1)(x))))
        pooled = (nn.avg_pool if kind == "avg" else nn.max_pool)(x, (3, 3), (stride, stride), "SAME")
        return jnp.concatenate([*branches, unit(pool, 1)(pooled) if pool else pooled], axis=-1)


class BNInception(nn.Module):
    """Logits (n, classes) of images (n, height, width, channels); `mask` (n,) says which examples count.

    Attributes:
      norm: which one.
      modules: of `MODULES`, in a row.
      divided_by: what all widths are divided by.
      images: `large` ones lose all but an eighth of their resolution in the first layers, `small` ones nothing.
      activation: after each norm.
      classes: the number of logits.
      dtype: of the computation; that of inputs and parameters by default.
    """

    norm: NormChoice
    modules: Sequence[str] = tuple(MODULES)
    divided_by: int = 1
    images: Literal["large", "small"] = "large"
    activation: Literal["relu", "sigmoid"] = "relu"
    classes: int = 1000
    dtype: Any = None

    @nn.compact
    def __call__(self, inputs: Array, train: bool = True, mask: Array | None = None) -> Array:
        norms = norms_of(self.norm, train, mask, self.dtype)
        unit = partial(_unit, dtype=self.dtype, activation=ACTIVATIONS[self.activation])
        x = inputs if self.dtype is None else inputs.astype(self.dtype)
        x = self.stem(x, partial(unit, norms))
        for name in self.modules:
            widths = _divided(MODULES[name], self.divided_by)
            x = Inception(widths, unit, name=f"inception_{name}")(x, norms)
        return nn.Dense(self.classes, dtype=self.dtype)(x.mean((1, 2)))

    def stem(self, x: Array, unit: Any) -> Array:
        """What comes before the modules."""
        first, second = (width // self.divided_by for width in (64, 192))
        if self.images == "small":
            return unit(second, 3)(unit(first, 3)(x))
        pool = partial(nn.max_pool, window_shape=(3, 3), strides=(2, 2), padding="SAME")
        x = pool(unit(first, 7, 2)(x))
        return pool(unit(second, 3)(unit(first, 1)(x)))


def _unit(norms: Norms, features: int, kernel: int, stride: int = 1, *, dtype: Any, activation: Any) -> Any:
    """A convolution with its norm and activation."""
    conv = partial(nn.Conv, features, (kernel, kernel), (stride, stride), use_bias=norms.use_bias, dtype=dtype)
    return lambda x: norms.relu(conv()(x), activation)


def _divided(widths: Widths, by: int) -> Widths:
    one, three, double, pool, kind = widths
    return Widths(one // by, (three[0] // by, three[1] // by), (double[0] // by, double[1] // by), pool // by, kind)


def build(
    *, norm: NormChoice, size: str = "small", classes: int | None = None, dtype: Any = None, **sizes: Any
) -> BNInception:
    """A BN-Inception, for 224x224 pixels or small.

    Args:
      norm: after each convolution.
      size: of `SIZES`.
      classes: the number of logits; that of `size` by default.
      dtype: of the computation; that of inputs and parameters by default.
      **sizes: attributes of `BNInception` in the place of those of `size`.
    """
    return BNInception(norm, dtype=dtype, **sized(SIZES, size, {"classes": classes, **sizes}))
