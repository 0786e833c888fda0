"""TENT: only the parameters of norms move, along the gradient of the entropy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from bnjax.linen import norm_params_mask, tent
from tests.kit import models_linen
from tests.kit.models_linen import LINEN


@pytest.mark.parametrize("name", ["frozendict", "own", "carried"])
def test_only_parameters_of_norms_move_and_the_entropy_falls(name):
    case, variables = LINEN[name], models_linen.variables(name)
    before = jax.tree.map(np.array, variables)
    opt_state, step = tent(case.make(), variables, optax.sgd(0.05), call=case.call)
    params, entropies = variables["params"], []
    for _ in range(4):
        logits, params, opt_state = step(params, opt_state, case.example)
        p = np.exp(np.asarray(logits, float))
        p /= p.sum(-1, keepdims=True)
        entropies.append(-(p * np.log(p)).sum(-1).mean())
    assert entropies == sorted(entropies, reverse=True)
    assert entropies[-1] < entropies[0]
    mask = norm_params_mask(variables["params"])
    moved = jax.tree.map(lambda a, b: bool((np.asarray(a) != np.asarray(b)).any()), params, variables["params"])
    for m, selected in zip(jax.tree.leaves(moved), jax.tree.leaves(mask), strict=True):
        assert not m or selected
    assert sum(jax.tree.leaves(moved)) >= 0.7 * sum(jax.tree.leaves(mask))  # a bias may have no gradient
    jax.tree.map(np.testing.assert_array_equal, variables, before)


def test_the_logits_are_those_before_the_update_and_the_gradient_is_right(x64):
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.BatchNorm(use_running_average=True, param_dtype=float, dtype=float)(x)
            return nn.Dense(3, param_dtype=float)(jnp.tanh(x))

    model, x = Net(), np.random.default_rng(0).normal(1, 2, (6, 4))
    variables = models_linen.as_if_trained(model.init(jax.random.key(0), x))
    opt_state, step = tent(model, variables, optax.sgd(1.0))
    logits, params, _ = step(variables["params"], opt_state, x)
    norm, dense = (jax.tree.map(np.asarray, variables["params"][n]) for n in ("BatchNorm_0", "Dense_0"))

    def forward(scale, bias):
        y = (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5) * scale + bias
        return np.tanh(y) @ dense["kernel"] + dense["bias"]

    def entropy(scale, bias):
        z = forward(scale, bias)
        log_p = z - z.max(-1, keepdims=True)
        log_p = log_p - np.log(np.exp(log_p).sum(-1, keepdims=True))
        return -(np.exp(log_p) * log_p).sum(-1).mean()

    np.testing.assert_allclose(logits, forward(norm["scale"], norm["bias"]), rtol=1e-6, atol=1e-6)
    step_of = 1e-5 * np.eye(4)
    for name in ("scale", "bias"):
        sides = [[entropy(**norm | {name: norm[name] + s * e}) for e in step_of] for s in (1, -1)]
        gradient = (np.array(sides[0]) - sides[1]) / 2e-5
        np.testing.assert_allclose(norm[name] - np.asarray(params["BatchNorm_0"][name]), gradient, rtol=1e-5, atol=1e-7)


def test_what_is_wrong_is_said():
    x = np.ones((4, 3), np.float32)
    dense, norm = nn.Dense(2), nn.BatchNorm(use_running_average=True)
    with pytest.raises(ValueError, match=r"`tent` moves the parameters of norms alone.*kernel"):
        tent(dense, dense.init(jax.random.key(0), x), optax.sgd(0.1))
    variables = norm.init(jax.random.key(0), x)
    opt_state, step = tent(norm, variables, optax.sgd(0.1), call=lambda m, b: m(b)[:, :1])
    with pytest.raises(ValueError, match=r"`call` must return logits.*\(4, 1\)"):
        step(variables["params"], opt_state, x)
