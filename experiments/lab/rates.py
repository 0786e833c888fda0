"""Many learning rates: trained as one program with all seeds, and the best of them."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.results.evidence import Evidence


def of_all(trained: Callable[..., Any], seeds: Sequence[int], rates: Sequence[float]) -> Any:
    """What `trained(seed, rate)` gives for every rate and seed, (rates, seeds, ...), by one program."""
    over = jax.vmap(jax.vmap(trained, (0, None)), (None, 0))
    return jax.device_get(jax.jit(over)(jnp.asarray(seeds), jnp.asarray(rates)))


def metric(rate: float) -> str:
    """What the accuracy at a rate is called."""
    return f"accuracy at rate {rate:g}"


def best(evidence: Evidence, rates: Sequence[float], settings: Mapping[str, object]) -> np.ndarray:
    """The accuracies of the seeds with the learning rate that is best in the mean."""
    return max((evidence.values(metric(rate), settings) for rate in rates), key=np.mean)
