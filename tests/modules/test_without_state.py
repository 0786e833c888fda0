"""BatchNorm with `track_running_stats=False`: always by the batch, and nothing is kept."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import bnjax.linen
import bnjax.nnx
from tests.kit import references

X = np.random.default_rng(0).normal(3, 2, (8, 4, 3)).astype(np.float32)
MASK = np.random.default_rng(1).random((8, 4, 1)) < 0.6
ONE, ZERO = np.ones(3), np.zeros(3)


def by_linen(x, mask=None, evaluate=False, **attributes):
    """The output at evaluation is that of a call without a word; of a module that is told to train otherwise."""
    layer = bnjax.linen.BatchNorm(**attributes)
    call = {} if evaluate else {"use_running_average": False}
    y, new = layer.apply(layer.init(jax.random.key(0), x, **call), x, mask=mask, mutable=True, **call)
    assert new.keys() == {"params"}
    return y


def by_nnx(x, mask=None, evaluate=False, **attributes):
    layer = bnjax.nnx.BatchNorm(3, **attributes, rngs=nnx.Rngs(0))
    (layer.eval if evaluate else layer.train)()
    layer = nnx.view(layer, use_running_average=evaluate)
    y, sown = nnx.capture(layer, bnjax.nnx.BatchMoments)(x, mask=mask)
    assert not jax.tree.leaves(sown)
    assert not jax.tree.leaves(nnx.state(layer, nnx.BatchStat))
    return y


APIS = {
    "linen": partial(by_linen, track_running_stats=False),
    "nnx": partial(by_nnx, track_running_stats=False),
}


@pytest.mark.parametrize("evaluate", [False, True], ids=["train", "evaluate"])
@pytest.mark.parametrize("api", APIS)
def test_the_output_is_that_of_the_batch(api, evaluate):
    run = partial(APIS[api], evaluate=evaluate)
    for mask in (None, MASK):
        want = references.batch_norm(X, X, ONE, ZERO, where=mask).y
        np.testing.assert_allclose(jax.jit(run)(X, mask), want, atol=3e-6)
    slices = jax.jit(partial(run, virtual_batch_size=4))(X)
    want = np.concatenate([references.batch_norm(x, x, ONE, ZERO).y for x in (X[:4], X[4:])])
    np.testing.assert_allclose(slices, want, atol=3e-6)
    y = run(X.astype(jnp.bfloat16), dtype=jnp.bfloat16)
    want = references.batch_norm(np.asarray(X.astype(jnp.bfloat16), np.float64), X, ONE, ZERO).y
    assert y.dtype == jnp.bfloat16
    np.testing.assert_allclose(y.astype(np.float32), want, rtol=2**-8, atol=1e-3)  # half a unit of the output's


@pytest.mark.parametrize("api", APIS)
def test_it_is_measured_over_a_mapped_axis(api):
    y = jax.vmap(partial(APIS[api], axis_name="i"), axis_name="i")(X.reshape(2, 4, 4, 3), MASK.reshape(2, 4, 4, 1))
    np.testing.assert_allclose(y.reshape(X.shape), references.batch_norm(X, X, ONE, ZERO, where=MASK).y, atol=3e-6)


@pytest.mark.parametrize("api", APIS)
@pytest.mark.parametrize("options", [{}, {"pivot": "sample"}, {"use_fast_variance": False}], ids=str)
def test_it_is_right_far_from_zero_where_there_is_no_running_mean(api, options):
    """About zero the variance would be lost: 1e4**2 * 6e-8 = 6 beside 1. What is left, 1e-3, is the mean's rounding."""
    x = np.random.default_rng(2).normal(1e4, 1, (64, 3)).astype(np.float32)
    np.testing.assert_allclose(APIS[api](x, **options), references.batch_norm(x, x, ONE, ZERO).y, atol=1e-3)


def test_a_model_without_state_has_nothing_to_update():
    model = bnjax.linen.BatchNorm(track_running_stats=False)
    variables = model.init(jax.random.key(0), X)
    assert variables.keys() == {"params"}
    _, handed_out = model.apply(variables, X, mutable="batch_moments")
    assert bnjax.update_batch_stats({}, handed_out) == {}


@pytest.mark.parametrize(
    ("attributes", "name"),
    [
        ({"use_running_average": True}, "`use_running_average=True`"),
        ({"momentum": None}, "`momentum=None`"),
        ({"unbiased": True}, "`unbiased=True`"),
    ],
)
def test_what_is_about_the_state_is_refused(attributes, name):
    words = f"{name} is about the running state, which `track_running_stats=False` does not keep"
    with pytest.raises(ValueError, match=words):
        bnjax.linen.BatchNorm(track_running_stats=False, **attributes)
    with pytest.raises(ValueError, match=words):
        bnjax.nnx.BatchNorm(3, track_running_stats=False, **attributes, rngs=nnx.Rngs(0))


def test_a_call_that_asks_for_the_state_is_refused():
    words = "`use_running_average=True` is about the running state"
    with pytest.raises(ValueError, match=words):
        bnjax.linen.BatchNorm(track_running_stats=False).init(jax.random.key(0), X, use_running_average=True)
    with pytest.raises(ValueError, match=words):
        bnjax.nnx.BatchNorm(3, track_running_stats=False, rngs=nnx.Rngs(0))(X, use_running_average=True)
    with pytest.raises(ValueError, match="`track_running_stats` must be True or False"):
        bnjax.linen.BatchNorm(track_running_stats="no")


@pytest.mark.parametrize("api", APIS)
def test_one_value_a_feature_is_refused(api):
    """As PyTorch does: at evaluation, too, the output would be the bias whatever the example is."""
    if api == "linen":
        module = bnjax.linen.BatchNorm(track_running_stats=False, use_scale=False, use_bias=False).bind({})
    else:
        module = bnjax.nnx.BatchNorm(3, track_running_stats=False, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="`x` has one value per feature"):
        module(X[:1, 0])


def test_gradients_are_those_of_training():
    def loss(layer, **call):
        return lambda x: (layer.apply(layer.init(jax.random.key(0), x, **call), x, mutable=True, **call)[0] ** 3).sum()

    kept, free = bnjax.linen.BatchNorm(False, pivot="sample"), bnjax.linen.BatchNorm(track_running_stats=False)
    np.testing.assert_array_equal(jax.grad(loss(kept))(X), jax.grad(loss(free))(X))
