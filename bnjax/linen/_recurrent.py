"""Recurrent cells with normalization for `flax.linen.RNN`."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from bnjax import _checks as checks
from bnjax._modules.recurrent import batch_norm_carry, gru_step, lstm_step, side_by_side
from bnjax.linen._batch import BatchNorm
from bnjax.linen._sample import LayerNorm


class _Cell(nn.RNNCellBase):
    """The attributes and products of all cells of this file.

    Attributes:
      features: of the output.
      epsilon: of the norms.
      kernel_init: of the weights of the input.
      recurrent_kernel_init: of the weights of the output.
      dtype: of the products; inferred by default.
      param_dtype: of parameters.
    """

    features: int
    epsilon: float = 1e-5
    kernel_init: Any = nn.initializers.lecun_normal()
    recurrent_kernel_init: Any = nn.initializers.orthogonal()
    dtype: Any = None
    param_dtype: Any = jnp.float32

    def products(self, x: Array, h: Array, gates: int) -> tuple[Array, Array]:
        """Those of input and output with their weights, for all gates."""
        dense = partial(nn.Dense, gates * self.features, use_bias=False, dtype=self.dtype, param_dtype=self.param_dtype)
        inits = (side_by_side(init, gates) for init in (self.kernel_init, self.recurrent_kernel_init))
        zx, zh = (dense(kernel_init=init, name=name)(t) for init, name, t in zip(inits, "ih", (x, h), strict=True))
        return zx, zh

    def norm(self, name: str, use_bias: bool = True) -> LayerNorm:
        """A layer norm; where two are added, one bias is enough."""
        return LayerNorm(
            epsilon=self.epsilon, use_bias=use_bias, dtype=self.dtype, param_dtype=self.param_dtype, name=name
        )

    @property
    def num_feature_axes(self) -> int:
        """How many axes of the input are features."""
        return 1


class LayerNormLSTMCell(_Cell):
    """LSTM cell whose gates and memory go through layer norm.

    `[i, f, g, o] = LN(W_h h) + LN(W_x x) + b`, `c = sigmoid(f) * c + sigmoid(i) * tanh(g)`,
    `h = sigmoid(o) * tanh(LN(c))`; b is the bias of the second norm.

    References:
      Ba, Kiros and Hinton, Layer Normalization, 2016 (arXiv 1607.06450).

    >>> rnn = nn.RNN(LayerNormLSTMCell(4))
    >>> x = jnp.ones((2, 5, 3))
    >>> print(rnn.apply(rnn.init(jax.random.key(0), x), x).shape)
    (2, 5, 4)
    """

    @nn.compact
    def __call__(self, carry: tuple[Array, Array], inputs: Array) -> tuple[tuple[Array, Array], Array]:
        """One step: the new carry `(c, h)`, and the output h."""
        products = self.products(inputs, carry[1], 4)
        norms = self.norm("norm_x"), self.norm("norm_h", use_bias=False), self.norm("norm_c")
        c, h = lstm_step(carry, *products, *norms)
        return (c, h), h

    @nn.nowrap
    def initialize_carry(self, rng: Array, input_shape: tuple[int, ...]) -> tuple[Array, Array]:
        """Zeros."""
        zeros = jnp.zeros((*input_shape[:-1], self.features), self.param_dtype)
        return zeros, zeros


class LayerNormGRUCell(_Cell):
    """GRU cell whose gates go through layer norm.

    `[r, z] = sigmoid(LN(W_h h) + LN(W_x x) + b)`, `n = tanh(LN(V_x x) + d + r * LN(V_h h))`, `h = (1 - z) * n + z * h`;
    b and d are the biases of the norms of x.

    References:
      Ba, Kiros and Hinton, Layer Normalization, 2016 (arXiv 1607.06450), supplement.

    >>> rnn = nn.RNN(LayerNormGRUCell(4))
    >>> x = jnp.ones((2, 5, 3))
    >>> print(rnn.apply(rnn.init(jax.random.key(0), x), x).shape)
    (2, 5, 4)
    """

    @nn.compact
    def __call__(self, carry: Array, inputs: Array) -> tuple[Array, Array]:
        """One step: the new carry h, which is the output."""
        norms = [self.norm(f"norm_{name}", use_bias="x" in name) for name in ("x", "h", "x_new", "h_new")]
        h = gru_step(carry, *self.products(inputs, carry, 3), *norms)
        return h, h

    @nn.nowrap
    def initialize_carry(self, rng: Array, input_shape: tuple[int, ...]) -> Array:
        """Zeros."""
        return jnp.zeros((*input_shape[:-1], self.features), self.param_dtype)


class BatchNormLSTMCell(_Cell):
    """LSTM cell whose gates and memory go through batch norm, with statistics for each time step.

    `[i, f, g, o] = BN(W_h h) + BN(W_x x) + b`, `c = sigmoid(f) * c + sigmoid(i) * tanh(g)`,
    `h = sigmoid(o) * tanh(BN(c))`. Scales start at 0.1, because from 1 the gradients of tanh vanish.

    In `nn.RNN(cell, variable_axes={"batch_stats": 0})` the running state has a first axis of time steps, as many as
    the input has at initialization; `resize_steps` makes it fit inputs of another length. For sequences of different
    lengths, padded, give `initial_carry=cell.initialize_carry(key, (*batch, features), lengths)`: `nn.RNN` does not
    pass `seq_lengths` to its cell.

    Attributes:
      use_running_average: normalize by the running state; `nn.RNN` cannot tell at the call.
      momentum: the fraction of the running state that is kept (1 - PyTorch's).
      axis_name: a name or names of mapped axes to measure over too.

    References:
      Cooijmans et al., Recurrent Batch Normalization, 2016 (arXiv 1603.09025).

    >>> rnn = nn.RNN(BatchNormLSTMCell(4, use_running_average=False), variable_axes={"batch_stats": 0})
    >>> variables = rnn.init(jax.random.key(0), jnp.ones((2, 5, 3)))
    >>> print(variables["batch_stats"]["cell"]["norm_c"]["mean"].shape)
    (5, 4)
    """

    use_running_average: bool = False
    momentum: float = 0.9
    axis_name: Any = None

    def __post_init__(self) -> None:
        checks.flag(self.use_running_average, "use_running_average")
        super().__post_init__()

    @nn.compact
    def __call__(self, carry: tuple[Array, ...], inputs: Array) -> tuple[tuple[Array, ...], Array]:
        """One step: the new carry `(c, h, step, lengths)`, and the output h."""
        c, h, step, lengths = carry
        mask = (step < lengths)[..., None]
        norm = partial(
            BatchNorm, self.use_running_average, momentum=self.momentum, epsilon=self.epsilon, axis_name=self.axis_name,
            scale_init=nn.initializers.constant(0.1), dtype=self.dtype, param_dtype=self.param_dtype,
        )  # fmt: skip
        norms = (norm(name="norm_x"), norm(name="norm_h", use_bias=False), norm(name="norm_c"))
        c, h = lstm_step((c, h), *self.products(inputs, h, 4), *(partial(n, mask=mask) for n in norms))
        return (c, h, step + 1, lengths), h

    @nn.nowrap
    def initialize_carry(
        self, rng: Array, input_shape: tuple[int, ...], lengths: Any = None
    ) -> tuple[Array, Array, Array, Array]:
        """Zeros, step 0, and the lengths of the sequences: examples past theirs have no part in the statistics."""
        return batch_norm_carry((*input_shape[:-1], self.features), self.param_dtype, lengths)
