"""What a program may do with a norm besides `jit`, `vmap` and `grad`: close over numbers, export, forbid promotion."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import bnjax
from bnjax import Moments
from bnjax import linen as bl
from tests.family import assert_close

X = np.random.default_rng(0).normal(size=(4, 3, 2, 10)).astype(np.float32)


def state(*shape):
    return Moments(np.zeros(()), np.zeros(shape, np.float32), np.ones(shape, np.float32))


def spectral(x, steps):
    layer = bl.SpectralNorm(nn.Dense(3, parent=None), n_steps=steps)
    variables = layer.init(jax.random.key(0), x, update_stats=True)
    return layer.apply(variables, x, update_stats=False)


# A call with a number that is looked at, one that is legal and one that is not.
KNOWN = {
    "momentum": (lambda x, n: bnjax.batch_norm(x, state(10), momentum=n), 0.9, 1.5),
    "epsilon": (lambda x, n: bnjax.layer_norm(x, epsilon=n), 0.1, -0.1),
    "r_max": (lambda x, n: bnjax.batch_renorm(x, state(10), r_max=n), 1.1, 0.5),
    "example_weight": (
        lambda x, n: bnjax.example_weighted_batch_norm(x, state(10), example_weight=n, train=False),
        0.3,
        2.0,
    ),
    "fraction": (lambda x, n: bnjax.partial_rms_norm(x, fraction=n), 0.9, 0.0),
    "domain": (lambda x, n: bnjax.domain_batch_norm(x, state(2, 10), domain=n), 1, 2),
    "domain of each": (lambda x, n: bnjax.domain_batch_norm(x, state(2, 10), domain=n), [0, 1, 1, 0], [0, 1, 2, 0]),
    "num_groups": (lambda x, n: bnjax.group_norm(x, num_groups=n), 5, 3),
    "size": (lambda x, n: bnjax.local_response_norm(x, size=n), 4, 0),
    "seen": (lambda x, n: bnjax.resize_steps(x, 5, seen=n), 2, 0),
    "n_steps": (spectral, 2, None),
}


@pytest.mark.parametrize("kind", [jnp.asarray, np.asarray])
@pytest.mark.parametrize("name", KNOWN)
def test_known_numbers_are_known_within_jit(name, kind):
    """Numbers that a traced function closes over: JAX's own, which `jax.numpy` would trace, and numpy's."""
    f, legal, bad = KNOWN[name]
    value = kind(legal)
    assert_close(jax.jit(lambda x: f(x, value))(X), jax.jit(lambda x: f(x, legal))(X))
    if bad is not None:
        value = kind(bad)
        with pytest.raises(ValueError, match=name.split()[0].removeprefix("num_")):
            jax.jit(lambda x: f(x, value))(X)


def test_a_number_of_features_is_not_traced():
    with pytest.raises(ValueError, match=r"`fraction`.*known when traced"):
        jax.jit(bnjax.partial_rms_norm)(X, fraction=0.5)
