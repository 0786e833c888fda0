"""Bad input: a `ValueError` that names the argument, says what came and what to write instead."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bnjax
from bnjax import Moments, accumulate, all_reduce, batch_norm, ema, moments, normalize, reduce, sync_batch_stats
from tests.kit.comparison import assert_says

X = jnp.asarray(np.random.default_rng(0).normal(size=(8, 4, 3)), jnp.float32)
RUNNING = Moments(jnp.zeros(()), jnp.zeros(3), jnp.ones(3))


def state(shape, dtype=jnp.float32):
    return Moments(jnp.zeros(()), jnp.zeros(shape, dtype), jnp.ones(shape))


# What is wrong, and all that the message must say: the argument, what it was, what it may be.
BATCH_NORM = {
    "axis out of range": ({"axis": 3}, ["`axis`", "3", "-3 to 2"]),
    "axis below range": ({"axis": (0, -4)}, ["`axis`", "(0, -4)", "-3 to 2"]),
    "axis not an integer": ({"axis": 1.0}, ["`axis`", "1.0", "integers"]),
    "axis None": ({"axis": None}, ["`axis`", "None", "integers"]),
    "axis repeated": ({"axis": (1, 1)}, ["`axis`", "(1, 1)", "twice"]),
    "axis repeated by another name": ({"axis": (-1, 2)}, ["`axis`", "(-1, 2)", "twice"]),
    "integer x": ({"x": jnp.ones((8, 3), jnp.int32)}, ["`x`", "int32", "`x.astype(jnp.float32)`"]),
    "boolean x": ({"x": jnp.ones((8, 3), bool)}, ["`x`", "bool", "`x.astype(jnp.float32)`"]),
    "scale of the wrong shape": ({"scale": jnp.ones(4)}, ["`scale`", "(4,)", "(3,)", "rank 3"]),
    "scale of the wrong rank": ({"scale": jnp.ones((1, 3))}, ["`scale`", "(1, 3)", "(3,)", "rank 3"]),
    "scale that does not broadcast": ({"scale": jnp.ones((2, 1, 3))}, ["`scale`", "(2, 1, 3)", "(8, 4, 3)"]),
    "bias of the wrong shape": ({"bias": jnp.ones((3, 1))}, ["`bias`", "(3, 1)", "(3,)"]),
    "mask that does not broadcast": ({"where": jnp.ones((7, 4, 1))}, ["`where`", "(7, 4, 1)", "(8, 4, 3)", "length 1"]),
    "mask of the first axes": ({"where": jnp.ones((8, 4))}, ["`where`", "(8, 4)", "(8, 4, 3)", "`where[..., None]`"]),
    "mask of the first or the last axis": (
        {"where": jnp.ones(3), "x": jnp.ones((3, 4, 3))},
        ["`where`", "(3,)", "(3, 4, 3)", "`where[..., None, None]`", "`where[None, None, ...]`"],
    ),
    "mask with a negative entry": ({"where": -abs(X)}, ["`where`", "zero where masked out", "`where == 0`"]),
    "mask of too high a rank": ({"where": jnp.ones((1, 8, 4, 3))}, ["`where`", "(1, 8, 4, 3)", "(8, 4, 3)"]),
    "momentum above one": ({"momentum": 1.5}, ["`momentum`", "1.5", "0 to 1", "PyTorch"]),
    "momentum below zero": ({"momentum": -0.1}, ["`momentum`", "-0.1", "0 to 1"]),
    "momentum NaN": ({"momentum": float("nan")}, ["`momentum`", "nan", "0 to 1"]),
    "epsilon below zero": ({"epsilon": -1e-5}, ["`epsilon`", "-1e-05", "not negative"]),
    "epsilon infinite": ({"epsilon": float("inf")}, ["`epsilon`", "inf", "finite"]),
    "epsilon NaN": ({"epsilon": float("nan")}, ["`epsilon`", "nan", "finite"]),
    "virtual batch that does not divide": ({"virtual_batch_size": 3}, ["`virtual_batch_size`", "3", "divides", "8"]),
    "virtual batch too large": ({"virtual_batch_size": 16}, ["`virtual_batch_size`", "16", "divides", "8"]),
    "virtual batch of zero": ({"virtual_batch_size": 0}, ["`virtual_batch_size`", "0", "positive"]),
    "virtual batch not an integer": ({"virtual_batch_size": 4.0}, ["`virtual_batch_size`", "4.0", "integer"]),
    "virtual batch along a feature axis": (
        {"virtual_batch_size": 4, "axis": 0, "running": state(8)},
        ["`virtual_batch_size`", "`axis`", "(0,)"],
    ),
    "one value per feature": (
        {"x": jnp.ones((1, 3))},
        ["`x`", "one value per feature", "(1, 3)", "`axis_name`", "`normalize(x, running)`"],
    ),
    "one value per feature at one position": (
        {"x": jnp.ones((1, 1, 3))},
        ["`x`", "one value per feature", "(1, 1, 3)"],
    ),
    "one value per feature in a ghost batch": (
        {"x": jnp.ones((8, 3)), "virtual_batch_size": 1},
        ["`x`", "one value per feature", "`virtual_batch_size=1`"],
    ),
    "one value per feature in a ghost batch of many devices": (
        {"x": jnp.ones((8, 3)), "virtual_batch_size": 1, "axis_name": "d"},
        ["`x`", "one value per feature", "`virtual_batch_size=1`"],
    ),
    "unknown activation": (
        {"activation": "swish"},
        ["`activation`", "'swish'", "'relu', 'gelu', 'silu'", "callable"],
    ),
    "relu of a complex x": (
        {"x": X.astype(jnp.complex64), "running": state(3, jnp.complex64), "activation": "relu"},
        ["`activation`", "'relu'", "complex `x`", "callable"],
    ),
    "silu of a complex x": (
        {"x": X.astype(jnp.complex64), "running": state(3, jnp.complex64), "activation": "silu"},
        ["`activation`", "'silu'", "complex `x`", "callable"],
    ),
    "relu of a complex result": (
        {"dtype": jnp.complex64, "running": state(3, jnp.complex64), "activation": "relu"},
        ["`activation`", "'relu'", "complex `dtype`", "callable"],
    ),
    "unknown pivot": ({"pivot": "mean"}, ["`pivot`", "'mean'", "'running'", "'sample'", "None"]),
    "a number for a pivot": ({"pivot": 0.0}, ["`pivot`", "0.0", "'running'"]),
    "running mean of the wrong shape": ({"running": state(4)}, ["`running.mean`", "(4,)", "(3,)"]),
    "running variance of the wrong shape": (
        {"running": Moments(jnp.zeros(()), jnp.zeros(3), jnp.ones(()))},
        ["`running.var`", "()", "(3,)"],
    ),
    "running count of the wrong shape": (
        {"running": Moments(jnp.zeros(2), jnp.zeros(3), jnp.ones(3))},
        ["`running.count`", "(2,)", "(3,)"],
    ),
    "a scalar count under a mask over features": (
        {"momentum": None, "where": X > 0},
        ["`running.count`", "()", "`where`", "`momentum=None`"],
    ),
    "a real running mean for a complex x": (
        {"x": X.astype(jnp.complex64)},
        ["`running.mean`", "float32", "complex", "`running.mean.astype(x.dtype)`"],
    ),
    "unbiased without momentum": ({"unbiased": True, "momentum": None}, ["`unbiased=True`", "`momentum"]),
    "residual of the wrong shape": ({"residual": X[:1]}, ["`residual`", "(1, 4, 3)", "(8, 4, 3)"]),
    "complex scale for a real x": ({"scale": jnp.ones(3, complex)}, ["`scale`", "complex64", "real"]),
    "complex bias for a real x": ({"bias": jnp.ones(3, complex)}, ["`bias`", "complex64", "real"]),
    "complex residual for a real x": ({"residual": X + 0j}, ["`residual`", "complex64", "real"]),
    "complex dtype, real running mean": ({"dtype": jnp.complex64}, ["`running.mean`", "float32", "complex"]),
    "momentum of a shape": ({"momentum": jnp.ones(3)}, ["`momentum`", "(3,)", "number"]),
    "epsilon of a shape": ({"epsilon": jnp.ones(3)}, ["`epsilon`", "(3,)", "number"]),
    "epsilon None": ({"epsilon": None}, ["`epsilon`", "None", "number"]),
    "a scalar x": ({"x": jnp.ones(()), "running": state(())}, ["`x`", "()"]),
    "groups without a name": ({"axis_index_groups": [[0, 1]]}, ["`axis_index_groups`", "`axis_name`"]),
    "epsilon a word": ({"epsilon": "a"}, ["`epsilon`", "'a'", "number"]),
    "epsilon complex": ({"epsilon": 1j}, ["`epsilon`", "1j", "number"]),
    "momentum a word": ({"momentum": "0.9"}, ["`momentum`", "'0.9'", "number"]),
    "dtype a word": ({"dtype": "nope"}, ["`dtype`", "'nope'", "floating-point"]),
    "axis_name a truth": ({"axis_name": True}, ["`axis_name`", "True", "name"]),
    "axis_name a number": ({"axis_name": ("d", 0)}, ["`axis_name`", "0", "name"]),
    "running None": ({"running": None}, ["`running`", "None", "Moments"]),
    "running a dictionary": (
        {"running": {"mean": jnp.zeros(3), "var": jnp.ones(3)}},
        ["`running`", "dict", "`Moments(jnp.zeros(()), running['mean'], running['var'])`"],
    ),
    "running a tuple": ({"running": (jnp.zeros(3), jnp.ones(3))}, ["`running`", "tuple", "Moments"]),
    "running an array": ({"running": jnp.ones(3)}, ["`running`", "Moments"]),
    "running mean of integers": (
        {"running": Moments(jnp.zeros(()), jnp.zeros(3, int), jnp.ones(3))},
        ["`running.mean`", "int32", "`running.mean.astype(jnp.float32)`"],
    ),
    "running variance of integers": (
        {"running": Moments(jnp.zeros(()), jnp.zeros(3), jnp.ones(3, int))},
        ["`running.var`", "int32", "`running.var.astype(jnp.float32)`"],
    ),
    "integer dtype": ({"dtype": jnp.int32}, ["`dtype`", "int32", "floating-point or complex"]),
    "a real dtype for a complex x": (
        {"x": X.astype(jnp.complex64), "running": state(3, jnp.complex64), "dtype": jnp.float32},
        ["`dtype`", "float32", "complex64"],
    ),
}

OTHERS = {
    "moments: axis out of range": (lambda: moments(X, 3), ["`axis`", "3", "-3 to 2"]),
    "moments: axis repeated": (lambda: moments(X, (0, -3)), ["`axis`", "(0, -3)", "twice"]),
    "moments: integer x": (lambda: moments(jnp.arange(3), 0), ["`x`", "int32", "`x.astype(jnp.float32)`"]),
    "moments: mask": (lambda: moments(X, 0, where=jnp.ones(4)), ["`where`", "(4,)", "(8, 4, 3)"]),
    "moments: pivot": (lambda: moments(X, 0, pivot=jnp.zeros(2)), ["`pivot`", "(2,)", "(4, 3)"]),
    "moments: pivot that varies over what is measured": (
        lambda: moments(X, 0, pivot=X),
        ["`pivot`", "(8, 4, 3)", "(4, 3)"],
    ),
    "reduce: axis out of range": (lambda: reduce(RUNNING, 1), ["`axis`", "1", "-1 to 0"]),
    "reduce: axis repeated": (lambda: reduce(RUNNING, (0, -1)), ["`axis`", "(0, -1)", "twice"]),
    "ema: momentum": (lambda: ema(RUNNING, RUNNING, 2), ["`momentum`", "2", "0 to 1"]),
    "normalize: integer x": (lambda: normalize(jnp.ones((2, 3), int), RUNNING), ["`x`", "int32", "`x.astype("]),
    "normalize: axis": (lambda: normalize(X, RUNNING, axis=5), ["`axis`", "5", "-3 to 2"]),
    "normalize: mean": (lambda: normalize(X, state(4)), ["`m.mean`", "(4,)", "(3,)"]),
    "normalize: variance": (
        lambda: normalize(X, Moments(RUNNING.count, RUNNING.mean, jnp.ones(2))),
        ["`m.var`", "(2,)", "(3,)"],
    ),
    "normalize: scale": (lambda: normalize(X, RUNNING, jnp.ones(2)), ["`scale`", "(2,)", "(3,)"]),
    "normalize: bias": (lambda: normalize(X, RUNNING, None, jnp.ones(2)), ["`bias`", "(2,)", "(3,)"]),
    "normalize: epsilon": (lambda: normalize(X, RUNNING, epsilon=-1.0), ["`epsilon`", "-1.0", "not negative"]),
    "normalize: residual": (lambda: normalize(X, RUNNING, residual=X[0]), ["`residual`", "(4, 3)", "(8, 4, 3)"]),
    "normalize: activation": (lambda: normalize(X, RUNNING, activation="elu"), ["`activation`", "'elu'", "'relu'"]),
    "normalize: no moments": (lambda: normalize(X, (1, 2)), ["`m`", "tuple", "Moments"]),
    "normalize: dtype": (lambda: normalize(X, RUNNING, dtype=bool), ["`dtype`", "bool", "floating-point"]),
}


@pytest.mark.parametrize("case", BATCH_NORM)
def test_batch_norm_says_what_is_wrong(case):
    given, words = BATCH_NORM[case]
    assert_says(lambda: batch_norm(**{"x": X, "running": RUNNING, **given}), words)


@pytest.mark.parametrize("case", BATCH_NORM)
def test_it_says_so_under_jit_too(case):
    """What does not depend on values is known when the function is traced."""
    given, words = BATCH_NORM[case]
    arrays = {"x": X, "running": RUNNING, **{k: v for k, v in given.items() if k in ("x", "running", "scale", "bias")}}
    static = {k: v for k, v in given.items() if k not in arrays}
    assert_says(lambda: jax.eval_shape(lambda a: batch_norm(**a, **static), arrays), words)


@pytest.mark.parametrize("case", OTHERS)
def test_the_other_functions_say_what_is_wrong(case):
    assert_says(*OTHERS[case])


def test_traced_numbers_are_not_looked_at():
    """They cannot be; what comes of them is the caller's."""
    _, new = jax.jit(lambda m, e: batch_norm(X, RUNNING, momentum=m, epsilon=e))(2.0, -0.0)
    np.testing.assert_allclose(new.mean, -X.mean((0, 1)), rtol=1e-5, atol=1e-6)


def test_what_is_allowed_is_not_refused():
    """The borders of the ranges above."""
    for options in (
        {"momentum": 0}, {"momentum": 1}, {"epsilon": 0}, {"virtual_batch_size": 8}, {"virtual_batch_size": 1},
        {"axis": (0, 1, 2), "running": state((8, 4, 3)), "x": jnp.stack([X, X], 3), "axis_name": None},
        {"scale": jnp.ones((8, 4, 3)), "bias": jnp.ones((1, 1, 1))}, {"where": jnp.ones(3)}, {"activation": jnp.tanh},
        {"x": X[:1, :2]}, {"running": Moments(jnp.zeros(3), jnp.zeros(3), jnp.ones(3))},
    ):  # fmt: skip
        y, _ = jax.eval_shape(lambda o=options: batch_norm(**{"x": X, "running": RUNNING, **o}))
        assert y.shape == options.get("x", X).shape


def test_one_value_is_enough_where_devices_could_add_some_or_nothing_is_measured():
    synced = jax.vmap(lambda x: batch_norm(x, RUNNING, axis_name="d")[0], axis_name="d")
    assert jax.eval_shape(synced, jnp.ones((4, 1, 3))).shape == (4, 1, 3)
    assert jax.eval_shape(normalize, jnp.ones((1, 3)), RUNNING).shape == (1, 3)
    assert jax.eval_shape(batch_norm, jnp.ones((1, 0)), state(0))[0].shape == (1, 0)


STATS = {"norm": {"mean": jnp.zeros(3), "var": jnp.ones(3)}, "steps": jnp.zeros((), jnp.int32)}
UNBOUND = {
    "batch_norm": lambda: batch_norm(X, RUNNING, axis_name="nowhere"),
    "all_reduce": lambda: all_reduce(RUNNING, "nowhere"),
    "all_reduce about a pivot": lambda: all_reduce(RUNNING, "nowhere", pivot=0.0),
    "sync_batch_stats": lambda: sync_batch_stats(STATS, "nowhere"),
    "accumulate": lambda: accumulate(lambda x: batch_norm(x, RUNNING, axis_name="nowhere")[1], X, 2),
    "one of two": lambda: jax.vmap(lambda x: batch_norm(x, RUNNING, axis_name=("d", "nowhere")), axis_name="d")(X),
    "a list of two": lambda: jax.vmap(lambda x: batch_norm(x, RUNNING, axis_name=["d", "nowhere"]), axis_name="d")(X),
}


@pytest.mark.parametrize("case", UNBOUND)
def test_an_unbound_axis_name_says_where_names_are_bound(case):
    """Eagerly and under jit, where it is the most frequent mistake."""
    for call in (UNBOUND[case], jax.jit(UNBOUND[case])):
        assert_says(
            call, ["`axis_name`", "no axis 'nowhere' is bound", "`jax.pmap", "`jax.shard_map", "`jit` needs none"]
        )


def test_another_unknown_name_is_python_s_error():
    def activation(x):
        return x + undefined  # noqa: F821

    with pytest.raises(NameError, match="name 'undefined' is not defined"):
        jax.vmap(lambda x: batch_norm(x, RUNNING, axis_name="d", activation=activation), axis_name="d")(X)


@pytest.mark.parametrize(
    ("norm", "name"),
    [("dynamic_tanh", "scale"), ("filter_response_norm", "threshold"), ("evo_norm_s0", "v")],
)
def test_no_imaginary_part_of_a_parameter_is_dropped(norm, name):
    options = {"num_groups": 2} if norm == "evo_norm_s0" else {}
    with pytest.raises(ValueError, match=f"`{name}` must be real"):
        getattr(bnjax, norm)(jnp.ones((2, 3, 4)), **{name: jnp.ones(4, jnp.complex64)}, **options)
