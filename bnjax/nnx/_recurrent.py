"""Recurrent cells with normalization for `flax.nnx.RNN`."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import DTypeLike

from bnjax import _checks as checks
from bnjax._collectives.psum import AxisName, pmax
from bnjax._core.moments import Moments
from bnjax._core.normalize import normalize
from bnjax._modules.call import no_moments
from bnjax._modules.recurrent import batch_norm_carry, gru_step, lstm_step, side_by_side
from bnjax._norms.batch import batch_norm
from bnjax.nnx._batch import asked_for_moments
from bnjax.nnx._sample import LayerNorm
from bnjax.nnx._unstable import RNNCellBase

KERNEL_INIT, RECURRENT_KERNEL_INIT = nnx.initializers.lecun_normal(), nnx.initializers.orthogonal()


class _Cell(RNNCellBase):
    """The arguments and products of all cells of this file.

    Args:
      in_features: of the input.
      hidden_features: of the output.
      epsilon: of the norms.
      kernel_init: of the weights of the input.
      recurrent_kernel_init: of the weights of the output.
      dtype: of the products; inferred by default.
      param_dtype: of parameters.
    """

    gates: int

    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        *,
        epsilon: float = 1e-5,
        kernel_init: nnx.Initializer = KERNEL_INIT,
        recurrent_kernel_init: nnx.Initializer = RECURRENT_KERNEL_INIT,
        dtype: DTypeLike | None = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.in_features, self.hidden_features = in_features, hidden_features
        self.epsilon, self.dtype, self.param_dtype = epsilon, dtype, param_dtype
        out = self.gates * hidden_features
        dense = partial(nnx.Linear, out_features=out, use_bias=False, dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        self.i = dense(in_features, kernel_init=side_by_side(kernel_init, self.gates))
        self.h = dense(hidden_features, kernel_init=side_by_side(recurrent_kernel_init, self.gates))
        self._add_norms(rngs)

    def _add_norms(self, rngs: nnx.Rngs) -> None:
        raise NotImplementedError

    def _layer_norm(self, multiple: int, rngs: nnx.Rngs, use_bias: bool = True) -> LayerNorm:
        """A layer norm; where two are added, one bias is enough."""
        return LayerNorm(
            multiple * self.hidden_features, epsilon=self.epsilon, use_bias=use_bias, dtype=self.dtype,
            param_dtype=self.param_dtype, rngs=rngs,
        )  # fmt: skip

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

    >>> rnn = nnx.RNN(LayerNormLSTMCell(3, 4, rngs=nnx.Rngs(0)))
    >>> print(rnn(jnp.ones((2, 5, 3))).shape)
    (2, 5, 4)
    """

    gates = 4

    def _add_norms(self, rngs: nnx.Rngs) -> None:
        self.norm_x = self._layer_norm(4, rngs)
        self.norm_h = self._layer_norm(4, rngs, use_bias=False)
        self.norm_c = self._layer_norm(1, rngs)

    def __call__(  # type: ignore[override]
        self, carry: tuple[Array, Array], inputs: Array
    ) -> tuple[tuple[Array, Array], Array]:
        """One step: the new carry `(c, h)`, and the output h."""
        c, h = lstm_step(carry, self.i(inputs), self.h(carry[1]), self.norm_x, self.norm_h, self.norm_c)
        return (c, h), h

    def initialize_carry(self, input_shape: tuple[int, ...], rngs: Any = None) -> tuple[Array, Array]:  # type: ignore[override]
        """Zeros."""
        zeros = jnp.zeros((*input_shape[:-1], self.hidden_features), self.param_dtype)
        return zeros, zeros


class LayerNormGRUCell(_Cell):
    """GRU cell whose gates go through layer norm.

    `[r, z] = sigmoid(LN(W_h h) + LN(W_x x) + b)`, `n = tanh(LN(V_x x) + d + r * LN(V_h h))`, `h = (1 - z) * n + z * h`;
    b and d are the biases of the norms of x.

    References:
      Ba, Kiros and Hinton, Layer Normalization, 2016 (arXiv 1607.06450), supplement.

    >>> rnn = nnx.RNN(LayerNormGRUCell(3, 4, rngs=nnx.Rngs(0)))
    >>> print(rnn(jnp.ones((2, 5, 3))).shape)
    (2, 5, 4)
    """

    gates = 3

    def _add_norms(self, rngs: nnx.Rngs) -> None:
        self.norm_x, self.norm_x_new = self._layer_norm(2, rngs), self._layer_norm(1, rngs)
        self.norm_h = self._layer_norm(2, rngs, use_bias=False)
        self.norm_h_new = self._layer_norm(1, rngs, use_bias=False)

    def __call__(self, carry: Array, inputs: Array) -> tuple[Array, Array]:  # type: ignore[override]
        """One step: the new carry h, which is the output."""
        norms = (self.norm_x, self.norm_h, self.norm_x_new, self.norm_h_new)
        h = gru_step(carry, self.i(inputs), self.h(carry), *norms)
        return h, h

    def initialize_carry(self, input_shape: tuple[int, ...], rngs: Any = None) -> Array:  # type: ignore[override]
        """Zeros."""
        return jnp.zeros((*input_shape[:-1], self.hidden_features), self.param_dtype)


class BatchNormLSTMCell(_Cell):
    """LSTM cell whose gates and memory go through batch norm, with statistics for each time step.

    `[i, f, g, o] = BN(W_h h) + BN(W_x x) + b`, `c = sigmoid(f) * c + sigmoid(i) * tanh(g)`,
    `h = sigmoid(o) * tanh(BN(c))`. Scales start at 0.1, because from 1 the gradients of tanh vanish.

    Step `max_steps` and those after it share their statistics; at evaluation steps past the longest seen use those of
    the last that was. For sequences of different lengths, padded, give
    `initial_carry=cell.initialize_carry((*batch, features), lengths=lengths)`: `nnx.RNN` does not pass
    `seq_lengths` to its cell.

    Args:
      max_steps: how many steps have statistics of their own.
      momentum: the fraction of the running state that is kept (1 - PyTorch's).
      axis_name: a name or names of mapped axes to measure over too.
      use_running_average: normalize by the running state; set by `model.train()` and `model.eval()`.
      epsilon: of the norms; this and the rest as in the other cells.

    References:
      Cooijmans et al., Recurrent Batch Normalization, 2016 (arXiv 1603.09025).

    >>> cell = BatchNormLSTMCell(3, 4, max_steps=8, rngs=nnx.Rngs(0))
    >>> y = nnx.RNN(cell)(jnp.ones((2, 5, 3)))
    >>> print(cell.norm_c.mean.shape, cell.seen[...])
    (8, 4) 5
    """

    gates = 4

    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        *,
        max_steps: int,
        momentum: float = 0.9,
        axis_name: AxisName | None = None,
        use_running_average: bool = False,
        epsilon: float = 1e-5,
        kernel_init: nnx.Initializer = KERNEL_INIT,
        recurrent_kernel_init: nnx.Initializer = RECURRENT_KERNEL_INIT,
        dtype: DTypeLike | None = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.max_steps = checks.positive_integer(max_steps)
        if not self.max_steps:
            raise ValueError(f"`max_steps` must be a positive integer, but it is {max_steps!r}.")
        self.momentum, self.axis_name = momentum, axis_name
        checks.flag(use_running_average, "use_running_average")
        self.use_running_average = use_running_average
        self.seen = nnx.BatchStat(jnp.zeros((), jnp.int32))
        super().__init__(
            in_features, hidden_features, epsilon=epsilon, kernel_init=kernel_init,
            recurrent_kernel_init=recurrent_kernel_init, dtype=dtype, param_dtype=param_dtype, rngs=rngs,
        )  # fmt: skip

    def _add_norms(self, rngs: nnx.Rngs) -> None:
        wide, own = 4 * self.hidden_features, self.hidden_features
        self.norm_x, self.norm_h, self.norm_c = (
            StepNorm(self.max_steps, n, bias, self.param_dtype)
            for n, bias in ((wide, True), (wide, False), (own, True))
        )

    def __call__(  # type: ignore[override]
        self, carry: tuple[Array, ...], inputs: Array
    ) -> tuple[tuple[Array, ...], Array]:
        """One step: the new carry `(c, h, step, lengths)`, and the output h."""
        c, h, step, lengths = carry
        mask = step < lengths
        now = step.reshape(-1)[0]
        if self.use_running_average:
            slot = jnp.clip(now, 0, jnp.maximum(jnp.minimum(self.seen[...], self.max_steps) - 1, 0))
        elif asked_for_moments(self):
            raise no_moments(type(self).__name__, "the call without `nnx.capture`")
        else:
            slot = jnp.minimum(now, self.max_steps - 1)
            end = jnp.where(mask.any(), now + 1, 0)
            self.seen[...] = jnp.maximum(self.seen[...], pmax(end, self.axis_name))
        options: dict[str, Any] = {
            "train": not self.use_running_average, "momentum": self.momentum, "axis_name": self.axis_name,
            "epsilon": self.epsilon, "where": mask[..., None],
        }  # fmt: skip
        norms = (partial(norm, slot=slot, **options) for norm in (self.norm_x, self.norm_h, self.norm_c))
        c, h = lstm_step((c, h), self.i(inputs), self.h(h), *norms)
        return (c, h, step + 1, lengths), h

    def initialize_carry(  # type: ignore[override]
        self, input_shape: tuple[int, ...], rngs: Any = None, lengths: Any = None
    ) -> tuple[Array, Array, Array, Array]:
        """Zeros, step 0, and the lengths of the sequences: examples past theirs have no part in the statistics."""
        return batch_norm_carry((*input_shape[:-1], self.hidden_features), self.param_dtype, lengths)

    def set_view(self, use_running_average: bool | None = None) -> None:
        """Called by `nnx.view`."""
        if use_running_average is not None:
            self.use_running_average = use_running_average


class StepNorm(nnx.Module):
    """Batch norm with a running state for each of several steps, and one scale and bias for all."""

    def __init__(self, steps: int, features: int, use_bias: bool, param_dtype: Any):
        self.scale = nnx.Param(jnp.full(features, 0.1, param_dtype))
        if use_bias:
            self.bias = nnx.Param(jnp.zeros(features, param_dtype))
        self.mean = nnx.BatchStat(jnp.zeros((steps, features)))
        self.var = nnx.BatchStat(jnp.ones((steps, features)))
        self.use_bias = use_bias

    def __call__(self, x: Array, *, slot: Array, train: bool, epsilon: float, **options: Any) -> Array:
        scale, bias = self.scale[...], self.bias[...] if self.use_bias else None
        running = Moments(jnp.zeros(()), self.mean[...][slot], self.var[...][slot])
        if not train:
            return normalize(x, running, scale, bias, epsilon=epsilon)
        y, new = batch_norm(x, running, scale, bias, epsilon=epsilon, **options)
        self.mean[...] = self.mean[...].at[slot].set(new.mean)
        self.var[...] = self.var[...].at[slot].set(new.var)
        return y
