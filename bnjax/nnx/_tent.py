"""Adaptation at test time by the entropy of the predictions, for nnx."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from flax import nnx
from jax import Array

from bnjax._lifecycle.overrides import Flow
from bnjax._lifecycle.tent import entropy, no_parameters
from bnjax.nnx._masks import norm_params_mask
from bnjax.nnx._measured import observe, one_trace
from bnjax.nnx._recalibrate import Call, default_call
from bnjax.nnx._twins import check_model, frozen, kind_of, modules_with_paths, tracks

Step = Callable[[Any, nnx.Optimizer, Any], Array]
FLOW = Flow("batch")


@dataclasses.dataclass(frozen=True)
class _NormParams:
    """Selects the parameters of norms, by their paths: a filter of nnx."""

    paths: frozenset[tuple[Any, ...]]

    def __call__(self, path: tuple[Any, ...], value: Any) -> bool:
        return tuple(path) in self.paths


def tent(model: nnx.Module, tx: Any, *, call: Call = default_call) -> tuple[nnx.Optimizer, Step]:
    """Adapts the parameters of a model's norms to a stream of unlabelled batches, by minimizing the entropy.

    Batch norms normalize by the batch, and the running state stays as it is. Only the parameters that
    `norm_params_mask` selects move; all others stay the same, bit for bit.

    Args:
      model: the model, which need not know bnjax. This call leaves it alone; `step` changes it in place.
      tx: an optax transformation; it sees the parameters of the norms alone.
      call: `call(model, batch)` runs the model as for evaluation, and returns logits of shape (..., classes). It gets a
        copy in evaluation mode.

    Returns:
      The optimizer, and `step(model, optimizer, batch) -> logits`, which works in place. The logits are those of before
      the update.

    Raises:
      ValueError: the model has no parameters of norms.

    References:
      Wang et al., Tent: Fully Test-Time Adaptation by Entropy Minimization, 2021 (arXiv 2006.10726).

    >>> import optax
    >>> model = nnx.Sequential(nnx.BatchNorm(2, rngs=nnx.Rngs(0)), nnx.Linear(2, 3, rngs=nnx.Rngs(1)))
    >>> kernel = model.layers[1].kernel[...]
    >>> optimizer, step = tent(model, optax.sgd(0.1))
    >>> logits = step(model, optimizer, jax.random.normal(jax.random.key(0), (8, 2)))
    >>> bool((model.layers[1].kernel[...] == kernel).all()), bool((model.layers[0].scale[...] != 1).all())
    (True, True)
    """
    check_model(model)
    mask = nnx.to_flat_state(norm_params_mask(model))
    own = _NormParams(frozenset(tuple(path) for path, selected in mask if selected.get_value()))
    if not own.paths:
        raise no_parameters("/".join(map(str, path)) for path, _ in mask)
    optimizer = nnx.Optimizer(model, tx, wrt=own)

    @nnx.jit
    def step(model: Any, optimizer: nnx.Optimizer, batch: Any) -> Array:
        def loss(model: Any) -> tuple[Array, Array]:
            logits = _by_batch(model, batch, call)
            return entropy(logits), logits

        gradients, logits = nnx.grad(loss, argnums=nnx.DiffState(0, own), has_aux=True)(model)
        optimizer.update(model, gradients)
        return logits

    return optimizer, step


def _by_batch(model: nnx.Module, batch: Any, call: Call) -> Array:
    """The output of a copy of the model whose batch norms normalize by the batch."""
    copy = nnx.clone(model)
    copy.eval()
    with one_trace(FLOW, None) as running_pass:
        for path, module in modules_with_paths(copy):
            if kind_of(type(module)) == "batch" and tracks(module) and not frozen(module):
                observe(module, path, running_pass)
        return call(copy, batch)
