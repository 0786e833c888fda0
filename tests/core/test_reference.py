"""The rule beside its reference in plain JAX: outputs, moments and derivatives, first and second, in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bnjax import Moments, batch_norm
from bnjax._core.reference import standardize


def sample(masked):
    rng = np.random.default_rng(0)
    x, g, residual = (rng.normal(size=(6, 5, 3)) for _ in range(3))
    mask = jnp.asarray(rng.random((6, 5, 1)) < 0.7) if masked else None
    scale, bias, c = rng.random(3) + 0.5, rng.normal(size=3), rng.normal(size=3)
    return x + 2, g, residual, mask, scale, bias, c


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_the_rule_is_its_reference(masked, relu, x64):
    x, g, residual, mask, scale, bias, c = sample(masked)
    running = Moments(jnp.zeros(()), jnp.asarray(c), jnp.ones(3))

    def ours(x, scale, bias, residual):
        y, state = batch_norm(
            x, running, scale, bias, where=mask, residual=residual, activation="relu" if relu else None, momentum=0.0
        )
        return (y * g).sum(), (y, state.mean, state.var)

    def plain(x, scale, bias, residual):
        per_feature = (t.reshape(1, 1, 3) for t in (c, scale, bias))
        y, _, mean, var = standardize(
            x, *per_feature, axes=(0, 1), epsilon=1e-5, mask=mask, residual=residual, relu=relu
        )
        return (y * g).sum(), (y, mean.ravel(), var.ravel())

    def both(f):
        gradient = jax.grad(f, (0, 1, 2, 3), has_aux=True)
        second = jax.grad(lambda *args: sum((t**2).sum() for t in gradient(*args)[0]), (0, 1))
        return gradient(x, scale, bias, residual), second(x, scale, bias, residual)

    for got, want in zip(
        jax.tree.leaves(jax.jit(both, static_argnums=0)(ours)), jax.tree.leaves(both(plain)), strict=True
    ):
        np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-9)
