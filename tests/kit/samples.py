"""Inputs: what is drawn, and where a running state starts."""

import jax.numpy as jnp
import numpy as np

from bnjax import Moments


def sample(shape, features=None, *, mean=0.0, uneven=False, scale=(0.5, 2.0), dtype=np.float32, seed=0):
    """x, a cotangent, a scale and a bias. Where `uneven`, means and spreads of x differ along the last axis."""
    rng = np.random.default_rng(seed)
    features = shape[-1:] if features is None else features
    x = rng.normal(size=shape)
    if uneven:
        x = x * rng.uniform(0.5, 2, shape[-1]) + rng.normal(size=shape[-1])
    arrays = x + mean, rng.normal(size=shape), rng.uniform(*scale, features), rng.normal(size=features)
    return tuple(t.astype(dtype) for t in arrays)


def running(features, dtype=np.float32, *, count=0, mean=0.0, var=1.0):
    """A running state, where it starts unless told otherwise."""
    return Moments(jnp.asarray(count, dtype), jnp.full(features, mean, dtype), jnp.full(features, var, dtype))
