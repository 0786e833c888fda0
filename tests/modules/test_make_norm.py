"""Norms by name: other names of the rows, and no norm at all."""

from functools import partial
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

import bnjax
import bnjax.linen as bnn
import bnjax.nnx as bnnx
from bnjax import NORMS
from bnjax._norms.registry import ALIASES, NormAlias
from tests.kit.formulas import ROWS

RNGS = partial(nnx.Rngs, 0)
X = np.random.default_rng(0).normal(size=(4, 2, 2, 6)).astype(np.float32)


def none(api, **arguments):
    """The call of the identity."""
    if api == "nnx":
        return bnnx.make_norm("none", 6, **arguments, rngs=RNGS())
    layer = bnn.make_norm("none", **arguments)()
    assert layer.init(jax.random.key(0), X) == {}
    return partial(layer.apply, {})


def test_every_class_and_function_is_a_name():
    """Of its first row: of three with `batch_norm`, say, "batch"."""
    assert set(ALIASES) == {n.module for n in NORMS.values()} | {n.function.__name__ for n in NORMS.values()}
    assert get_args(NormAlias) == tuple(ALIASES)
    for alias, name in ALIASES.items():
        first = next(n for n, row in NORMS.items() if alias in (row.module, row.function.__name__))
        assert name == first
        layer = bnn.make_norm(alias)
        assert (layer.func, layer.keywords) == (bnn.make_norm(name).func, bnn.make_norm(name).keywords)
    assert ALIASES["BatchNorm"] == ALIASES["batch_norm"] == "batch"
    assert (ALIASES["SplitBatchNorm"], ALIASES["domain_batch_norm"]) == ("split", "domain")
    assert "none" not in NORMS
    made = bnnx.make_norm("group_norm", 6, num_groups=2, rngs=RNGS())
    assert type(made) is bnnx.GroupNorm
    with pytest.raises(ValueError, match="'Batch_Norm'; did you mean"):
        bnn.make_norm("Batch_Norm")


@pytest.mark.parametrize("api", ["linen", "nnx"])
def test_none_takes_what_others_take(api):
    """The arguments of every norm of activations, and every way to call one; the input comes back, of any dtype."""
    for name in ROWS:
        call = {"use_running_average": True} if NORMS[name].takes_running_average else {}
        inputs = ROWS[name].inputs(len(X))
        options = dict(ROWS[name].options) | dict(NORMS[name].arguments)
        assert none(api, **options)(X, **call, **inputs, mask=X[..., :1] > 0) is X
    layer = none(
        api, axis_name="nowhere", momentum=0.5, feature_axes=1, use_scale=False, epsilon=1e-3, dtype=jnp.float16
    )
    for x in (X, jnp.arange(6), jnp.ones((1, 6), jnp.bfloat16)):
        assert layer(x) is x
    assert layer(X, False) is X


def test_none_has_no_variables():
    layer = bnnx.make_norm("none", 6, rngs=RNGS())
    assert not jax.tree.leaves(nnx.state(layer))
    layer.eval()
    layer.train()


@pytest.mark.parametrize("api", ["linen", "nnx"])
def test_what_comes_after_a_norm_stays(api):
    """Or leaving out the norm would leave out the residual connection, and make of a network a linear map."""
    scale, bias = np.float32([1, 2, 3, 4, 5, 6]), np.float32([6, 5, 4, 3, 2, 1])
    np.testing.assert_array_equal(none(api, activation="relu")(X), np.maximum(X, 0))
    np.testing.assert_array_equal(none(api, activation=jnp.sin)(X), jnp.sin(X))
    np.testing.assert_array_equal(none(api)(X, residual=X[::-1]), X + X[::-1])
    want = np.maximum(np.float64(X) * scale + bias + X[::-1], 0)
    got = none(api, activation="relu")(X, scale=scale, bias=bias, residual=X[::-1])
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
    for axis in ({"axis": 1}, {"feature_axes": 1}):
        first = none(api, **axis)(jnp.moveaxis(X, -1, 1), scale=scale)
        np.testing.assert_allclose(jnp.moveaxis(first, 1, -1), X * scale, rtol=1e-6)
    assert none(api)(jnp.asarray(X, jnp.bfloat16), residual=jnp.asarray(X, jnp.bfloat16)).dtype == jnp.bfloat16


def test_none_does_not_take_what_no_norm_takes():
    with pytest.raises(ValueError, match=r"`groups` is no argument of 'none', which takes .*`num_groups`"):
        bnn.make_norm("none", groups=2)
    with pytest.raises(ValueError, match=r"`groups` is no argument of 'none', which takes .*`num_groups`"):
        bnnx.make_norm("none", 6, groups=2, rngs=RNGS())
    with pytest.raises(ValueError, match=r"`name` is 'none'.* call the layer itself"):
        bnnx.make_norm("none", nnx.Linear(2, 3, rngs=RNGS()))
    with pytest.raises(TypeError, match="positional"):
        bnn.make_norm("none")(nn.Dense(3))
    with pytest.raises(TypeError, match="maks"):
        none("nnx")(X, maks=X > 0)
    assert bnjax.NORMS.keys().isdisjoint({"none"})


@pytest.mark.parametrize("name", ["group", "batch", "dyt", "none"])
def test_without_features_and_rngs_nnx_has_a_constructor_too(name):
    """As in linen: one program may be written for both."""
    options = {"num_groups": 2} if name == "group" else {}
    made = bnnx.make_norm(name, **options)(6, rngs=RNGS())
    at_once = bnnx.make_norm(name, 6, rngs=RNGS(), **options)
    assert type(made) is type(at_once)
    x = jnp.arange(24.0).reshape(4, 6)
    np.testing.assert_array_equal(made(x), at_once(x))
