"""What linen and nnx are given to make a model of: one description of an architecture makes it for both.

A model is written as two functions. `add(net, layers)` gives `net` its layers, with numbers of input and output
features. `run(net, inputs, ...)` is the forward pass. Neither knows which library it is for.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import linen as nn
from flax import nnx
from jax import Array

from bnjax import linen as bnn
from bnjax import nnx as bnnx
from experiments.models.norms import SITES, NormChoice, linen_norm, nnx_norm

constant = nn.initializers.constant
HE = nn.initializers.variance_scaling(2, "fan_out", "normal")  # for what is followed by a relu (arXiv 1502.01852)


class Layers(NamedTuple):
    """How a library makes its layers.

    Attributes:
      conv: of input features, features, kernel and strides; without a bias unless told.
      norm: of features and the rank of the input.
      dense: of input features and features.
      number: of a scale and a bias, each one number or None.
      attention: of features and heads.
      embed: of the size of a vocabulary and features.
      dropout: of a rate.
      part: of `add` and `run`, a module inside of the model.
      standardized: of a layer and the start of its scales, the layer with scaled weight standardization.
    """

    conv: Callable[..., Any]
    norm: Callable[..., Any]
    dense: Callable[..., Any]
    number: Callable[..., Any]
    attention: Callable[..., Any]
    embed: Callable[..., Any]
    dropout: Callable[..., Any]
    part: Callable[..., Any]
    standardized: Callable[[Any, float], Any]


def linen_layers(norm: NormChoice | Callable[..., Any], dtype: Any) -> Layers:
    """For linen.

    Args:
      norm: a choice, or what makes a norm of its attributes alone.
      dtype: of the computation; that of inputs and parameters by default.
    """

    def conv(_: int, features: int, kernel: int, strides: int = 1, *, use_bias: bool = False, **more: Any) -> Any:
        return nn.Conv(features, (kernel, kernel), (strides, strides), use_bias=use_bias, dtype=dtype, **more)

    def normed(features: int, ndim: int, *, relu: bool = True, **attributes: Any) -> Any:
        if isinstance(norm, NormChoice):
            return linen_norm(norm, SITES[ndim], features, relu=relu, dtype=dtype, **attributes)
        return norm(dtype=dtype, **attributes)

    return Layers(
        conv=conv,
        norm=normed,
        dense=lambda _, features, **more: nn.Dense(features, dtype=dtype, **more),
        number=LinenNumber,
        attention=lambda features, heads, **more: nn.MultiHeadDotProductAttention(heads, dtype=dtype, **more),
        embed=lambda vocabulary, features, **more: nn.Embed(vocabulary, features, dtype=dtype, **more),
        dropout=nn.Dropout,
        part=linen_part,
        standardized=lambda layer, start: bnn.ScaledWeightStandardization(layer, scale_init=constant(start)),
    )


def nnx_layers(norm: NormChoice, dtype: Any, rngs: nnx.Rngs) -> Layers:
    """For nnx; see `linen_layers`."""

    def conv(inputs: int, features: int, kernel: int, strides: int = 1, *, use_bias: bool = False, **more: Any) -> Any:
        sizes = (kernel, kernel), (strides, strides)
        return nnx.Conv(inputs, features, *sizes, use_bias=use_bias, dtype=dtype, rngs=rngs, **more)

    return Layers(
        conv=conv,
        norm=lambda features, ndim, **more: nnx_norm(norm, SITES[ndim], features, rngs=rngs, dtype=dtype, **more),
        dense=partial(nnx.Linear, dtype=dtype, rngs=rngs),
        number=NnxNumber,
        attention=lambda features, heads, **more: nnx.MultiHeadAttention(
            heads, features, decode=False, dtype=dtype, rngs=rngs, **more
        ),
        embed=partial(nnx.Embed, dtype=dtype, rngs=rngs),
        dropout=partial(nnx.Dropout, rngs=rngs),
        part=NnxPart,
        standardized=lambda layer, start: bnnx.ScaledWeightStandardization(
            layer, scale_init=constant(start), rngs=rngs
        ),
    )


class LinenPart(nn.Module):
    """A module of the layers that `add` gives it, which `run` calls."""

    add: Callable[[Any], None]
    run: Callable[..., Any]

    def setup(self) -> None:
        self.add(self)

    def __call__(self, *inputs: Any) -> Any:
        return self.run(self, *inputs)


def linen_part(add: Callable[[Any], None], run: Callable[..., Any], remat: bool = False) -> Any:
    """A part, with `bnjax.linen.remat` if told."""
    return (bnn.remat(LinenPart) if remat else LinenPart)(add, run)


class NnxPart(nnx.Module):
    """The same for nnx."""

    def __init__(self, add: Callable[[Any], None], run: Callable[..., Any], remat: bool = False):
        self.run, self.remat = run, remat
        add(self)

    def __call__(self, *inputs: Any) -> Any:
        return (bnnx.remat(self.run) if self.remat else self.run)(self, *inputs)


class LinenNumber(nn.Module):
    """`x * scale + bias`, each one learned number, or left out where its start is None."""

    scale_start: float | None
    bias_start: float | None

    @nn.compact
    def __call__(self, x: Array, **_: Any) -> Array:
        def learned(name: str, start: float | None) -> Any:
            return None if start is None else self.param(name, constant(start), ())

        return _mapped(x, learned("scale", self.scale_start), learned("bias", self.bias_start))


class NnxNumber(nnx.Module):
    """The same for nnx."""

    def __init__(self, scale_start: float | None, bias_start: float | None):
        self.scale = None if scale_start is None else nnx.Param(jnp.asarray(scale_start))
        self.bias = None if bias_start is None else nnx.Param(jnp.asarray(bias_start))

    def __call__(self, x: Array, **_: Any) -> Array:
        return _mapped(x, self.scale, self.bias)


def _mapped(x: Array, scale: Any, bias: Any) -> Array:
    x = x if scale is None else x * scale[...].astype(x.dtype)
    return x if bias is None else x + bias[...].astype(x.dtype)
