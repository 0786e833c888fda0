"""Modules that do not fit: what they say, and that they say it when they are made or first called."""

import inspect
from functools import partial

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
from tests.kit.comparison import assert_says
from tests.kit.formulas import ROWS

RNGS = partial(nnx.Rngs, 0)
X = np.random.default_rng(0).normal(size=(4, 2, 2, 6)).astype(np.float32)
STATEFUL = [name for name in ROWS if NORMS[name].takes_running_average]
SYNCED = [name for name in ROWS if "axis_name" in inspect.signature(NORMS[name].function).parameters]


def training(name, train=True):
    return {"use_running_average": not train} if NORMS[name].takes_running_average else {}


# Names


@pytest.mark.parametrize("name", SYNCED)
def test_every_norm_says_where_an_axis_name_is_bound(name):
    options = dict(ROWS[name].options) | {"axis_name": "nowhere"}
    linen = bnn.make_norm(name, **options)()
    model = bnnx.make_norm(name, 6, **options, rngs=RNGS())
    variables = linen.clone(axis_name=None).init(jax.random.key(0), X, **training(name))
    said = r"`axis_name` is 'nowhere', but no axis 'nowhere' is bound here.*`jit` needs none"
    with pytest.raises(ValueError, match=said):
        jax.eval_shape(lambda: linen.apply(variables, X, **training(name), mutable="batch_stats"))
    with pytest.raises(ValueError, match=said):
        model(X, **training(name))


def test_recurrent_cells_say_where_an_axis_name_is_bound():
    cell = bnnx.BatchNormLSTMCell(6, 3, max_steps=2, axis_name="nowhere", rngs=RNGS())
    with pytest.raises(ValueError, match="no axis 'nowhere' is bound here"):
        cell(cell.initialize_carry((4, 6)), X[:, 0, 0])


# Numbers of features


@pytest.mark.parametrize("name", ROWS)
def test_num_features_that_does_not_fit_says_so(name):
    model = bnnx.make_norm(name, 6, **ROWS[name].options, rngs=RNGS())
    call = training(name)
    for width in (12, 4):
        with pytest.raises(ValueError, match=rf"`num_features` of {NORMS[name].module} does not fit.* 6.* {width}\b"):
            model(jnp.ones((4, 2, 2, width)), **call)


def test_num_features_may_be_a_part_of_all_on_a_device():
    """Features spread over devices: the variables are shards, and fit those of the input."""
    for layer in (bnnx.LayerNorm(4, rngs=RNGS()), bnnx.BatchNorm(4, rngs=RNGS()), bnnx.EvoNormB0(4, rngs=RNGS())):
        graph, state = nnx.split(layer)
        spread = jax.tree.map(lambda t: t.reshape(2, 2), state)
        x = jnp.stack([X[..., :2], X[..., 2:4]])
        y = jax.vmap(lambda state, x, graph=graph: nnx.merge(graph, state)(x))(spread, x)
        assert y.shape == x.shape


def test_without_parameters_any_number_of_features_is_flax_s():
    for kind in (nnx.LayerNorm, bnnx.LayerNorm):
        assert kind(3, use_scale=False, use_bias=False, rngs=RNGS())(X).shape == X.shape


# States of another width


class Encoder(nn.Module):
    """A norm that is not at the top."""

    norm: nn.Module

    @nn.compact
    def __call__(self, x, **call):
        return self.norm.clone(name="inner", parent=self)(x, **call)


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("name", STATEFUL)
def test_a_state_of_another_width_is_named_with_its_module(name, train):
    norm = bnn.make_norm(name, **ROWS[name].options)
    for model, path, where in ((Encoder(norm()), ("inner",), "inner"), (norm(), (), "at the top")):
        variables = model.init(jax.random.key(0), X, **training(name))
        wide = jax.tree.map(lambda t: jnp.concatenate([t, t], -1) if t.ndim else t, variables["batch_stats"])
        leaf = wide[path[0]]["mean"] if path else wide["mean"]
        with pytest.raises(
            ValueError, match=rf"`batch_stats/mean` of the module {where} must have the shape"
        ) as raised:
            model.apply({**variables, "batch_stats": wide}, X, **training(name, train), mutable="batch_stats")
        assert f"its shape is {leaf.shape}" in str(raised.value)


def test_a_variance_of_another_width():
    layer = bnn.BatchNorm(use_running_average=True)
    variables = layer.init(jax.random.key(0), X)
    variables["batch_stats"]["var"] = jnp.ones(1)
    with pytest.raises(ValueError, match=r"`batch_stats/var` of the module at the top must have the shape \(6,\)"):
        layer.apply(variables, X)


def test_a_vector_of_spectral_norm_of_another_width():
    layer = bnn.SpectralNorm(nn.Dense(3))
    variables = layer.init(jax.random.key(0), X, update_stats=False)
    variables["batch_stats"]["layer_instance/kernel/u"] = jnp.ones((1, 5))
    with pytest.raises(ValueError, match=r"`batch_stats/layer_instance/kernel/u` of the module at the top.*\(1, 3\)"):
        layer.apply(variables, X, update_stats=False)


# What has no meaning, when a module is made

MEANINGLESS = {
    "virtual_batch_size of zero": ("batch", {"virtual_batch_size": 0}, ["`virtual_batch_size`", "positive", "0"]),
    "virtual_batch_size below zero": ("batch", {"virtual_batch_size": -2}, ["`virtual_batch_size`", "-2"]),
    "virtual_batch_size a float": ("batch", {"virtual_batch_size": 4.0}, ["`virtual_batch_size`", "integer", "4.0"]),
    "virtual_batch_size a boolean": ("batch", {"virtual_batch_size": True}, ["`virtual_batch_size`", "True"]),
    "pivot of another name": ("batch", {"pivot": "batch"}, ["`pivot`", "'running'", "'sample'", "None", "'batch'"]),
    "both numbers of groups": ("group", {"num_groups": 2, "group_size": 2}, ["`num_groups=None`", "2"]),
    "both, which agree": ("group", {"num_groups": 2, "group_size": 3}, ["`num_groups=None`", "`group_size` is 3"]),
    "group_size, and the default": ("group", {"group_size": 3}, ["`num_groups=None`", "`num_groups` is 32"]),
    "no number of groups": ("group", {"num_groups": None}, ["`num_groups` is None", "`group_size` is None"]),
} | {
    f"use_running_average a string: {name}": (name, {"use_running_average": "train"}, ["`use_running_average`"])
    for name in STATEFUL
}  # fmt: skip


@pytest.mark.parametrize("case", MEANINGLESS)
def test_a_module_says_so_when_it_is_made(case):
    name, options, words = MEANINGLESS[case]
    options = dict(ROWS[name].options if name != "group" else {}) | options
    assert_says(lambda: bnn.make_norm(name, **options)(), words)
    assert_says(lambda: bnnx.make_norm(name, 6, **options, rngs=RNGS()), words)


@pytest.mark.parametrize("case", [case for case in MEANINGLESS if "running" not in case])
def test_a_function_says_so_too(case):
    name, options, words = MEANINGLESS[case]
    running = () if name == "group" else (bnjax.Moments.empty((6,)),)
    assert_says(lambda: NORMS[name].function(X, *running, **options), words)


@pytest.mark.parametrize("name", STATEFUL)
def test_a_call_says_so_too(name):
    for model in (
        bnn.make_norm(name, **ROWS[name].options)(),
        bnnx.make_norm(name, 6, **ROWS[name].options, rngs=RNGS()),
    ):
        call = partial(model.init, jax.random.key(0)) if isinstance(model, nn.Module) else model
        assert_says(lambda call=call: call(X, use_running_average="train"), ["`use_running_average`", "'train'"])


def test_cells_say_so_too():
    assert_says(lambda: bnn.BatchNormLSTMCell(3, use_running_average="no"), ["`use_running_average`", "'no'"])
    assert_says(
        lambda: bnnx.BatchNormLSTMCell(6, 3, max_steps=2, use_running_average="no", rngs=RNGS()),
        ["`use_running_average`"],
    )


@pytest.mark.parametrize("value", [True, False, None, np.bool_(True), jnp.array(False), 0, 1], ids=repr)
def test_what_is_a_boolean_is_taken(value):
    assert bnn.BatchNorm(use_running_average=value).clone(epsilon=1.0).use_running_average is value
    assert bnnx.BatchNorm(6, use_running_average=value, rngs=RNGS()).use_running_average is value


def test_groups_by_size_as_flax():
    """`nnx.GroupNorm` keeps both numbers, and knows the one from the other."""
    ours, flax = (m.GroupNorm(6, num_groups=None, group_size=3, rngs=RNGS()) for m in (bnnx, nnx))
    assert (ours.num_groups, ours.group_size) == (flax.num_groups, flax.group_size) == (2, 3)
    np.testing.assert_allclose(ours(X), flax(X), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("size", "examples"), [(4, 1), (4, 3), (2, 4), (4, 4), (8, 2)])
def test_linen_initialises_by_a_batch_of_slices_or_less(size, examples):
    layer = bnn.BatchNorm(use_running_average=False, virtual_batch_size=size)
    assert layer.init(jax.random.key(0), X[:examples])["batch_stats"]["mean"].shape == (6,)


@pytest.mark.parametrize(("size", "examples"), [(2, 3), (3, 4)])
def test_linen_does_not_initialise_by_a_batch_that_slices_do_not_divide(size, examples):
    layer = bnn.BatchNorm(use_running_average=False, virtual_batch_size=size)
    with pytest.raises(ValueError, match=f"`virtual_batch_size` .* divides the batch, but it is {size} .* {examples}"):
        layer.init(jax.random.key(0), X[:examples])
