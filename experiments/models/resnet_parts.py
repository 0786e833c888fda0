"""The parts of a ResNet, for linen and nnx: blocks, the stem, stages. See resnet.py."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from experiments.models.layers import HE, Layers
from experiments.models.norms import Call, no_norm

Branch = Literal["zero", "plain", "fixup", "scaled"]
WITHOUT_NORM = ("fixup", "scaled")  # branches that take the place of norms
RELU_GAIN = (2 / (1 - 1 / math.pi)) ** 0.5  # what a relu takes from the deviation of a normal number, given back
FIFTY = (3, 4, 6, 3)  # blocks in every stage


class Plan(NamedTuple):
    """What both libraries build.

    Attributes:
      stages: the number of blocks in each.
      filters: of the first stage; each other has twice as many as the one before it.
      classes: the number of logits.
      bottleneck: blocks of three convolutions, with four times the filters at their end; or of two.
      images: `large` ones go through a 7x7 convolution of stride 2 and a pooling first, `small` ones through a 3x3 one.
      shortcut: a 1x1 convolution where the shape changes; or zeros for the channels that it lacks.
      branch: how the branches start, see resnet.py.
      channels: of the images.
    """

    stages: tuple[int, ...] = FIFTY
    filters: int = 64
    classes: int = 1000
    bottleneck: bool = True
    images: Literal["large", "small"] = "large"
    shortcut: Literal["projection", "padding"] = "projection"
    branch: Branch = "zero"
    channels: int = 3

    @property
    def wider(self) -> int:
        """How many times the filters a block has channels at its end."""
        return 4 if self.bottleneck else 1


class Style(NamedTuple):
    """How the norms of all blocks are made and called.

    Attributes:
      bias: convolutions have one, because the norms add none.
      has_scale: the norms have a scale that can start at zero.
      inside: relu and shortcut are inside of the norm.
      remat: `bnjax.linen.remat` of the stem and of every stage.
    """

    bias: bool = False
    has_scale: bool = True
    inside: bool = False
    remat: bool = False


# A block


def add_block(net: Any, layers: Layers, plan: Plan, style: Style, inputs: int, filters: int, strides: int) -> None:
    """Gives `net` the layers of a block: two or three convolutions beside a shortcut."""
    bottleneck, fixup = plan.bottleneck, plan.branch == "fixup"
    kernels = (1, 3, 1) if bottleneck else (3, 3)
    outputs = plan.wider * filters
    widths = (inputs, *(filters,) * (len(kernels) - 1), outputs)
    stride_at = 1 if bottleneck else 0
    net.depth, net.inside = len(kernels), style.inside
    for i, kernel in enumerate(kernels):
        last = i == len(kernels) - 1
        start = _fixup_init(plan, len(kernels), last) if fixup else HE
        conv = partial(_conv, layers, plan, use_bias=style.bias, kernel_init=start)
        setattr(net, f"shift{i + 1}", layers.number(None, 0.0) if fixup else no_norm)
        setattr(net, f"conv{i + 1}", conv(widths[i], widths[i + 1], kernel, strides if i == stride_at else 1))
        setattr(net, f"norm{i + 1}", (_last_norm if last else _norm)(layers, plan, style, widths[i + 1]))
    net.shorten = partial(_padded, strides=strides, features=outputs)
    net.gain = layers.number(0.0, None) if plan.branch in ("zero", "scaled") and not style.has_scale else no_norm
    net.projects = plan.shortcut == "projection" and (strides != 1 or inputs != outputs)
    if net.projects:
        net.conv_proj = _conv(layers, plan, inputs, outputs, 1, strides, use_bias=style.bias, kernel_init=HE)
        net.norm_proj = no_norm if fixup else layers.norm(outputs, 4, relu=False, **_activation(style, None))


def _conv(layers: Layers, plan: Plan, *sizes: int, gain: float = RELU_GAIN, **more: Any) -> Any:
    """A convolution; with scaled weight standardization, where that takes the place of norms."""
    conv = layers.conv(*sizes, **more)
    return layers.standardized(conv, gain) if plan.branch == "scaled" else conv


def _norm(layers: Layers, plan: Plan, style: Style, features: int) -> Any:
    if plan.branch == "fixup":
        return layers.number(None, 0.0)
    return layers.norm(features, 4, **_activation(style, "relu"))


def _last_norm(layers: Layers, plan: Plan, style: Style, features: int) -> Any:
    """The norm before the shortcut is added; the relu comes after it."""
    if plan.branch == "fixup":
        return layers.number(1.0, 0.0)
    zero = {"scale_init": nn.initializers.zeros} if plan.branch == "zero" and style.has_scale else {}
    return layers.norm(features, 4, relu=False, **zero, **_activation(style, "relu"))


def _activation(style: Style, activation: str | None) -> dict[str, Any]:
    return {"activation": activation} if style.inside else {}


def _fixup_init(plan: Plan, depth: int, last: bool) -> Any:
    """He's start times L^(-1 / (2 m - 2)) for L branches of m layers; the last layer of a branch starts at zero."""
    scale = sum(plan.stages) ** (-2 / (2 * depth - 2))
    return nn.initializers.zeros if last else nn.initializers.variance_scaling(2 * scale, "fan_out", "normal")


def run_block(net: Any, x: Array, call: Call) -> Array:
    """The forward pass of a block."""
    y = shifted = net.shift1(x)
    for i in range(1, net.depth):
        y = _relu(net, call, getattr(net, f"norm{i}"), getattr(net, f"conv{i}")(y))
        y = getattr(net, f"shift{i + 1}")(y)
    y = getattr(net, f"conv{net.depth}")(y)
    norm = getattr(net, f"norm{net.depth}")

    def shortcut() -> Array:
        return call(net.norm_proj, net.conv_proj(shifted)) if net.projects else net.shorten(x)

    if net.inside:
        return call(norm, y, residual=shortcut())
    y = net.gain(call(norm, y))  # before the shortcut, as in Flax's example: the order decides a per cent of memory
    return nn.relu(shortcut() + y)


def _relu(net: Any, call: Call, norm: Callable[..., Array], x: Array) -> Array:
    return (call if net.inside else call.relu)(norm, x)


def _padded(x: Array, strides: int, features: int) -> Array:
    """Every so many pixels of `x`, with zeros for the channels that it lacks."""
    if strides == 1 and x.shape[-1] == features:
        return x
    return jnp.pad(x[:, ::strides, ::strides], [(0, 0)] * 3 + [(0, features - x.shape[-1])])


# Stem, stages, network


def add_stem(net: Any, layers: Layers, plan: Plan, style: Style) -> None:
    """What comes before the stages: a quarter of the resolution, or the whole."""
    net.pools, net.inside = plan.images == "large", style.inside
    start: Any = {"use_bias": style.bias, "kernel_init": HE, "gain": 1.0}
    if net.pools:
        net.conv = _conv(layers, plan, plan.channels, plan.filters, 7, 2, padding=[(3, 3), (3, 3)], **start)
    else:
        net.conv = _conv(layers, plan, plan.channels, plan.filters, 3, **start)
    net.norm = _norm(layers, plan, style, plan.filters)


def run_stem(net: Any, x: Array, call: Call) -> Array:
    """The forward pass of the stem."""
    x = _relu(net, call, net.norm, net.conv(x))
    return nn.max_pool(x, (3, 3), strides=(2, 2), padding="SAME") if net.pools else x


def add_stage(net: Any, layers: Layers, plan: Plan, style: Style, number: int, inputs: int) -> None:
    """Blocks in a row, at one resolution; `number` counts the stages from zero."""
    filters = plan.filters * 2**number
    net.blocks = plan.stages[number]
    for i in range(net.blocks):
        sizes = {"inputs": inputs, "filters": filters, "strides": 2 if number > 0 and i == 0 else 1}
        setattr(
            net, f"block{i}", layers.part(partial(add_block, layers=layers, plan=plan, style=style, **sizes), run_block)
        )
        inputs = plan.wider * filters


def run_stage(net: Any, x: Array, call: Call) -> Array:
    """The forward pass of a stage."""
    for i in range(net.blocks):
        x = getattr(net, f"block{i}")(x, call)
    return x


def add_layers(net: Any, layers: Layers, plan: Plan, style: Style) -> None:
    """Gives `net` all layers."""
    net.stem = layers.part(partial(add_stem, layers=layers, plan=plan, style=style), run_stem, style.remat)
    features = plan.filters
    for i in range(len(plan.stages)):
        add = partial(add_stage, layers=layers, plan=plan, style=style, number=i, inputs=features)
        features = plan.wider * plan.filters * 2**i
        setattr(net, f"stage{i}", layers.part(add, run_stage, style.remat))
    net.number_of_stages = len(plan.stages)
    fixup = plan.branch == "fixup"
    net.shift = layers.number(None, 0.0) if fixup else no_norm
    zero = {"kernel_init": nn.initializers.zeros} if fixup else {}
    net.dense = layers.dense(features, plan.classes, **zero)


def forward(net: Any, x: Array, call: Call) -> Array:
    """The logits (n, classes) of images (n, height, width, channels)."""
    x = net.stem(x, call)
    for i in range(net.number_of_stages):
        x = getattr(net, f"stage{i}")(x, call)
    return net.dense(net.shift(jnp.mean(x, (1, 2))))
