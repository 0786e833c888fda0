"""The Transformer for sequence to sequence (arXiv 1706.03762), in linen and nnx; post-norm as printed, or pre-norm.

What differs from the reference: attention has biases. Dropout is where section 5.4 has it, after each part and after
the embeddings. One matrix embeds source and target and makes the logits, as in section 3.4. A batch norm in the decoder
measures later positions, too, so that training sees what it should predict: it is here as the bad case.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import nnx
from jax import Array

from experiments.models.encoder import Design, add_blocks, may_look_at, run_blocks
from experiments.models.layers import Layers, linen_layers, nnx_layers
from experiments.models.norms import Call, NormChoice, no_norm
from experiments.models.sizes import Sizes, sized

SMALL = {"features": 64, "hidden": 256, "heads": 4, "blocks": 2, "vocabulary": 32}
SIZES: Sizes = {
    "base": {"features": 512, "hidden": 2048, "heads": 8, "blocks": 6, "dropout": 0.1},
    "big": {"features": 1024, "hidden": 4096, "heads": 16, "blocks": 6, "dropout": 0.3},
    "small": SMALL,
    "small_pre": {**SMALL, "pre": True},
}


class Plan(NamedTuple):
    """What both libraries build.

    Attributes:
      vocabulary: how many tokens there are; 37,000 for English and German in the paper.
      features: of each position.
      hidden: features between the two dense layers of a block.
      heads: of the attention.
      blocks: of the encoder, and as many of the decoder.
      dropout: the rate.
      pre: the norm comes before each part.
    """

    vocabulary: int = 37_000
    features: int = 512
    hidden: int = 2048
    heads: int = 8
    blocks: int = 6
    dropout: float = 0.0
    pre: bool = False


def add_layers(net: Any, layers: Layers, plan: Plan) -> None:
    """Gives `net` all layers."""
    design = Design(plan.features, plan.hidden, plan.heads, plan.dropout, plan.pre, nn.relu)
    net.embed = layers.embed(plan.vocabulary, plan.features)
    net.dropout = layers.dropout(plan.dropout) if plan.dropout else no_norm
    add = partial(add_blocks, layers=layers, design=design, blocks=plan.blocks)
    net.encoder = layers.part(add, run_blocks)
    net.decoder = layers.part(partial(add, crossed=True), run_blocks)


def forward(net: Any, inputs: Mapping[str, Array], train: bool, mask: Mapping[str, Array] | None) -> Array:
    """The logits (n, target length, vocabulary) of tokens, see `Transformer`."""
    of_source, of_target = (Call(train, mask[name] if mask else None) for name in ("source", "target"))
    source, target = (_embedded(net, inputs[name], of_source) for name in ("source", "target"))
    seen = may_look_at(of_source.mask, source.shape[1])
    source = net.encoder(source, of_source, seen)
    allowed = may_look_at(of_target.mask, target.shape[1], causal=True)
    return net.embed.attend(net.decoder(target, of_target, allowed, source, seen))


def _embedded(net: Any, tokens: Array, call: Call) -> Array:
    x = net.embed(tokens)
    features = x.shape[-1]
    return call.dropout(net.dropout, x * features**0.5 + positions(tokens.shape[1], features).astype(x.dtype))


def positions(length: int, features: int) -> Array:
    """Sines and cosines of each position, (1, length, features), section 3.5.

    >>> print(positions(2, 4).round(3))
    [[[0.    1.    0.    1.   ]
      [0.841 0.54  0.01  1.   ]]]
    """
    angles = np.arange(length)[:, None] / 10_000 ** (np.arange(0, features, 2) / features)
    both = np.stack([np.sin(angles), np.cos(angles)], axis=-1).reshape(length, -1)[:, :features]
    return jnp.asarray(both[None], jnp.float32)


class Transformer(nn.Module):
    """For linen.

    The inputs are `{"source": (n, s), "target": (n, t)}`, the target shifted to the right by one position already.
    `mask` has the same names and shapes, and is true where a position counts. Gives logits (n, t, vocabulary).

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

    def __call__(self, inputs: Mapping[str, Array], train: bool = True, mask: Mapping[str, Array] | None = None) -> Any:
        return forward(self, inputs, train, mask)


class NnxTransformer(nnx.Module):
    """For nnx: the same call, and the same names."""

    def __init__(self, norm: NormChoice, plan: Plan, *, rngs: nnx.Rngs, dtype: Any = None):
        add_layers(self, nnx_layers(norm, dtype, rngs), plan)

    def __call__(self, inputs: Mapping[str, Array], train: bool = True, mask: Mapping[str, Array] | None = None) -> Any:
        return forward(self, inputs, train, mask)


def build(
    *,
    norm: NormChoice,
    size: str = "small",
    classes: int | None = None,
    dropout: float | None = None,
    dtype: Any = None,
    **sizes: Any,
) -> Transformer:
    """A Transformer for linen, of a published size.

    Args:
      norm: at every site.
      size: of `SIZES`.
      classes: the number of tokens, which is that of the logits; that of `size` by default.
      dropout: the rate; that of `size` by default.
      dtype: of the computation; that of inputs and parameters by default.
      **sizes: fields of `Plan` in the place of those of `size`.
    """
    return Transformer(norm, Plan(**sized(SIZES, size, {"vocabulary": classes, "dropout": dropout, **sizes})), dtype)


def build_nnx(
    *,
    norm: NormChoice,
    rngs: nnx.Rngs,
    size: str = "small",
    classes: int | None = None,
    dropout: float | None = None,
    dtype: Any = None,
    **sizes: Any,
) -> NnxTransformer:
    """The same for nnx."""
    return NnxTransformer(
        norm, Plan(**sized(SIZES, size, {"vocabulary": classes, "dropout": dropout, **sizes})), rngs=rngs, dtype=dtype
    )
