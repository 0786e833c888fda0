"""The random numbers of a step: from the seed of the run, the step, and the number of the example among all examples.

So they are the same in every layout, on any number of devices and processes, and after a resume.
"""

from collections.abc import Mapping
from typing import Any

import jax
from jax import Array

from experiments.models.dropout import Noise


def of_step(state: Any, batch: Mapping[str, Array]) -> Noise | None:
    """What a step of training draws from; None, of a run that draws nothing."""
    if state.key is None:
        return None
    return Noise(jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step), batch["index"])


def of_evaluation(batch: Mapping[str, Array]) -> Noise:
    """What evaluations draw from, which are alike."""
    return Noise(jax.random.key(0), batch["index"])


def keys(noise: Noise | None) -> Array | None:
    """A key for each example (n,)."""
    return None if noise is None else jax.vmap(jax.random.fold_in, (None, 0))(noise.key, noise.example)
