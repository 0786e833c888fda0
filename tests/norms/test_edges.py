"""All norms on inputs at the edge: a batch of one example, and nothing at all."""

import inspect
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import bnjax.linen
import bnjax.nnx
from bnjax import NORMS, Moments, Whitening
from tests.kit.comparison import assert_close, wide
from tests.kit.formulas import ROWS
from tests.kit.norms import CHANNELS_TOGETHER, formula, inputs, modes, variables_of, when

each = pytest.mark.parametrize("name", ROWS)


def options(name, examples):
    return dict(ROWS[name].options) | ({"virtual_batch_size": 1} if name == "ghost" and examples == 1 else {})


def both(name, x, train=True):
    """Output and new state by linen, the same by nnx, and the variables, none at its start."""
    more, call = inputs(name, x), when(name, train)
    linen = bnjax.linen.make_norm(name, **options(name, len(x)))()
    variables = variables_of(linen, np.random.default_rng(1), x, **call)
    y, new = jax.jit(lambda v, x: linen.apply(v, x, **call, **more, mutable="batch_stats"))(variables, x)
    model = bnjax.nnx.make_norm(name, x.shape[-1], **options(name, len(x)), rngs=nnx.Rngs(0))
    nnx.update(model, jax.tree.map(jnp.asarray, {k: v for part in variables.values() for k, v in part.items()}))
    again = nnx.jit(lambda model, x: model(x, **call, **more))(model, x)
    state = nnx.to_pure_dict(nnx.state(model, nnx.BatchStat))
    return (y, new.get("batch_stats", {})), (again, state), variables


def after(name, x, variables, train):
    """Output and state, by the formula."""
    x, variables = wide((x, variables))
    y, new = formula(name, x, variables, train=train, **options(name, len(x)))
    kept = variables["batch_stats"]
    return y, {k: 0.9 * kept[k] + 0.1 * np.asarray(new[k]) for k in kept if k in new}


@each
def test_one_example(name):
    """Is a batch, where a feature has more than one value."""
    x = np.random.default_rng(0).normal(size=(1, 3, 2, 6)).astype(np.float32)
    for train in (True, False)[: len(modes(name))]:
        linen, model, variables = both(name, x, train)
        y, state = after(name, x, variables, train)
        assert_close(linen[0], y)
        if train and name not in ("renorm", "domain", "split"):  # which average roots, or see no example of a domain
            assert_close(linen[1], state)
        assert_close(model, wide(linen))


@pytest.mark.parametrize("shape", [(0, 3, 2, 6), (4, 0, 2, 6)], ids=str)
@each
def test_no_example_or_no_position(name, shape):
    """Is an empty result, as in Flax, and leaves the state as it is."""
    x = np.zeros(shape, np.float32)
    for train in (True, False)[: len(modes(name))]:
        linen, model, variables = both(name, x, train)
        assert linen[0].shape == model[0].shape == x.shape
        kept = {k: v for k, v in variables["batch_stats"].items() if k != "step"}
        for _, state in (linen, model):
            assert_close({k: state[k] for k in kept}, wide(kept), 1e-6)


@each
def test_no_channel(name):
    """Is an empty result, too, with a gradient. Modules of nnx refuse `num_features=0`."""
    x = np.zeros((4, 3, 0), np.float32)
    layer = bnjax.linen.make_norm(name, **options(name, 4))()
    call = {"use_running_average": False} if NORMS[name].takes_running_average else {}

    def f(x):
        variables = layer.init(jax.random.key(0), x, **call)
        return layer.apply(variables, x, **call, **ROWS[name].inputs(4), mutable="batch_stats")[0]

    y, dx = jax.jit(lambda x: (f(x), jax.grad(lambda x: f(x).sum())(x)))(x)
    assert y.shape == dx.shape == x.shape


def test_no_channel_in_groups_of_a_size():
    x = np.zeros((4, 0), np.float32)
    for groups in ({"num_groups": 1}, {"num_groups": None, "group_size": 2}):
        assert bnjax.group_norm(x, **groups).shape == x.shape


WRONG = {"epsilon": "a", "momentum": "0.9", "dtype": "nope", "axis_name": True}


@each
def test_words_for_numbers_are_named(name):
    """In both APIs: a word for a number or a dtype, and a truth for a name."""
    x = np.random.default_rng(0).normal(size=(4, 3, 2, 6)).astype(np.float32)
    call = {"use_running_average": False} if NORMS[name].takes_running_average else {}
    more = call | ROWS[name].inputs(4)
    good = bnjax.linen.make_norm(name, **options(name, 4))()
    variables = jax.eval_shape(partial(good.init, **call), jax.random.key(0), x)
    variables = jax.tree.map(lambda t: np.ones(t.shape, t.dtype), variables)
    makers = (
        lambda o: bnjax.linen.make_norm(name, **o)().apply(variables, x, **more, mutable="batch_stats"),
        lambda o: bnjax.nnx.make_norm(name, 6, **o, rngs=nnx.Rngs(0))(x, **more),
    )
    for argument in WRONG.keys() & inspect.signature(NORMS[name].function).parameters.keys():
        for make in makers:
            with pytest.raises(ValueError, match=f"`{argument}`.*{WRONG[argument]}"):
                make(options(name, 4) | {argument: WRONG[argument]})


@pytest.mark.parametrize("name", [name for name in ROWS if NORMS[name].takes_running_average])
def test_a_state_of_another_kind_is_named(name):
    x = np.random.default_rng(0).normal(size=(4, 3, 2, 6)).astype(np.float32)
    f = partial(NORMS[name].function, **options(name, 4) | ROWS[name].inputs(4))
    zeros, ones = jnp.zeros(6), jnp.ones(6)
    for state, message in (
        ({"mean": zeros, "var": ones, "matrix": ones}, r"write `\w*\(.*running\['mean'\], running\['\w*'\]\)`"),
        ((zeros, ones), "of type tuple"),
        (
            Whitening(zeros.astype(int), ones),
            r"`running\.mean`.* int32" if name in CHANNELS_TOGETHER else "Whitening",
        ),
        (
            Moments(zeros, zeros, ones.astype(int)),
            "Moments" if name in CHANNELS_TOGETHER else r"`running\.var`.* int32",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            f(x, state)
