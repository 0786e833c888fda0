"""BERT (arXiv 1810.04805): the encoder of a Transformer that is trained to fill in tokens.

What differs from the reference: all inputs are of one segment, unless `segments` are given. A norm has its own epsilon,
where BERT's layer norm has 1e-12. `causal=True` makes a language model that sees the tokens before alone.
"""

from functools import partial
from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from experiments.models.encoder import Design, add_blocks, may_look_at, run_blocks
from experiments.models.layers import Layers, linen_layers
from experiments.models.norms import Call, NormChoice, no_norm
from experiments.models.sizes import Sizes, sized

SMALL = {"features": 64, "heads": 2, "blocks": 2, "vocabulary": 128, "length": 128, "deviation": 0.1}
SIZES: Sizes = {
    "base": {"features": 768, "heads": 12, "blocks": 12, "dropout": 0.1},
    "large": {"features": 1024, "heads": 16, "blocks": 24, "dropout": 0.1},
    "tiny": {"features": 128, "heads": 2, "blocks": 2, "dropout": 0.1},
    "small": SMALL,
    "small_pre": {**SMALL, "pre": True},
}


class Plan(NamedTuple):
    """The sizes.

    Attributes:
      vocabulary: how many tokens there are.
      features: of each position; four times as many between the two dense layers of a block.
      heads: of the attention.
      blocks: how many.
      length: of the longest sequence.
      segments: how many kinds of segments there are.
      dropout: the rate, after the embeddings and each part, and in the attention.
      deviation: the standard deviation that weights start with; narrow networks need a larger one.
      pre: the norm comes before each part.
      causal: positions see those before them alone.
      next_sentence: has the pooler and its head, too; the output is a pair then.
    """

    vocabulary: int = 30_522
    features: int = 768
    heads: int = 12
    blocks: int = 12
    length: int = 512
    segments: int = 2
    dropout: float = 0.0
    deviation: float = 0.02
    pre: bool = False
    causal: bool = False
    next_sentence: bool = False


def add_layers(net: Any, layers: Layers, plan: Plan) -> None:
    """Gives `net` all layers."""
    features = plan.features
    start = nn.initializers.truncated_normal(plan.deviation)
    embed, dense = partial(layers.embed, embedding_init=start), partial(layers.dense, kernel_init=start)
    net.tokens = embed(plan.vocabulary, features)
    net.positions = embed(plan.length, features)
    net.segments = embed(plan.segments, features)
    net.embedded_norm = no_norm if plan.pre else layers.norm(features, 3, relu=False)
    net.dropout = layers.dropout(plan.dropout) if plan.dropout else no_norm
    gelu = partial(nn.gelu, approximate=False)
    design = Design(features, 4 * features, plan.heads, plan.dropout, plan.pre, gelu, start, plan.dropout)
    net.encoder = layers.part(partial(add_blocks, layers=layers, design=design, blocks=plan.blocks), run_blocks)
    net.head_dense = dense(features, features)
    net.head_norm = layers.norm(features, 3, relu=False)
    if plan.next_sentence:
        net.pooler = dense(features, features)
        net.next_sentence = dense(features, 2)


class BERT(nn.Module):
    """For linen. Logits (n, length, vocabulary) of tokens (n, length); `mask` (n, length) says which positions count.

    Attributes:
      norm: which one.
      plan: the sizes. With `next_sentence` there is a pair of outputs: these logits, and (n, 2) from the first token.
      dtype: of the computation; that of inputs and parameters by default.

    Raises:
      ValueError: sequences that are longer than `plan.length`.
    """

    norm: NormChoice
    plan: Plan = Plan()
    dtype: Any = None

    def setup(self) -> None:
        add_layers(self, linen_layers(self.norm, self.dtype), self.plan)
        self.head_bias = self.param("head_bias", nn.initializers.zeros, (self.plan.vocabulary,))

    def __call__(
        self, inputs: Array, train: bool = True, mask: Array | None = None, segments: Array | None = None
    ) -> Any:
        call = Call(train, mask)
        x = self.encoder(self.embedded(inputs, segments, call), call, self.allowed(inputs, mask))
        y = call(self.head_norm, nn.gelu(self.head_dense(x), approximate=False))
        logits = self.tokens.attend(y) + self.head_bias[None, None].astype(y.dtype)
        if not self.plan.next_sentence:
            return logits
        return logits, self.next_sentence(jnp.tanh(self.pooler(x[:, 0])))

    def embedded(self, tokens: Array, segments: Array | None, call: Call) -> Array:
        """The sum of three embeddings, normalized."""
        length = tokens.shape[1]
        if length > self.plan.length:
            raise ValueError(f"`inputs` must have at most {self.plan.length} positions, but they have {length}.")
        segments = jnp.zeros_like(tokens) if segments is None else segments
        x = self.tokens(tokens) + self.positions(jnp.arange(length))[None] + self.segments(segments)
        return call.dropout(self.dropout, call(self.embedded_norm, x))

    def allowed(self, tokens: Array, mask: Array | None) -> Array | None:
        """Which positions the attention may look at."""
        return may_look_at(mask, tokens.shape[1], self.plan.causal)


def build(
    *,
    norm: NormChoice,
    size: str = "small",
    classes: int | None = None,
    length: int = 1,
    dropout: float | None = None,
    causal: bool = False,
    dtype: Any = None,
    **sizes: Any,
) -> BERT:
    """BERT for linen, of a published size.

    Args:
      norm: at every site.
      size: of `SIZES`.
      classes: the number of tokens, which is that of the logits; that of `size` by default.
      length: of the longest sequence, where it is more than that of `size`.
      dropout: the rate; that of `size` by default.
      causal: positions see those before them alone.
      dtype: of the computation; that of inputs and parameters by default.
      **sizes: fields of `Plan` in the place of those of `size`.
    """
    plan = Plan(**sized(SIZES, size, {"vocabulary": classes, "dropout": dropout, "causal": causal, **sizes}))
    return BERT(norm, plan._replace(length=max(plan.length, length)), dtype)
