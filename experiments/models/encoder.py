"""Blocks of attention and of two dense layers, for the Transformer, BERT and the benchmark, with the norm as an option.

Each part stands beside a shortcut. The norm comes after both are added, as in the first Transformer (post-norm), or
before the part, with one more norm at the end (pre-norm, arXiv 2002.04745).
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from experiments.models.dropout import attention_by_example
from experiments.models.layers import Layers, linen_layers
from experiments.models.norms import Call, no_norm


class Design(NamedTuple):
    """What all blocks of a network have in common.

    Attributes:
      features: of each position.
      hidden: features between the two dense layers.
      heads: of the attention.
      dropout: the rate, of each part's output, where it is trained.
      pre: the norm comes before the part.
      activation: between the dense layers.
      init: how weights start; as Flax's layers do, where it is None.
      attention_dropout: the rate, of the weights of the attention; for linen.
    """

    features: int = 512
    hidden: int = 2048
    heads: int = 8
    dropout: float = 0.0
    pre: bool = False
    activation: Callable[[Array], Array] = nn.gelu
    init: Any = None
    attention_dropout: float = 0.0

    @property
    def dropping(self) -> dict[str, Any]:
        """What the attention drops, as arguments of its layer."""
        if not self.attention_dropout:
            return {}
        return {"dropout_rate": self.attention_dropout, "attention_fn": attention_by_example}

    @property
    def start(self) -> dict[str, Any]:
        """How weights start, as an argument of layers."""
        return {} if self.init is None else {"kernel_init": self.init}


# A part beside its shortcut


def add_part(net: Any, name: str, layers: Layers, design: Design) -> None:
    """Gives `net` what stands around a part: a norm and a dropout."""
    setattr(net, f"norm_{name}", layers.norm(design.features, 3, relu=False))
    setattr(net, f"dropout_{name}", layers.dropout(design.dropout) if design.dropout else no_norm)


def beside_shortcut(net: Any, name: str, x: Array, part: Callable[[Array], Array], call: Call) -> Array:
    """`x` and what the part makes of it, with the norm before or after."""
    norm, dropout = getattr(net, f"norm_{name}"), getattr(net, f"dropout_{name}")
    if net.pre:
        return x + call.dropout(dropout, part(call(norm, x)))
    return call(norm, x + call.dropout(dropout, part(x)))


def add_dense(net: Any, layers: Layers, design: Design) -> None:
    """Gives `net` the two dense layers."""
    net.dense1 = layers.dense(design.features, design.hidden, **design.start)
    net.dense2 = layers.dense(design.hidden, design.features, **design.start)
    net.activation = design.activation


def dense(net: Any, x: Array) -> Array:
    """Their output."""
    return net.dense2(net.activation(net.dense1(x)))


# Blocks


def add_block(net: Any, layers: Layers, design: Design, crossed: bool = False) -> None:
    """Gives `net` the layers of a block; `crossed`: with attention to another sequence between the two parts."""
    net.pre, net.crossed = design.pre, crossed
    for name in ("self", "cross", "dense") if crossed else ("self", "dense"):
        add_part(net, name, layers, design)
        if name != "dense":
            attention = layers.attention(design.features, design.heads, **design.start, **design.dropping)
            setattr(net, f"{name}_attention", attention)
    add_dense(net, layers, design)


def run_block(net: Any, x: Array, call: Call, allowed: Array | None, source: Array | None, seen: Array | None) -> Array:
    """The forward pass of a block.

    Args:
      net: what has the layers.
      x: (n, length, features).
      call: how norms and dropouts are called.
      allowed: which positions each position may look at, (n, 1, length or 1, length).
      source: the other sequence, for a crossed block.
      seen: which of its positions may be looked at.
    """

    def attend(layer: Any, other: Array | None, mask: Array | None) -> Callable[[Array], Array]:
        return lambda y: layer(y, y if other is None else other, mask=mask, deterministic=not call.train)

    x = beside_shortcut(net, "self", x, attend(net.self_attention, None, allowed), call)
    if net.crossed:
        x = beside_shortcut(net, "cross", x, attend(net.cross_attention, source, seen), call)
    return beside_shortcut(net, "dense", x, partial(dense, net), call)


def add_blocks(net: Any, layers: Layers, design: Design, blocks: int, crossed: bool = False) -> None:
    """Gives `net` a row of blocks, and a norm at the end where norms come before their parts."""
    net.blocks = blocks
    for i in range(blocks):
        add = partial(add_block, layers=layers, design=design, crossed=crossed)
        setattr(net, f"block{i}", layers.part(add, run_block))
    net.norm = layers.norm(design.features, 3, relu=False) if design.pre else no_norm


def run_blocks(
    net: Any,
    x: Array,
    call: Call,
    allowed: Array | None = None,
    source: Array | None = None,
    seen: Array | None = None,
) -> Array:
    """The forward pass of a row of blocks; see `run_block`."""
    for i in range(net.blocks):
        x = getattr(net, f"block{i}")(x, call, allowed, source, seen)
    return call(net.norm, x)


def may_look_at(mask: Array | None, length: int, causal: bool = False) -> Array | None:
    """Which positions attention may look at, (n, 1, length or 1, length): those that count.

    With `causal` none that come later.


    >>> print(may_look_at(jnp.array([[True, True, False]]), 3, causal=True).astype(int)[0, 0])
    [[1 0 0]
     [1 1 0]
     [1 1 0]]
    """
    allowed = None if mask is None else mask[:, None, None, :]
    if not causal:
        return allowed
    earlier = jnp.tril(jnp.ones((1, 1, length, length), bool))
    return earlier if allowed is None else allowed & earlier


class Encoder(nn.Module):
    """Blocks of an encoder alone, pre-norm, for linen: the benchmark compiles it.

    Attributes:
      norm: a `NormChoice`, or what makes a norm of no argument but a dtype.
      blocks: how many.
      heads: of the attention.
      features: of each position.
      dtype: of the computation; that of inputs and parameters by default.
    """

    norm: Any
    blocks: int = 12
    heads: int = 12
    features: int = 768
    dtype: Any = None

    def setup(self) -> None:
        design = Design(self.features, 4 * self.features, self.heads, pre=True)
        layers = linen_layers(self.norm, self.dtype)
        self.row = layers.part(partial(add_blocks, layers=layers, design=design, blocks=self.blocks), run_blocks)

    def __call__(self, x: Array, train: bool = False, mask: Array | None = None) -> Array:
        return self.row(x, Call(train, mask), may_look_at(mask, x.shape[1]))
