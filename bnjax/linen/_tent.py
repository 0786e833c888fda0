"""Adaptation at test time by the entropy of the predictions, for linen."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
from flax import linen as nn
from jax import Array

from bnjax._lifecycle.overrides import Flow
from bnjax._lifecycle.tent import chosen, entropy, put_back, stepped
from bnjax.linen._intercept import Record, in_force
from bnjax.linen._masks import norm_params_mask
from bnjax.linen._recalibrate import Call, default_call

Step = Callable[[Any, Any, Any], tuple[Array, Any, Any]]


def tent(model: nn.Module, variables: Mapping[str, Any], tx: Any, *, call: Call = default_call) -> tuple[Any, Step]:
    """Adapts the parameters of a model's norms to a stream of unlabelled batches, by minimizing the entropy.

    Batch norms normalize by the batch, and the running state stays as it is. Only the parameters that
    `norm_params_mask` selects move; all others stay the same, bit for bit.

    Args:
      model: the model, which need not know bnjax.
      variables: all its variables.
      tx: an optax transformation; it sees the parameters of the norms alone.
      call: `call(model, batch)` runs the model as for evaluation, and returns logits of shape (..., classes).

    Returns:
      The state of `tx`, and `step(params, opt_state, batch) -> (logits, params, opt_state)`. `params` is all of
      `variables["params"]`. The logits are those of before the update.

    Raises:
      ValueError: the model has no parameters of norms.

    References:
      Wang et al., Tent: Fully Test-Time Adaptation by Entropy Minimization, 2021 (arXiv 2006.10726).

    >>> import optax
    >>> model = nn.Sequential([nn.BatchNorm(use_running_average=True), nn.Dense(3)])
    >>> batch = jax.random.normal(jax.random.key(0), (8, 2))
    >>> variables = model.init(jax.random.key(1), batch)
    >>> opt_state, step = tent(model, variables, optax.sgd(0.1))
    >>> logits, params, opt_state = step(variables["params"], opt_state, batch)
    >>> jax.tree.map(lambda old, new: bool((old != new).any()), variables["params"], params)["layers_1"]
    {'bias': False, 'kernel': False}
    """
    mask = norm_params_mask(variables.get("params", {}))
    rest = {name: value for name, value in variables.items() if name != "params"}
    opt_state = tx.init(chosen(variables.get("params", {}), mask))

    @jax.jit
    def step(params: Any, opt_state: Any, batch: Any) -> tuple[Array, Any, Any]:
        def loss(own: Any) -> tuple[Array, Array]:
            with in_force(Record(Flow("batch"))):
                # A scan that carries the state wants to write it; what is written is left.
                run = nn.apply(call, model, mutable=["batch_stats"])
                logits, _ = run({**rest, "params": put_back(own, params, mask)}, batch)
            return entropy(logits), logits

        own = chosen(params, mask)
        gradients, logits = jax.grad(loss, has_aux=True)(own)
        own, opt_state = stepped(tx, own, gradients, opt_state)
        return logits, put_back(own, params, mask), opt_state

    return opt_state, step
