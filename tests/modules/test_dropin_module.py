"""BatchNorm for linen and nnx as modules: what they are made of, and what they can do beyond Flax's."""

import dataclasses
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx
from flax.nnx.nn import dtypes
from jax.sharding import PartitionSpec

import bnjax.linen
import bnjax.nnx
from bnjax import Moments
from tests.kit import devices
from tests.kit.dropin import APIS, FLAX, OURS, RUN, assert_same, random, start

C = 5
X = random(6, 4, C) * 2 + 1


def call(api, x=X, *, train=True, given=None, params=None, stats=None, **attributes):
    """Output and new statistics of ours, from the parameters and statistics of `start`."""
    used = {name: attributes.get(name, True) for name in ("use_scale", "use_bias")}
    own_params, own_stats = start((C,), **used)
    stats = own_stats if stats is None else stats
    params = own_params if params is None else params

    @jax.jit
    def run(x, params, stats):
        result = RUN[api](OURS[api], x, params, stats, train, given, gradients=False, **attributes)
        return result["y"], result["stats"]

    return run(x, params, stats)


def by_core(x=X, *, given=None, count=0.0, **options):
    """The same by `bnjax.batch_norm`."""
    params, stats = start((C,))
    running = Moments(jnp.full((C,), count), stats["mean"], stats["var"])
    return bnjax.batch_norm(x, running, **(params | options | (given or {})))


def dtype_of(t):
    return t.dtype


# What it is made of


def test_linen_attributes_are_flax_s_and_more_with_the_same_defaults():
    flax, ours = (
        {f.name: f.default for f in dataclasses.fields(cls) if f.name not in ("parent", "name")}
        for cls in (linen.BatchNorm, bnjax.linen.BatchNorm)
    )
    assert list(ours)[: len(flax)] == list(flax)
    assert {name: ours[name] for name in flax} == flax
    assert set(ours) - set(flax) == {
        "pivot",
        "virtual_batch_size",
        "unbiased",
        "activation",
        "zero_masked",
        "track_running_stats",
    }


def test_nnx_attributes_are_flax_s_and_more_with_the_same_defaults():
    flax, ours = (vars(FLAX["nnx"](C, rngs=nnx.Rngs(0))), vars(OURS["nnx"](C, rngs=nnx.Rngs(0))))
    plain = {k: v for k, v in flax.items() if not isinstance(v, nnx.Variable) and not k.startswith("_")}
    assert {k: ours[k] for k in plain} == plain
    added = {k for k in ours if not k.startswith("_")} - set(flax)
    assert added == {"pivot", "virtual_batch_size", "unbiased", "activation", "zero_masked", "track_running_stats"}
    flax_call, our_call = (list(inspect.signature(cls.__call__).parameters) for cls in (FLAX["nnx"], OURS["nnx"]))
    assert our_call[: len(flax_call)] == flax_call


@pytest.mark.parametrize("api", APIS)
def test_is_an_instance_of_flax_s_class(api):
    module = OURS[api]() if api == "linen" else OURS[api](C, rngs=nnx.Rngs(0))
    assert isinstance(module, FLAX[api])


NORMAL = {"scale_init": linen.initializers.normal(), "bias_init": linen.initializers.normal()}
TREES = {
    "default": {},
    "random": NORMAL,
    "bfloat16": NORMAL | {"param_dtype": jnp.bfloat16},
    "no scale": NORMAL | {"use_scale": False},
    "no bias": NORMAL | {"use_bias": False},
    "axis 1": {"axis": 1},
    "dtype": {"dtype": jnp.bfloat16},
    "named axis": {"momentum": 0.5, "axis_name": "batch"},
}
LINEN_TREES = TREES | {"axes": {"axis": (1, -1)}, "force_float32_reductions": {"force_float32_reductions": False}}


@pytest.mark.parametrize("name", LINEN_TREES)
def test_linen_variables_are_flax_s(name):
    """To the bit, random initial values too; the named axis need not exist, and the statistics do not move."""
    ours, flax = (
        cls["linen"](use_running_average=False, **LINEN_TREES[name]).init(jax.random.key(3), X) for cls in (OURS, FLAX)
    )
    jax.tree.map(np.testing.assert_array_equal, ours, flax)
    assert jax.tree.map(dtype_of, ours) == jax.tree.map(dtype_of, flax)


@pytest.mark.parametrize("name", TREES)
def test_nnx_variables_are_flax_s(name):
    size = X.shape[TREES[name].get("axis", -1)]
    ours, flax = (nnx.state(cls["nnx"](size, rngs=nnx.Rngs(3), **TREES[name])) for cls in (OURS, FLAX))
    assert jax.tree.structure(ours) == jax.tree.structure(flax)
    jax.tree.map(np.testing.assert_array_equal, ours, flax)
    assert jax.tree.map(dtype_of, ours) == jax.tree.map(dtype_of, flax)


def test_linen_states_of_a_half_dtype_keep_it():
    """`force_float32_reductions=False`: Flax's state takes the dtype of the batch; ours stays what it was."""
    module = OURS["linen"](use_running_average=False, force_float32_reductions=False, param_dtype=jnp.bfloat16)
    variables = module.init(jax.random.key(0), X)
    _, new = module.apply(variables, X, mutable="batch_stats")
    assert jax.tree.map(dtype_of, new["batch_stats"]) == {"mean": jnp.bfloat16, "var": jnp.bfloat16}
    wanted = 0.01 * np.asarray(X, np.float64).mean((0, 1))
    np.testing.assert_allclose(np.asarray(new["batch_stats"]["mean"], np.float64), wanted, rtol=2**-8)


def test_partitioning_is_kept():
    """`nn.with_partitioning`: the boxes stay, and say what they said."""
    scale_init = linen.with_partitioning(linen.initializers.ones, ("model",))
    module = OURS["linen"](use_running_average=False, scale_init=scale_init)
    variables = module.init(jax.random.key(0), X)
    assert variables["params"]["scale"].names == ("model",)
    assert linen.get_partition_spec(variables)["params"]["scale"] == PartitionSpec("model")
    flax = FLAX["linen"](use_running_average=False, scale_init=scale_init).init(jax.random.key(0), X)
    assert jax.tree.structure(variables) == jax.tree.structure(flax)
    y, new = module.apply(variables, X, mutable="batch_stats")
    grads = jax.grad(lambda p: module.apply(variables | {"params": p}, X, mutable="batch_stats")[0].std())(
        variables["params"]
    )
    assert grads["scale"].names == ("model",)
    assert y.shape == X.shape
    assert set(new["batch_stats"]) == {"mean", "var"}


def test_nnx_metadata_is_kept():
    mesh = devices.mesh(1, names=("model",))
    with jax.set_mesh(mesh):
        layer = OURS["nnx"](C, rngs=nnx.Rngs(0), scale_metadata={"out_sharding": ("model",)}, bias_metadata={"mine": 3})
        layer.mean.set_metadata(note="running")
        layer(X)
        assert layer.scale.get_metadata()["out_sharding"] == ("model",)
        assert layer.bias.get_metadata()["mine"] == 3
        assert layer.mean.get_metadata()["note"] == "running"
        restored = nnx.merge(*nnx.split(layer))
        assert restored.mean.get_metadata()["note"] == "running"


# How it is called


@pytest.mark.parametrize("api", APIS)
def test_use_running_average_at_the_call_and_missing(api):
    params, stats = start((C,))
    if api == "linen":
        module = OURS[api]()
        evaluated, kept = module.apply(
            {"params": params, "batch_stats": stats}, X, use_running_average=True, mutable="batch_stats"
        )
        with pytest.raises(Exception, match="use_running_average"):
            module.apply({"params": params, "batch_stats": stats}, X)
        jax.tree.map(np.testing.assert_array_equal, kept["batch_stats"], stats)
    else:
        module = OURS[api](C, use_running_average=False, rngs=nnx.Rngs(0))
        nnx.update(module, params | stats)
        evaluated = module(X, use_running_average=True)
        module.eval()
        np.testing.assert_array_equal(module(X), evaluated)
        module.train()
        np.testing.assert_array_equal(nnx.view(module, use_running_average=True)(X), evaluated)
        np.testing.assert_array_equal(module.mean[...], stats["mean"])
        with pytest.raises(ValueError, match="`use_running_average`"):
            OURS[api](C, use_running_average=None, rngs=nnx.Rngs(0))(X)
    wanted = bnjax.normalize(X, Moments(jnp.zeros(()), **stats), **params)
    np.testing.assert_allclose(evaluated, wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("x", [X, X.astype(jnp.bfloat16), jnp.arange(2 * C).reshape(2, C)], ids=["f32", "bf16", "int"])
@pytest.mark.parametrize("affine", [True, False], ids=["affine", "plain"])
def test_promote_dtype_is_called_as_flax_calls_it(x, affine):
    def spied(cls):
        calls = []

        def spy(arrays, **kwargs):
            calls.append(([None if a is None else (a.shape, a.dtype) for a in arrays], kwargs))
            return dtypes.promote_dtype(arrays, **kwargs)

        layer = cls(
            C, dtype=jnp.float32, promote_dtype=spy, use_scale=affine, use_bias=affine, rngs=nnx.Rngs(0)
        )  # fmt: skip
        layer(x)
        layer(x, use_running_average=True)
        return calls

    assert spied(OURS["nnx"]) == spied(FLAX["nnx"])


def test_promote_dtype_decides():
    """What it does to the input, scale and bias happens."""

    def promote(arrays, dtype):
        x, mean, var, scale, bias = dtypes.promote_dtype(arrays, dtype=dtype)
        return x.astype(jnp.float16), mean, var, scale * 2, bias - 1

    options = {"promote_dtype": promote, "gradients": False}  # which Flax rounds to float16 in each of their terms
    ours, flax = (RUN["nnx"](cls["nnx"], X, *start((C,)), **options) for cls in (OURS, FLAX))
    assert_same(ours, flax)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("api", APIS)
def test_running_statistics_are_never_rounded(api, dtype):
    """nnx rounds them to `dtype` before it subtracts, in Flax: 1000.6 - 1000.1 is then 0."""
    params, stats = start((C,))
    stats["mean"] = stats["mean"] + 1000
    y, _ = call(api, X + 1000, train=False, stats=stats, dtype=dtype)
    x = np.asarray((X + 1000).astype(dtype) if api == "nnx" else X + 1000, np.float64)
    if api == "nnx":  # which rounds what it is given, as Flax does
        params = {k: v.astype(dtype) for k, v in params.items()}
    mean, var, scale, bias = (np.asarray(t, np.float64) for t in (*stats.values(), *params.values()))
    wanted = (x - mean) / np.sqrt(var + 1e-5) * scale + bias
    # Half a unit of `dtype` in the output; float32's of 1000 before it.
    np.testing.assert_allclose(np.asarray(y, np.float64), wanted, rtol=jnp.finfo(dtype).eps, atol=1e-3)

    _, new = call(api, X, dtype=dtype)
    seen = np.asarray(X.astype(dtype) if api == "nnx" else X, np.float64)
    wanted = 0.99 * np.asarray(start((C,))[1]["mean"], np.float64) + 0.01 * seen.mean((0, 1))
    assert new["mean"].dtype == jnp.float32
    np.testing.assert_allclose(new["mean"], wanted, rtol=1e-6)


def test_half_precision_gradients_are_rounded_once():
    """dx is made in float32 and rounded at the end: its terms cancel where dy has a mean, and linen's dx in Flax
    is off by 15 units of bfloat16 here."""
    x, dy = X.astype(jnp.bfloat16), (random(*X.shape, seed=7) + 20).astype(jnp.bfloat16)
    params, stats = start((C,))
    running = Moments(jnp.zeros(()), **stats)
    _, pull = jax.vjp(lambda x: bnjax.batch_norm(x, running, **params, dtype=jnp.bfloat16)[0], x)
    wide, d, scale = (np.asarray(t, np.float64) for t in (x, dy, params["scale"]))
    rstd = 1 / np.sqrt(wide.var((0, 1)) + 1e-5)
    hat = (wide - wide.mean((0, 1))) * rstd
    wanted = scale * rstd * (d - d.mean((0, 1)) - hat * (d * hat).mean((0, 1)))
    np.testing.assert_allclose(np.asarray(pull(dy)[0], np.float64), wanted, rtol=2**-8, atol=2e-5)


def test_nnx_keeps_a_complex_mean_complex():
    """In Flax the imaginary part is dropped."""
    x = random(8, C, dtype=jnp.complex64) + (2 + 3j)
    layer = OURS["nnx"](C, momentum=0.5, rngs=nnx.Rngs(0))
    y = layer(x)
    wide = np.asarray(x, np.complex128)
    np.testing.assert_allclose(layer.mean[...], wide.mean(0) / 2, rtol=1e-6)
    np.testing.assert_allclose(layer.var[...], 0.5 + wide.var(0) / 2, rtol=1e-5)
    np.testing.assert_allclose(y, (wide - wide.mean(0)) / np.sqrt(wide.var(0) + 1e-5), rtol=1e-5, atol=1e-6)
    evaluated = layer(x, use_running_average=True)
    wanted = (wide - np.asarray(layer.mean[...])) / np.sqrt(np.asarray(layer.var[...]) + 1e-5)
    np.testing.assert_allclose(evaluated, wanted, rtol=1e-5, atol=1e-6)


# One value per feature


def test_one_value_per_feature_linen():
    """Flax's apply returns the bias without a word; ours raises. To initialise it is good enough."""
    x = X[:1, 0]
    module = OURS["linen"](use_running_average=False)
    variables = module.init(jax.random.key(0), x)
    y, _ = module.init_with_output(jax.random.key(0), x)
    np.testing.assert_array_equal(y, jnp.zeros_like(x))
    with pytest.raises(ValueError, match="`x` has one value per feature"):
        module.apply(variables, x, mutable="batch_stats")
    evaluated = OURS["linen"](use_running_average=True).apply(variables, x)
    np.testing.assert_allclose(evaluated, x, rtol=1e-5)


@pytest.mark.parametrize("attributes", [{}, {"momentum": None}, {"activation": "relu"}, {"virtual_batch_size": 4}])
def test_one_value_per_feature_nnx(attributes):
    """As Flax's: what runs at construction elsewhere (shapes, lazy initialisation) calls it with one example."""
    x, params_stats = X[:1, 0], start((C,))
    if not attributes:
        assert_same(*(RUN["nnx"](cls["nnx"], x, *params_stats) for cls in (OURS, FLAX)))
    else:
        layer = OURS["nnx"](C, rngs=nnx.Rngs(0), **attributes)
        np.testing.assert_array_equal(layer(x), jnp.zeros_like(x))


@pytest.mark.parametrize("api", APIS)
def test_one_value_on_each_device_is_enough(api):
    """With a named axis there are more elsewhere: six devices of one example each are a batch of six."""
    x = X[:, 0]
    run = jax.vmap(lambda x: call(api, x, axis_name="device"), axis_name="device")
    (y, stats), (whole, wanted) = run(x[:, None]), call(api, x)
    np.testing.assert_allclose(y[:, 0], whole, rtol=1e-5, atol=1e-5)
    jax.tree.map(lambda t, u: np.testing.assert_allclose(t[0], u, rtol=1e-6), stats, wanted)


# What is added


PER_EXAMPLE = {"scale": random(6, 1, C, seed=11), "bias": random(6, 1, C, seed=12)}
PER_FEATURE = {"scale": random(C, seed=11), "bias": random(C, seed=12)}
ADDED = {
    "unbiased": ({"unbiased": True}, {}, {}),
    "ghost batches": ({"virtual_batch_size": 3}, {}, {}),
    "a sample as pivot": ({"pivot": "sample"}, {}, {}),
    "no pivot": ({"pivot": None}, {}, {}),
    "relu": ({"activation": "relu"}, {}, {}),
    "a function": ({"activation": jnp.tanh}, {}, {}),
    "residual": ({}, {"residual": random(*X.shape, seed=10)}, {}),
    "residual and relu": ({"activation": "relu"}, {"residual": random(*X.shape, seed=10)}, {}),
    "scale and bias": ({"use_scale": False, "use_bias": False}, PER_FEATURE, {}),
    "scale and bias per example": ({"use_scale": False, "use_bias": False}, PER_EXAMPLE, {}),
    "two passes": ({"use_fast_variance": False}, {}, {"pivot": None}),
}


@pytest.mark.parametrize("name", ADDED)
@pytest.mark.parametrize("api", APIS)
def test_abilities_are_the_core_s(api, name):
    """The core is tested by itself; here, that the attribute gets there, in training and at evaluation."""
    attributes, given, core = ADDED[name]
    y, stats = call(api, given=given, **attributes)
    options = {k: v for k, v in attributes.items() if not k.startswith("use_")} | core
    wanted, running = by_core(given=given, **options)
    np.testing.assert_allclose(y, wanted, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(stats["mean"], running.mean, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(stats["var"], running.var, rtol=1e-6)

    y, kept = call(api, train=False, given=given, **attributes)
    params, stats = start((C,))
    shared = {k: v for k, v in attributes.items() if k == "activation"}
    wanted = bnjax.normalize(X, Moments(jnp.zeros(()), **stats), **(params | given | shared))
    np.testing.assert_allclose(y, wanted, rtol=1e-6, atol=1e-6)
    jax.tree.map(np.testing.assert_array_equal, kept, stats)


@pytest.mark.parametrize("attributes", [{"use_fast_variance": False}, {"pivot": None}, {"pivot": "sample"}], ids=str)
@pytest.mark.parametrize("api", APIS)
def test_large_means_from_the_first_step(api, attributes):
    """At values near 1 all ways agree; here one pass about the running mean, still near 0, is off by 1000."""
    x = X + 1e4
    y, _ = call(api, x, **attributes, use_scale=False, use_bias=False)
    wide = np.asarray(x, np.float64)
    wanted = (wide - wide.mean((0, 1))) / np.sqrt(wide.var((0, 1)) + 1e-5)
    np.testing.assert_allclose(y, wanted, rtol=1e-5, atol=1e-5)
    assert np.abs(call(api, x, use_scale=False, use_bias=False)[0] - wanted).max() > 0.1


def test_learned_activation_linen():
    """A module as `activation` is a submodule, its slope a parameter with a gradient."""
    module = OURS["linen"](use_running_average=False, activation=linen.PReLU())
    variables = module.init(jax.random.key(0), X)
    plain = OURS["linen"](use_running_average=False).init_with_output(jax.random.key(0), X)[0]
    grads = jax.grad(lambda v: module.apply(v, X, mutable="batch_stats")[0].sum())(variables)
    np.testing.assert_allclose(grads["params"]["activation"]["negative_slope"], jnp.minimum(plain, 0).sum(), rtol=1e-5)


def test_learned_activation_nnx():
    layer = OURS["nnx"](C, activation=nnx.PReLU(), rngs=nnx.Rngs(0))
    plain = OURS["nnx"](C, rngs=nnx.Rngs(0))(X)
    grads = nnx.grad(lambda layer: layer(X).sum())(layer)
    np.testing.assert_allclose(grads["activation"]["negative_slope"][...], jnp.minimum(plain, 0).sum(), rtol=1e-5)


@pytest.mark.parametrize("name", ["scale", "bias"])
@pytest.mark.parametrize("api", APIS)
def test_scale_and_bias_at_the_call_replace_the_parameter(api, name):
    with pytest.raises(ValueError, match=f"`{name}` was given at the call.*`use_{name}=False`"):
        call(api, given={name: jnp.ones(C)})
    with pytest.raises(ValueError, match=f"`{name}` must have the shape of the features"):
        call(api, given={name: jnp.ones(C + 1)}, **{f"use_{name}": False})


@pytest.mark.parametrize("api", APIS)
def test_errors_name_the_argument(api):
    for attributes, given, message in (
        ({"pivot": "mean"}, {}, "`pivot` must be one of 'running', 'auto', 'zero', 'sample', None"),
        ({"pivot": "sample", "use_fast_variance": False}, {}, "`use_fast_variance=False` means `pivot=None`"),
        ({"momentum": 1.5}, {}, "`momentum` must be from 0 to 1"),
        ({"virtual_batch_size": 4}, {}, "`virtual_batch_size` must be a positive integer that divides"),
        ({"activation": "swish"}, {}, "`activation`"),
        ({}, {"residual": X[:1]}, "`residual`"),
    ):
        with pytest.raises(ValueError, match=message):
            call(api, given=given, **attributes)
    stats = start((C,))[1] | {"count": jnp.zeros(C)}
    with pytest.raises(ValueError, match="`unbiased=True` needs a `momentum`"):
        call(api, stats=stats, momentum=None, unbiased=True)
    with pytest.raises(ValueError, match="`mask` must broadcast"):
        call(api, given={"mask": np.ones((5, 1, 1), bool)})


# momentum=None


def numpy_pool(xs):
    x = np.concatenate([np.asarray(x, np.float64).reshape(-1, C) for x in xs])
    return {"count": len(x), "mean": x.mean(0), "var": x.var(0)}


BATCHES = [X, X[:2] * 3 - 1, X[:3] + 2]


def test_momentum_none_pools_linen():
    module = OURS["linen"](use_running_average=False, momentum=None)
    variables = module.init(jax.random.key(0), X)
    assert variables["batch_stats"]["count"].shape == (C,)
    for x in BATCHES:
        _, new = module.apply(variables, x, mutable="batch_stats")
        variables |= new
    for name, wanted in numpy_pool(BATCHES).items():
        np.testing.assert_allclose(variables["batch_stats"][name], np.broadcast_to(wanted, C), rtol=1e-6)
    no_count = {k: v for k, v in variables["batch_stats"].items() if k != "count"}
    evaluate = OURS["linen"](use_running_average=True, momentum=None)
    np.testing.assert_array_equal(
        evaluate.apply(variables | {"batch_stats": no_count}, X), evaluate.apply(variables, X)
    )
    # A checkpoint of Flax's has no count: it starts at 0, what was there has no weight.
    _, new = module.apply(variables | {"batch_stats": no_count}, BATCHES[1], mutable="batch_stats")
    for name, wanted in numpy_pool(BATCHES[1:2]).items():
        np.testing.assert_allclose(new["batch_stats"][name], np.broadcast_to(wanted, C), rtol=1e-6)


def test_momentum_none_pools_nnx():
    layer = OURS["nnx"](C, momentum=None, rngs=nnx.Rngs(0))
    assert isinstance(layer.count, nnx.BatchStat)
    for x in BATCHES:
        layer(x)
    state = nnx.to_pure_dict(nnx.state(layer, nnx.BatchStat))
    for name, wanted in numpy_pool(BATCHES).items():
        np.testing.assert_allclose(state[name], np.broadcast_to(wanted, C), rtol=1e-6)
    before = layer(X, use_running_average=True)
    flax = nnx.state(FLAX["nnx"](C, rngs=nnx.Rngs(0)))
    fresh = OURS["nnx"](C, momentum=None, rngs=nnx.Rngs(1))
    nnx.update(fresh, flax)
    np.testing.assert_array_equal(fresh.count[...], np.zeros(C))
    fresh(BATCHES[1])
    for name, wanted in numpy_pool(BATCHES[1:2]).items():
        np.testing.assert_allclose(getattr(fresh, name)[...], np.broadcast_to(wanted, C), rtol=1e-6)
    assert before.shape == X.shape


@pytest.mark.parametrize("api", APIS)
def test_momentum_none_counts_what_is_valid(api):
    """A mask that varies over the features: each has its own count."""
    mask = np.array(random(*X.shape, seed=13) > 0)
    mask[..., 0] = False
    stats = start((C,))[1] | {"count": jnp.full(C, 2.0)}
    params = start((C,))[0]
    _, new = call(api, given={"mask": mask}, momentum=None, stats=stats, params=params)
    np.testing.assert_array_equal(new["count"], 2 + mask.sum((0, 1)))
    np.testing.assert_array_equal(new["mean"][0], stats["mean"][0])
    wanted = (2 * stats["mean"] + np.where(mask, X, 0).sum((0, 1))) / new["count"]
    np.testing.assert_allclose(new["mean"], wanted, rtol=1e-5)
