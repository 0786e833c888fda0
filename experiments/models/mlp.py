"""A multilayer perceptron, for linen and nnx: dense layers in a row, each with a norm and an activation behind it."""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import nnx
from jax import Array

from experiments.models.layers import Layers, linen_layers, nnx_layers
from experiments.models.norms import Call, NormChoice, no_norm
from experiments.models.sizes import Sizes, sized

SIZES: Sizes = {
    "ioffe": {"width": 100, "depth": 3, "activation": "sigmoid", "inputs": 784},  # section 4.1 of arXiv 1502.03167
    "deep": {"width": 64, "depth": 30},
    "small": {"width": 64, "depth": 2},
}
ACTIVATIONS = {"relu": jax.nn.relu, "sigmoid": jax.nn.sigmoid, "tanh": jnp.tanh, "gelu": jax.nn.gelu}
STARTS = {
    "lecun": nn.initializers.lecun_normal(),
    "he": nn.initializers.he_normal(),
    "xavier": nn.initializers.xavier_normal(),
    "orthogonal": nn.initializers.orthogonal(),
}


class Plan(NamedTuple):
    """What both libraries build.

    Attributes:
      width: features of each layer.
      depth: how many layers there are before the one that gives the logits.
      activation: of `ACTIVATIONS`.
      start: of the weights, of `STARTS`.
      dropout: the rate, after each activation.
      classes: the number of logits.
      inputs: numbers of one example, which nnx must know.
    """

    width: int = 64
    depth: int = 2
    activation: Literal["relu", "sigmoid", "tanh", "gelu"] = "relu"
    start: Literal["lecun", "he", "xavier", "orthogonal"] = "lecun"
    dropout: float = 0.0
    classes: int = 10
    inputs: int = 64


def add_layers(net: Any, layers: Layers, plan: Plan) -> None:
    """Gives `net` all layers."""
    net.depth, net.activation = plan.depth, ACTIVATIONS[plan.activation]
    for i in range(plan.depth):
        inputs = plan.width if i else plan.inputs
        setattr(net, f"dense{i}", layers.dense(inputs, plan.width, kernel_init=STARTS[plan.start]))
        setattr(net, f"norm{i}", layers.norm(plan.width, 2))
    net.dropout = layers.dropout(plan.dropout) if plan.dropout else no_norm
    net.head = layers.dense(plan.width if plan.depth else plan.inputs, plan.classes)


def forward(net: Any, x: Array, call: Call) -> Array:
    """The logits (n, classes) of examples (n, ...)."""
    x = x.reshape(x.shape[0], -1)
    for i in range(net.depth):
        x = net.activation(call(getattr(net, f"norm{i}"), getattr(net, f"dense{i}")(x)))
        x = call.dropout(net.dropout, x)
    return net.head(x)


class MLP(nn.Module):
    """For linen. Logits (n, classes) of examples (n, ...); `mask` (n,) says which of them count.

    Attributes:
      norm: which one.
      plan: the sizes.
      dtype: of the computation; that of inputs and parameters by default.
    """

    norm: NormChoice
    plan: Plan = Plan()
    dtype: Any = None

    def setup(self) -> None:
        add_layers(self, linen_layers(self.norm, self.dtype), self.plan)

    def __call__(self, inputs: Array, train: bool = True, mask: Array | None = None) -> Array:
        return forward(self, inputs, Call(train, mask))


class NnxMLP(nnx.Module):
    """For nnx: the same call, and the same names."""

    def __init__(self, norm: NormChoice, plan: Plan, *, rngs: nnx.Rngs, dtype: Any = None):
        add_layers(self, nnx_layers(norm, dtype, rngs), plan)

    def __call__(self, inputs: Array, train: bool = True, mask: Array | None = None) -> Array:
        return forward(self, inputs, Call(train, mask))


def build(
    *,
    norm: NormChoice,
    size: str = "small",
    classes: int | None = None,
    dropout: float | None = None,
    dtype: Any = None,
    **sizes: Any,
) -> MLP:
    """A multilayer perceptron for linen.

    Args:
      norm: behind every dense layer but the last.
      size: of `SIZES`.
      classes: the number of logits; that of `size` by default.
      dropout: the rate; that of `size` by default.
      dtype: of the computation; that of inputs and parameters by default.
      **sizes: fields of `Plan` in the place of those of `size`.
    """
    return MLP(norm, Plan(**sized(SIZES, size, {"classes": classes, "dropout": dropout, **sizes})), dtype)


def build_nnx(
    *,
    norm: NormChoice,
    rngs: nnx.Rngs,
    inputs: int | None = None,
    size: str = "small",
    classes: int | None = None,
    dropout: float | None = None,
    dtype: Any = None,
    **sizes: Any,
) -> NnxMLP:
    """The same for nnx; `inputs` are the numbers of one example."""
    given = {"inputs": inputs, "classes": classes, "dropout": dropout, **sizes}
    return NnxMLP(norm, Plan(**sized(SIZES, size, given)), rngs=rngs, dtype=dtype)
