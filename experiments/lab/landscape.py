"""How the loss and its gradient change along a step of training (Santurkar et al., arXiv:1805.11604, section 3.1)."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array

from experiments.lab.fitting import Step, loss_of

ABSOLUTE = (0.05, 0.1, 0.2, 0.4)  # learning rates of the steps: half of that of training, to four times
RELATIVE = (0.0025, 0.005, 0.01, 0.02)  # lengths of the steps, as parts of the length of all weights
WORST = 1e6  # in the place of a loss or a gradient that is not finite


def along_gradient(net: Any, step: Step) -> dict[str, dict[str, Array]]:
    """What is met on steps along the gradient of a batch, on the same batch.

    Returns:
      For `absolute` and `relative` steps: the least and the largest loss, with that of the start (`low`, `high`), and
      their difference (`range`); how much the gradient changes at most (`change`), and at most by length of the way
      (`smoothness`, beta). Where steps are relative, changes are in lengths of the gradient at the start, and ways in
      lengths of all weights.
    """
    params = step.variables["params"]
    size, weights = optax.tree.norm(step.gradients), optax.tree.norm(params)

    def at(rate: Array) -> tuple[Array, Array]:
        moved = jax.tree.map(lambda p, g: p - rate * g, params, step.gradients)
        of_params = partial(loss_of, net)
        (loss, _), gradients = jax.value_and_grad(of_params, has_aux=True)(
            moved, step.variables, step.x, step.y, step.rngs
        )
        change = optax.tree.norm(jax.tree.map(jnp.subtract, gradients, step.gradients))
        return _finite(loss), _finite(change)

    relative = jnp.asarray(RELATIVE)
    rates = jnp.concatenate([jnp.asarray(ABSOLUTE), relative * weights / size])
    losses, changes = jax.vmap(at)(rates)
    n = len(ABSOLUTE)
    return {
        "absolute": _met(step.loss, losses[:n], changes[:n], rates[:n] * size),
        "relative": _met(step.loss, losses[n:], changes[n:] / size, relative),
    }


def _finite(value: Array) -> Array:
    return jnp.minimum(jnp.where(jnp.isfinite(value), value, WORST), WORST)


def _met(start: Array, losses: Array, changes: Array, lengths: Array) -> dict[str, Array]:
    low, high = jnp.minimum(start, losses.min()), jnp.maximum(start, losses.max())
    return {
        "low": low,
        "high": high,
        "range": high - low,
        "change": changes.max(),
        "smoothness": (changes / lengths).max(),
    }
