"""Masks: what is valid counts, what is not goes through the same map and poisons nothing."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from bnjax import Moments, batch_norm, normalize
from bnjax import linen as bl
from bnjax import nnx as bx
from tests.kit import references, samples, steps
from tests.kit.comparison import assert_each_close

SHAPE = (6, 5, 4)
NOBODY = np.where(np.arange(4) == 2, 0, np.random.default_rng(1).random(SHAPE) < 0.6).astype(bool)
MASKS = {
    "examples": np.array([1, 1, 0, 1, 0, 1])[:, None, None],
    "positions": np.random.default_rng(2).random((6, 5, 1)) < 0.6,
    "one axis short": np.random.default_rng(3).random((5, 1)) < 0.6,
    "elements": np.random.default_rng(4).random(SHAPE) < 0.6,
    "features": np.array([1.0, 0.0, 2.0, 1.0], np.float32),
    "a feature with nothing valid": NOBODY,
    "nothing": np.zeros((1, 1, 1), bool),
    "everything": np.ones((), bool),
}


sample = partial(samples.sample, SHAPE, mean=1.0)


def running(dtype=np.float32):
    mean, var = np.array([0.5, 1, 1.5, 2]), np.array([1, 2, 3, 4])
    return samples.running(4, dtype, count=np.full(4, 7), mean=mean, var=var)


train = jax.jit(steps.train, static_argnames=("pivot", "activation", "momentum", "unbiased", "virtual_batch_size"))


def assert_close(got, want, dtype=np.float32):
    assert_each_close(got, want, *((1e-5, 3e-6) if dtype is np.float32 else (1e-12, 1e-13)))


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("options", [{}, {"pivot": None}, {"pivot": "sample", "activation": "relu"}], ids=str)
def test_output_gradients_and_state_under_a_mask(mask, options, precision):
    arrays, state, where = sample(dtype=precision), running(precision), MASKS[mask]
    want = references.batch_norm(*arrays, where=where, relu="activation" in options)
    got, new = train(*arrays, state, where, momentum=0.9, **options)
    assert_close(got, want[:4], precision)
    seen = want.batch.count > 0
    keep, take = np.where(seen, 0.9, 1), np.where(seen, 1 - 0.9, 0)
    assert_close(
        (new.mean, new.var),
        (keep * state.mean + take * want.batch.mean, keep * state.var + take * want.batch.var),
        precision,
    )
    for old, after in ((state.mean, new.mean), (state.var, new.var)):
        np.testing.assert_array_equal(after[~seen], old[~seen])


def test_masks_of_any_kind_and_rank_are_the_same_mask():
    arrays, state = sample(), running()
    where = MASKS["positions"]
    want = jax.tree.leaves(train(*arrays, state, where))
    kinds = (
        where.astype(np.int8),
        where * 0.5,
        where * 3,
        jnp.asarray(where),
        where.tolist(),
        np.broadcast_to(where, SHAPE),
    )
    for kind in kinds:
        if isinstance(kind, list):
            kind = np.asarray(kind)
        for got, expected in zip(jax.tree.leaves(train(*arrays, state, kind)), want, strict=True):
            np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-6)


def test_a_mask_of_ones_changes_nothing():
    arrays, state = sample(), running()
    for got, want in zip(*(jax.tree.leaves(train(*arrays, state, w)) for w in (np.ones(SHAPE), None)), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-6)


def test_what_is_masked_out_gets_the_same_affine_map():
    x, g, scale, bias = sample()
    where = MASKS["positions"]
    (y, *_), new = train(x, g, scale, bias, running(), where, momentum=0.0)
    np.testing.assert_allclose(y, normalize(x, new, scale, bias), rtol=1e-5, atol=1e-6)
    x2 = np.where(where, x, x + 10)
    y2 = train(x2, g, scale, bias, running(), where)[0][0]
    np.testing.assert_allclose(y2 - y, np.where(where, 0, 10 * scale / np.sqrt(new.var + 1e-5)), rtol=1e-4, atol=1e-5)


# Not finite


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
    "options",
    [{}, {"pivot": None}, {"pivot": "sample"}, {"activation": "relu"}, {"virtual_batch_size": 3}, {"momentum": None}],
    ids=str,
)
def test_what_is_not_finite_and_masked_out_stays_where_it_is(bad, options):
    """In Flax it poisons the whole batch, the running state and every gradient."""
    x, g, scale, bias = sample()
    where = MASKS["elements"]
    g = np.where(where, g, 0)
    hit = ~where & (np.arange(5)[:, None] % 2 == 0)
    poisoned = np.where(hit, bad, x)
    want, want_state = train(x, g, scale, bias, running(), where, **options)
    got, state = train(poisoned, g, scale, bias, running(), where, **options)
    jax.tree.map(np.testing.assert_array_equal, state, want_state)
    np.testing.assert_array_equal(np.where(hit, 0, got[0]), np.where(hit, 0, want[0]))
    if "activation" not in options or not bad < 0:
        assert not np.isfinite(got[0][hit]).any()
    for after, before in zip(got[1:], want[1:], strict=True):
        np.testing.assert_allclose(after, before, rtol=1e-6, atol=1e-6)


def test_not_finite_in_a_feature_with_nothing_valid():
    x, g, scale, bias = sample()
    x[0, 0, 2] = np.nan
    g[0, 0, 2] = 0
    got, new = train(x, g, scale, bias, running(), NOBODY)
    assert np.isnan(got[0]).sum() == 1
    assert all(np.isfinite(t).all() for t in (*got[1:], *jax.tree.leaves(new)))


def test_a_non_finite_residual_stays_where_it_is():
    x, g, scale, bias = sample()
    residual = np.zeros(SHAPE, np.float32)
    residual[1, 2, 3] = np.nan
    g[1, 2, 3] = 0
    want, want_state = train(x, g, scale, bias, running(), None, residual=np.zeros_like(residual), activation="relu")
    got, state = train(x, g, scale, bias, running(), None, residual=residual, activation="relu")
    assert np.isnan(got[0]).sum() == 1
    for after, before in zip(
        (*got[1:], *jax.tree.leaves(state)), (*want[1:], *jax.tree.leaves(want_state)), strict=True
    ):
        np.testing.assert_allclose(after, before, rtol=1e-6, atol=1e-6)


# Nothing valid


@pytest.mark.parametrize("momentum", [0.9, 0.0, None])
@pytest.mark.parametrize("pivot", ["running", "sample", None])
@pytest.mark.parametrize("size", [None, 3])
def test_a_feature_with_nothing_valid_is_its_bias(momentum, pivot, size):
    """Flax returns NaN gradients."""
    x, g, scale, bias = sample()
    got, new = train(
        x, g, scale, bias, running(), NOBODY, momentum=momentum, pivot=pivot, virtual_batch_size=size, unbiased=False
    )
    np.testing.assert_allclose(got[0][..., 2], np.broadcast_to(bias[2], (6, 5)))
    np.testing.assert_array_equal(got[1][..., 2], 0)
    assert all(np.isfinite(t).all() for t in (*got, *jax.tree.leaves(new)))
    for old, after in zip(jax.tree.leaves(running()), jax.tree.leaves(new), strict=True):
        assert after[2] == old[2]
    assert (new.mean[np.array([0, 1, 3])] != running().mean[np.array([0, 1, 3])]).all()


@pytest.mark.parametrize("api", ["linen", "nnx"])
@pytest.mark.parametrize("mask", [[[0, 1]], [[0, 0]], [[True, True]], None], ids=str)
def test_one_value_of_a_feature_is_its_bias_valid_or_not(api, mask):
    """Flax's linen modules take such a batch while they initialise, its nnx modules always."""
    x, mask = np.full((1, 2), 5, np.float32), None if mask is None else np.asarray(mask)
    poisoned = x if mask is None else np.where(mask, x, np.nan)
    state = {"mean": np.float32([1, 2]), "var": np.float32([3, 4])}
    params = {"scale": np.float32([3, 2]), "bias": np.float32([0.5, 0.25])}

    def loss(params, x):
        if api == "linen":
            inits = {f"{name}_init": lambda *_, name=name: params[name] for name in params}
            layer = bl.BatchNorm(use_running_average=False, axis_name="not bound yet", **inits)
            y, _ = layer.init_with_output(jax.random.key(0), x, mask=mask)
        else:
            layer = bx.BatchNorm(2, rngs=nnx.Rngs(0))
            nnx.update(layer, jax.tree.map(jnp.asarray, params | state))
            y = layer(x, mask=mask)
        return jnp.where(jnp.isnan(x), 0, y * jnp.asarray([[1.0, 2.0]])).sum(), y

    (_, y), grads = jax.value_and_grad(loss, (0, 1), has_aux=True)(params, x)
    np.testing.assert_allclose(y[0], params["bias"], rtol=1e-6)
    grads = [*jax.tree.leaves(grads), *jax.tree.leaves(jax.grad(loss, (0, 1), has_aux=True)(params, poisoned)[0])]
    assert all(np.isfinite(t).all() for t in grads)
    assert not grads[2].any()


def test_initialising_takes_masked_places_through_the_same_map():
    """A feature with one valid value among several: that place gives the bias, the others what is beside it."""
    x, mask = np.float32([[5], [6], [7]]), np.array([[0], [1], [0]])
    y, _ = bl.BatchNorm(use_running_average=False).init_with_output(jax.random.key(0), x, mask=mask)
    np.testing.assert_allclose(y, (x - 6) / np.sqrt(1e-5), rtol=1e-6)


def test_its_second_derivatives_are_finite_too():
    x, _, scale, bias = map(jnp.asarray, sample())

    def slope(x, scale):
        loss = lambda x, scale: (batch_norm(x, running(), scale, bias, where=NOBODY)[0] ** 3).sum()  # noqa: E731
        return sum(jnp.sin(t).sum() for t in jax.grad(loss, (0, 1))(x, scale))

    assert all(np.isfinite(t).all() for t in jax.jit(jax.grad(slope, (0, 1)))(x, scale))


# Counting


def test_the_pool_of_masked_batches_is_that_of_all_valid_elements(precision):
    """`momentum=None` weighs by count: PyTorch averages the batches equally."""
    rng = np.random.default_rng(5)
    xs = (rng.normal(size=(5, *SHAPE)) * rng.uniform(0.5, 3, (5, 1, 1, 1))).astype(precision)
    masks = rng.random((5, *SHAPE)) < rng.uniform(0.1, 1, (5, 1, 1, 1))
    masks[3] = False
    state = Moments(jnp.zeros(4, precision), jnp.zeros(4, precision), jnp.ones(4, precision))
    g, scale, bias = sample(dtype=precision)[1:]
    for x, where in zip(xs, masks, strict=True):
        state = train(x, g, scale, bias, state, where, momentum=None)[1]
    assert_close(jax.tree.leaves(state), references.moments(xs, (0, 1, 2), masks), precision)


def test_unbiased_counts_the_valid_elements():
    arrays, where = sample(), MASKS["elements"].copy()
    where[..., 1] = False
    where[0, 0, 1] = True  # one valid element: n / max(n - 1, 1) is 1
    new = train(*arrays, running(), where, momentum=0.0, unbiased=True)[1]
    n, _, var = references.moments(arrays[0], (0, 1), where)
    np.testing.assert_allclose(new.var, var * n / np.maximum(n - 1, 1), rtol=1e-5, atol=1e-6)


def test_ghost_batches_weigh_their_slices_by_count(precision):
    arrays, where = sample(dtype=precision), MASKS["elements"].copy()
    where[:2] = False  # the first slice is empty
    got, new = train(*arrays, running(precision), where, momentum=0.0, virtual_batch_size=2)
    x, g, scale, bias = arrays
    parts = [references.batch_norm(x[i : i + 2], g[i : i + 2], scale, bias, where=where[i : i + 2]) for i in (0, 2, 4)]
    want = (
        np.concatenate([p.y for p in parts]), np.concatenate([p.dx for p in parts]),
        sum(p.dscale for p in parts), sum(p.dbias for p in parts),
    )  # fmt: skip
    assert_close(got, want[:4], precision)
    assert_close((new.mean, new.var), references.moments(x, (0, 1), where)[1:], precision)


@pytest.mark.parametrize(("momentum", "unbiased"), [(0.0, False), (0.0, True), (None, False)])
@pytest.mark.parametrize("devices", [False, True])
def test_a_mask_that_does_not_vary_counts_in_each_ghost_batch(momentum, unbiased, devices):
    x, state = sample()[0], Moments(*(jnp.full(4, v) for v in (0.0, 0.5, 1.0)))  # a state that has seen nothing
    masks = [np.ones((1, 1, 1)), np.ones(()), np.arange(4) > 0, np.ones((1, 1)), (np.arange(5) > 1)[None, :, None]]
    options = {"momentum": momentum, "unbiased": unbiased, "virtual_batch_size": 3 if devices else 2}

    @jax.jit
    def f(masks):
        if not devices:
            return [batch_norm(x, state, where=n, **options)[1] for n in masks]
        call = lambda x: [batch_norm(x, state, where=n, axis_name="d", **options)[1] for n in masks]  # noqa: E731
        both = jax.vmap(call, axis_name="d")(np.stack([x, x + 1]))
        return jax.tree.map(lambda t: t[0], both)

    data = np.concatenate([x, x + 1]) if devices else x
    for n, new in zip(masks, f(masks), strict=True):
        count, mean, var = references.moments(data, (0, 1), np.broadcast_to(n, data.shape))
        seen = count > 0
        want = var * count / np.maximum(count - 1, 1) if unbiased else var
        assert_close((new.mean, new.var), (np.where(seen, mean, 0.5), np.where(seen, want, 1.0)))
        if momentum is None:
            np.testing.assert_array_equal(new.count, count)


def test_a_traced_mask_and_its_gradient():
    x, g, scale, bias = sample()
    weight = MASKS["positions"].astype(np.float32)

    def loss(w):
        return (batch_norm(x, running(), scale, bias, where=w)[0] * g).sum()

    np.testing.assert_array_equal(jax.grad(loss)(weight), 0)
    np.testing.assert_allclose(jax.jit(loss)(weight), loss(weight), rtol=1e-5)


@pytest.mark.parametrize("loss", ["weighted", "masked square", "unmasked square"])
@pytest.mark.parametrize("activation", [None, "relu"])
def test_what_is_not_finite_and_masked_out_reaches_no_other_gradient(loss, activation):
    x, g, scale, bias = sample()
    where = MASKS["elements"]
    hit = ~where & (np.arange(5)[:, None] % 2 == 0)
    losses = {
        "weighted": lambda y: (y * g)[~hit].sum() + jnp.where(hit, 3 * y, 0).sum(),
        "masked square": lambda y: jnp.where(where, y**2, 0).sum(),
        "unmasked square": lambda y: (y**2).sum(),
    }

    def grads(x, loss):
        f = lambda x, s, b: loss(batch_norm(x, running(), s, b, where=where, activation=activation)[0])  # noqa: E731
        return jax.jit(jax.grad(f, (0, 1, 2)))(x, scale, bias)

    got = grads(np.where(hit, np.nan, x), losses[loss])
    want = grads(x, lambda y: losses[loss](jnp.where(hit, jax.lax.stop_gradient(y), y)))
    for after, before in zip(got, want, strict=True):
        np.testing.assert_allclose(after, before, rtol=1e-5, atol=1e-5)
