"""Activations by name: what numpy makes of the output without one, and the gradient of a callable."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import bnjax
from bnjax import Moments
from bnjax import linen as bl
from bnjax import nnx as bx

FORMULAS = {
    "gelu": lambda z: 0.5 * z * (1 + np.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3))),
    "silu": lambda z: z / (1 + np.exp(-z)),
}
CALLABLES = {"gelu": jax.nn.gelu, "silu": jax.nn.silu}
STATE = Moments(jnp.zeros(()), jnp.full(6, 0.5), jnp.full(6, 2.0))


def linen(norm, **call):
    def run(x, **options):
        layer = norm(**{k: v for k, v in options.items() if k == "activation"})
        variables = layer.init(jax.random.key(0), x, **call)
        return layer.apply(variables, x, residual=options["residual"], mutable="batch_stats", **call)[0]

    return run


def of_nnx(norm, **call):
    def run(x, residual, **options):
        return norm(6, **options, rngs=nnx.Rngs(0))(x, residual=residual, **call)

    return run


FACES = {
    "batch_norm": lambda x, **o: bnjax.batch_norm(x, STATE, **o)[0],
    "batch_norm of slices": lambda x, **o: bnjax.batch_norm(x, STATE, virtual_batch_size=2, **o)[0],
    "normalize": lambda x, **o: bnjax.normalize(x, STATE, **o),
    "layer_norm": bnjax.layer_norm,
    "rms_norm": bnjax.rms_norm,
    "group_norm": lambda x, **o: bnjax.group_norm(x, num_groups=2, **o),
    "instance_norm": bnjax.instance_norm,
    "linen batch": linen(bl.BatchNorm, use_running_average=False),
    "linen batch, evaluated": linen(bl.BatchNorm, use_running_average=True),
    "linen layer": linen(bl.LayerNorm),
    "nnx batch": of_nnx(bx.BatchNorm, use_running_average=False),
    "nnx batch, evaluated": of_nnx(bx.BatchNorm, use_running_average=True),
    "nnx layer": of_nnx(bx.LayerNorm),
}


@pytest.mark.parametrize("name", FORMULAS)
@pytest.mark.parametrize("face", FACES)
def test_an_activation_by_name(face, name):
    x, residual, w = (np.random.default_rng(i).normal(size=(4, 5, 6)).astype(np.float32) for i in range(3))
    f = FACES[face]

    @partial(jax.jit, static_argnums=0)
    def gradients(activation, x, residual):
        def loss(x, residual):
            y = f(x, residual=residual, activation=activation)
            return (w * y).sum(), y

        return jax.grad(loss, (0, 1), has_aux=True)(x, residual)

    plain = jax.jit(lambda x, residual: f(x, residual=residual))(x, residual)
    got, y = gradients(name, x, residual)
    np.testing.assert_allclose(y, FORMULAS[name](np.asarray(plain, np.float64)), rtol=0, atol=2e-6)
    for a, b in zip(got, gradients(CALLABLES[name], x, residual)[0], strict=True):
        np.testing.assert_array_equal(a, b)
