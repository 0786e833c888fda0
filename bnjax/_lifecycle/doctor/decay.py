"""Which parameters of norms an optimizer decays: asked of the optimizer itself, with gradients of zero."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bnjax._core.state import named_leaves
from bnjax._lifecycle.trees import shown

STEPS = 64  # so many times it is asked, while nothing moves: a warm-up from 0, or gradients that are collected


class Decay(NamedTuple):
    """What the optimizer does to parameters without a gradient.

    Attributes:
      shrinks: by the path of the module and the name of the parameter, by which part of itself in a step.
      inconclusive: not even a gradient moves anything.
    """

    shrinks: dict[tuple[str, str], float]
    inconclusive: bool = False


def decay_of(tx: Any, params: Any, mask: Any) -> Decay:
    """Asks an optimizer what it decays.

    All parameters are taken to be 1, so that one that is 0 now, as a bias is at first, tells as much as the others.

    Args:
      tx: an optax transformation.
      params: of the model, as the optimizer gets them.
      mask: a tree like it, true where a parameter is that of a norm.

    Raises:
      ValueError: `tx` is no such transformation, or wants more than gradients and parameters.
    """
    if not callable(getattr(tx, "init", None)) or not callable(getattr(tx, "update", None)):
        raise ValueError(f"`tx` must be an optax transformation, such as `optax.adamw(1e-3)`, but it is {tx!r:.80}.")
    try:
        updates = _updates(tx, jax.tree.map(jnp.ones_like, params))
    except TypeError as error:
        raise ValueError(
            "`tx` must take gradients and parameters alone, so that it can be asked what it decays; leave out the part "
            f"that wants more. {error}"
        ) from error
    except ValueError as error:  # of optax: labels or masks of other parameters
        raise ValueError(
            f"`tx` does not fit the parameters of the model, such as by its labels or its mask: {error}"
        ) from error
    if updates is None:
        return Decay({}, inconclusive=True)
    chosen, moved = named_leaves(mask)[0], named_leaves(updates)[0]
    values = {
        path: np.asarray(moved[path], np.float64) for path, is_norm in chosen.items() if is_norm and path in moved
    }
    # What only jitters, such as noise on gradients, goes up as well.
    shrinking = {path: -float(t.mean()) for path, t in values.items() if t.size and (t < 0).all()}
    return Decay({(shown(path[:-1]), str(path[-1])): rate for path, rate in shrinking.items()})


def _updates(tx: Any, params: Any) -> Any:
    """What is added without a gradient, in the first step in which a gradient moves anything; nothing if none does."""
    update = jax.jit(lambda gradients, state: tx.update(gradients, state, params))
    without, state = jax.tree.map(jnp.zeros_like, params), tx.init(params)
    idle, idle_state = None, state
    for _ in range(STEPS):
        moved, state = update(params, state)
        idle, idle_state = update(without, idle_state)
        if any(bool((t != 0).any()) for t in jax.tree.leaves(moved)):
            return idle
    return None
