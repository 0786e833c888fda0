"""Variants of norms: what batch renormalization averages, and to what weight standardization adds epsilon."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx

import bnjax
import bnjax.linen as bnn
import bnjax.nnx as bnnx
from bnjax import Moments
from tests.kit.comparison import assert_close, differences, wide

X = np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32) * [0.5, 1, 2] + [0.5, 0, 1]
X = X.astype(np.float32)


def renorm_step(x, running, tracks, momentum=0.9, eps=1e-3):
    """The formulas of the paper (of `"std"`), and of the code of CrossQ and of sbx (of `"var"`)."""
    mean, var = running
    s_batch, s = np.sqrt(x.var(0) + eps), np.sqrt(var + eps)
    r, d = np.clip(s_batch / s, 1 / 3, 3), np.clip((x.mean(0) - mean) / s, -5, 5)
    y = (x - x.mean(0)) / s_batch * r + d
    kept = (momentum * s + (1 - momentum) * s_batch) ** 2 - eps if tracks == "std" else None
    kept = momentum * var + (1 - momentum) * x.var(0) if kept is None else kept
    return y, (momentum * mean + (1 - momentum) * x.mean(0), kept)


def renorm_core(x, running, **options):
    y, new = bnjax.batch_renorm(x, Moments(jnp.zeros(()), *running), momentum=0.9, **options)
    return y, (new.mean, new.var)


def renorm_linen(x, running, **options):
    stats = {"mean": running[0], "var": running[1], "step": jnp.zeros(())}
    layer = bnn.BatchRenorm(use_running_average=False, momentum=0.9, **options)
    params = {"scale": jnp.ones(3), "bias": jnp.zeros(3)}
    y, new = layer.apply({"params": params, "batch_stats": stats}, x, mutable="batch_stats")
    return y, (new["batch_stats"]["mean"], new["batch_stats"]["var"])


def renorm_nnx(x, running, **options):
    layer = bnnx.BatchRenorm(3, momentum=0.9, **options, rngs=nnx.Rngs(0))
    layer.mean[...], layer.var[...] = running
    return layer(x), (layer.mean[...], layer.var[...])


@pytest.mark.parametrize("api", [renorm_core, renorm_linen, renorm_nnx])
@pytest.mark.parametrize("tracks", [None, "std", "var"])
def test_what_renorm_averages(api, tracks):
    """Two steps, from a state that is not the batch's."""
    running = np.float32([0.5, -1, 2]), np.float32([2, 0.5, 4])
    options = {} if tracks is None else {"tracks": tracks}
    want = wide(running)
    for x in (X, X[::-1] * 2 + 1):
        y, running = api(jnp.asarray(x), tuple(map(jnp.asarray, running)), **options)
        want_y, want = renorm_step(wide(x), want, tracks or "std")
        assert_close((y, *running), (want_y, *want))


@pytest.mark.parametrize("tracks", ["mean", None, True])
def test_what_renorm_cannot_average(tracks):
    for train in (True, False):
        with pytest.raises(ValueError, match="`tracks` must be one of 'std', 'var'"):
            bnjax.batch_renorm(X, Moments(jnp.zeros(()), jnp.zeros(3), jnp.ones(3)), tracks=tracks, train=train)


@pytest.mark.parametrize("dtype", [None, jnp.int32, jnp.bfloat16])
@pytest.mark.parametrize("api", ["linen", "nnx"])
def test_averaged_states_of_renorm_are_carried_by_a_scan(api, dtype):
    """A target network follows by `optax.incremental_update`, as in reinforcement learning, and trains on.

    A counter of another dtype is carried as it is.
    """
    limits = {"r_max": optax.linear_schedule(1.0, 3.0, 10)}
    if api == "linen":
        layer = bnn.BatchRenorm(use_running_average=False, **limits)
        variables = layer.init(jax.random.key(0), X)
        state = variables["batch_stats"]

        def step(state):
            return layer.apply(variables | {"batch_stats": state}, X, mutable="batch_stats")[1]["batch_stats"]
    else:
        graph, params, state = nnx.split(bnnx.BatchRenorm(3, **limits, rngs=nnx.Rngs(0)), nnx.Param, nnx.BatchStat)

        def step(state):
            layer = nnx.merge(graph, params, state)
            layer(X)
            return nnx.state(layer, nnx.BatchStat)

    if dtype is not None:  # of an older checkpoint, say; it is only carried
        state = jax.tree_util.tree_map_with_path(lambda p, t: t.astype(dtype) if "step" in str(p) else t, state)

    def body(carry, _):
        online, target = carry
        online = step(online)
        target = optax.incremental_update(online, target, 0.5) if dtype is None else step(target)
        return (online, step(target)), None

    (online, target), _ = jax.lax.scan(body, (state, state), None, length=2)
    types = lambda tree: [(t.shape, t.dtype) for t in jax.tree.leaves(tree)]  # noqa: E731
    assert types(online) == types(target) == types(state)
    assert float(online["step"] if api == "linen" else online["step"][...]) == 2


# Weights

RNG = np.random.default_rng(1)
W, SCALE, G = (RNG.normal(size=shape).astype(np.float32) for shape in ((5, 3), (3,), (5, 3)))
W *= np.float32([1, 1e-5, 1e-2])  # a deviation that is far above epsilon, equal to it, and between


def by_deviation(w, scale, eps=1e-5):
    """BiT's `StdConv`."""
    return (w - w.mean(0)) / (w.std(0) + eps) * scale


@pytest.mark.parametrize("options", [{}, {"epsilon": 1e-3}], ids=str)
def test_epsilon_may_be_added_to_the_deviation(options):
    """As a function with its gradients, and around a layer in both APIs."""
    eps = options.get("epsilon", 1e-5)
    more = {"epsilon_to": "deviation"} | options
    want = by_deviation(*wide((W, SCALE)), eps)

    def loss(w, scale):
        return (bnjax.weight_standardize(w, scale, **more) * G).sum()

    assert_close(bnjax.weight_standardize(W, SCALE, **more), want)
    slopes = differences(lambda w, s: (by_deviation(w, s, eps) * G).sum(), wide((W, SCALE)), h=1e-9)
    for got, slope in zip(jax.grad(loss, (0, 1))(W, SCALE), slopes, strict=True):
        assert_close(got, slope, 1e-5)  # differences with a step of 1e-9 are good to 1e-6
    x = np.ones((1, 5), np.float32) * np.arange(5, dtype=np.float32)
    layer = bnn.WeightStandardization(nn.Dense(3, name="layer"), use_scale=True, **more)
    params = layer.init(jax.random.key(0), x)["params"]
    given = {"layer": {"kernel": W, "bias": np.zeros(3, np.float32)}}
    params = {k: given["layer"] if isinstance(v, dict) else SCALE for k, v in params.items()}
    assert_close(layer.apply({"params": params}, x), x @ want)
    dense = nnx.Linear(5, 3, rngs=nnx.Rngs(0))
    dense.kernel[...] = jnp.asarray(W)
    layer = bnnx.make_norm("ws", dense, use_scale=True, **more, rngs=nnx.Rngs(0))
    layer.scales["kernel",][...] = jnp.asarray(SCALE)
    assert_close(layer(x), x @ want)


def test_equal_weights_have_a_finite_gradient():
    """The standard deviation has no derivative at zero, but what is divided by it is zero there."""
    w = jnp.ones((5, 3))
    y, back = jax.vjp(lambda w: bnjax.weight_standardize(w, epsilon_to="deviation"), w)
    np.testing.assert_array_equal(y, 0)
    assert_close(back(jnp.asarray(G))[0], (G - wide(G).mean(0)) / 1e-5)


def test_epsilon_is_added_to_nothing_else():
    for wrapped in (bnn.WeightStandardization(nn.Dense(3), epsilon_to="std"),):
        with pytest.raises(ValueError, match="`epsilon_to` must be one of 'variance', 'deviation', but it is 'std'"):
            wrapped.init(jax.random.key(0), X)
    with pytest.raises(ValueError, match="`epsilon_to` must be one of 'variance', 'deviation', but it is None"):
        bnjax.weight_standardize(W, epsilon_to=None)
