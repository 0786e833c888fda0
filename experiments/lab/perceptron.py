"""Dense layers in a row, with a norm and dropout, whose rates may be traced: many rates are one program."""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array
from jax.typing import ArrayLike

from experiments.data import CLASSES
from experiments.models.norms import NormChoice, norms_of


class Perceptron(nn.Module):
    """Dense layers, each with a norm and relu behind it, and a head. It is called with vectors (n, features).

    Attributes:
      norm: which one.
      depth: how many layers have a norm.
      before: the rate of dropout on the input of every layer with a norm but the first. A norm comes behind it.
      last: the rate of dropout on the input of the head. No norm comes behind it.
      width: features of a layer.
    """

    norm: NormChoice
    depth: int
    before: ArrayLike = 0.0
    last: ArrayLike = 0.0
    width: int = 64

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        norms = norms_of(self.norm, train, None)
        start = nn.initializers.he_normal()
        for i in range(1, self.depth + 1):
            x = self._dropped(x, self.before, train) if i > 1 else x
            x = nn.Dense(self.width, use_bias=norms.use_bias, kernel_init=start, name=f"dense{i}")(x)
            x = norms.relu(x)
        return nn.Dense(CLASSES, name="head")(self._dropped(x, self.last, train))

    def _dropped(self, x: Array, rate: ArrayLike, train: bool) -> Array:
        """As by `flax.linen.Dropout`, which takes no traced rate."""
        if not train or (isinstance(rate, float) and rate == 0):
            return x
        keep = jax.random.bernoulli(self.make_rng("dropout"), 1 - jnp.asarray(rate), x.shape)
        return jnp.where(keep, x / (1 - rate), 0)
