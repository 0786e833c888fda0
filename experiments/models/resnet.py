"""ResNet (arXiv 1512.03385), of 18 to 152 layers for ImageNet and of 20 to 110 for CIFAR, in linen and nnx.

What differs from the reference:

- Version 1.5 as in Flax's ImageNet example: the strides are in the 3x3 convolutions, and padding is `SAME`, which at
  even sizes pads below and to the right alone.
- By default the last norm of each branch starts with a scale of zero (Goyal et al., arXiv 1706.02677).
- CIFAR: shortcuts have no parameters (option A), but take every second pixel and fill up channels with zeros.
- `branch="fixup"`: no norm, but scalars, and a start that fits the depth (Zhang et al., arXiv 1901.09321).
- `branch="scaled"`: no norm, but scaled weight standardization of every convolution, and a learned number that starts
  at zero at the end of the branch, as in NF-ResNets (Brock et al., arXiv 2101.08692), which have more factors.
- `branch="zero"` and a norm without a scale, or none: a learned number that starts at zero ends the branch, as in
  SkipInit (De and Smith, arXiv 2002.10444). Convolutions have a bias where the norm adds none.

The benchmark and `experiments.scale` compile the ResNet of this file, too.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Literal

from flax import linen as nn
from flax import nnx
from jax import Array

from experiments.models.layers import linen_layers, nnx_layers
from experiments.models.norms import Call, NormChoice, needs_bias, takes
from experiments.models.resnet_parts import FIFTY as FIFTY
from experiments.models.resnet_parts import WITHOUT_NORM, Branch, Plan, Style, add_layers, forward
from experiments.models.sizes import Sizes, sized


def _cifar(layers: int, filters: int = 16) -> Mapping[str, Any]:
    of_images = {"bottleneck": False, "images": "small", "shortcut": "padding", "classes": 10}
    return {"stages": ((layers - 2) // 6,) * 3, "filters": filters, **of_images}


SIZES: Sizes = {
    "18": {"stages": (2, 2, 2, 2), "bottleneck": False},
    "34": {"stages": FIFTY, "bottleneck": False},
    "50": {"stages": FIFTY},
    "101": {"stages": (3, 4, 23, 3)},
    "152": {"stages": (3, 8, 36, 3)},
    **{f"cifar{layers}": _cifar(layers) for layers in (14, 20, 32, 44, 56, 110)},
    "small": _cifar(8, filters=8),
}


class ResNet(nn.Module):
    """For linen. Logits (n, classes) of images (n, height, width, channels); `mask` (n,) says which examples count.

    Attributes:
      norm: a `NormChoice`, or what makes a norm from the attributes of `flax.linen.BatchNorm`.
      relu_inside: the norm takes the shortcut and relu, too.
      remat: `bnjax.linen.remat` of the stem and of every stage.
      dtype: of the computation; that of inputs and parameters by default.
      stages, filters, classes, bottleneck, images, shortcut, branch: see `Plan`.
    """

    norm: Any
    relu_inside: bool = False
    remat: bool = False
    stages: Sequence[int] = FIFTY
    filters: int = 64
    classes: int = 1000
    bottleneck: bool = True
    images: Literal["large", "small"] = "large"
    shortcut: Literal["projection", "padding"] = "projection"
    branch: Branch = "zero"
    dtype: Any = None

    def setup(self) -> None:
        plan = Plan(**{name: getattr(self, name) for name in Plan._fields if name != "channels"})
        style = style_of(self.norm, plan, self.remat)._replace(inside=self.relu_inside)
        chosen = isinstance(self.norm, NormChoice)
        norm = self.norm if chosen else partial(self.norm, momentum=0.9, epsilon=1e-5)
        add_layers(self, linen_layers(norm, self.dtype), plan, style)

    def __call__(self, x: Array, train: bool = True, mask: Array | None = None) -> Array:
        return forward(self, x, call_of(self.norm, train, mask))


class NnxResNet(nnx.Module):
    """For nnx: the same call, and the same names.

    Args:
      norm: which one.
      rngs: for the parameters.
      remat: as for linen.
      dtype: of the computation; that of inputs and parameters by default.
      **plan: see `Plan`.
    """

    def __init__(self, norm: NormChoice, *, rngs: nnx.Rngs, remat: bool = False, dtype: Any = None, **plan: Any):
        self.norm = norm
        made = Plan(**plan)
        add_layers(self, nnx_layers(norm, dtype, rngs), made, style_of(norm, made, remat))

    def __call__(self, x: Array, train: bool = True, mask: Array | None = None) -> Array:
        return forward(self, x, call_of(self.norm, train, mask))


def style_of(norm: Any, plan: Plan, remat: bool = False) -> Style:
    """How the norms of a choice are made.

    Raises:
      ValueError: a norm beside a branch that takes its place.
    """
    if not isinstance(norm, NormChoice):
        return Style(remat=remat)
    if plan.branch in WITHOUT_NORM and norm.name != "none":
        raise ValueError(
            f"`branch` is {plan.branch!r}, which is without norms, but `norm` is {norm.name!r}; write 'none'."
        )
    bias = needs_bias(norm) and plan.branch != "fixup"
    return Style(bias, takes(norm, "scale_init"), remat=remat)


def call_of(norm: Any, train: bool, mask: Array | None) -> Call:
    """How its norms are called."""
    return Call(train, mask, isinstance(norm, NormChoice) and norm.active)


def build(
    *, norm: NormChoice, size: str = "small", classes: int | None = None, dtype: Any = None, **sizes: Any
) -> ResNet:
    """A ResNet for linen, of a published size.

    Args:
      norm: at every site; "none" with `branch="fixup"`, `"scaled"` or `"zero"` trains without.
      size: of `SIZES`.
      classes: the number of logits; that of `size` by default.
      dtype: of the computation; that of inputs and parameters by default.
      **sizes: attributes of `ResNet` in the place of those of `size`.
    """
    return ResNet(norm, dtype=dtype, **sized(SIZES, size, {"classes": classes, **sizes}))


def build_nnx(
    *,
    norm: NormChoice,
    rngs: nnx.Rngs,
    channels: int | None = None,
    size: str = "small",
    classes: int | None = None,
    dtype: Any = None,
    **sizes: Any,
) -> NnxResNet:
    """The same for nnx; `channels` are those of the images."""
    plan = sized(SIZES, size, {"channels": channels, "classes": classes, **sizes})
    return NnxResNet(norm, rngs=rngs, dtype=dtype, **plan)
