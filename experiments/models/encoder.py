"""The encoder of a Transformer with the norm before each part (pre-norm, arXiv:2002.04745), the norm as an argument."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jax import Array


class Encoder(nn.Module):
    """Blocks of self-attention and two dense layers, each beside a shortcut, and a norm at the end."""

    norm: Callable[..., Callable[[Array], Array]]  # makes one
    blocks: int = 12
    heads: int = 12
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        features = x.shape[-1]
        for _ in range(self.blocks):
            y = self.norm()(x)
            x = x + nn.MultiHeadDotProductAttention(self.heads, dtype=self.dtype, deterministic=True)(y, y)
            y = nn.gelu(nn.Dense(4 * features, dtype=self.dtype)(self.norm()(x)))
            x = x + nn.Dense(features, dtype=self.dtype)(y)
        return self.norm()(x)
