"""Gradient accumulation: what a plain loop over the micro-batches gives, and one step of the running state."""

import functools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from jax import lax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import bnjax
from bnjax import linen as bl
from bnjax import nnx as bx
from tests.kit import comparison, devices, references
from tests.kit.programs import compiled, operations

K, EXAMPLES, FEATURES = 3, 12, 4
MASK = np.random.default_rng(1).random((EXAMPLES, 1)) < np.linspace(0.3, 1, EXAMPLES)[:, None]
NETS = {  # a mask, and the options of the two norms
    "masked": (MASK, {"momentum": 0.9, "unbiased": True}, {"momentum": None}),
    "plain": (None, {"momentum": None}, {"momentum": 0.9, "virtual_batch_size": 2}),
}
PLAIN = ({"momentum": 0.9}, {"momentum": 0.9})


def batch():
    """Micro-batches differ in their means."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(EXAMPLES, FEATURES)) + np.arange(EXAMPLES)[:, None] % K + 2
    return x.astype(np.float32)


class LinenNet(nn.Module):
    """A norm of the input itself, whose moments are known, then one of features."""

    first: dict
    second: dict

    @nn.compact
    def __call__(self, x, mask=None):
        norm = partial(bl.BatchNorm, use_running_average=False)
        x = norm(name="a", **self.first)(x, mask=mask)
        return norm(name="b", **self.second)(nn.Dense(3, name="dense")(x), mask=mask)


class NnxNet(nnx.Module):
    def __init__(self, first, second, rngs):
        self.a = bx.BatchNorm(FEATURES, **first, rngs=rngs)
        self.dense = nnx.Linear(FEATURES, 3, rngs=rngs)
        self.b = bx.BatchNorm(3, **second, rngs=rngs)

    def __call__(self, x, mask=None):
        return self.b(self.dense(self.a(x, mask=mask)), mask=mask)


def objective(y, mask):
    valid = jnp.ones((len(y), 1)) if mask is None else mask
    return ((y + 0.3) ** 3 * valid).sum() / jnp.maximum(valid.sum(), 1)


def linen_net(options, x, mask):
    """Gradients and moments of a micro-batch, and the running statistics: what each API makes of a net."""
    net = LinenNet(*options)
    variables = jax.jit(net.init)(jax.random.key(0), x, mask)
    assert set(variables) == {"params", "batch_stats"}

    def f(part):
        def loss(params):
            whole = {**variables, "params": params}
            y, new = net.apply(whole, part["x"], part["mask"], mutable="batch_moments")
            return objective(y, part["mask"]), new["batch_moments"]

        return jax.grad(loss, has_aux=True)(variables["params"])

    return f, variables["batch_stats"]


def nnx_net(options, x, mask):
    graph, state = nnx.split(NnxNet(*options, nnx.Rngs(0)))

    def f(part):
        def loss(net):
            return objective(net(part["x"], part["mask"]), part["mask"])

        with_moments = nnx.capture(loss, bx.BatchMoments)
        return nnx.grad(with_moments, has_aux=True)(nnx.merge(graph, state, copy=True))

    return f, nnx.state(nnx.merge(graph, state), nnx.BatchStat)


APIS = {"linen": linen_net, "nnx": nnx_net}


def as_dict(tree):
    return nnx.to_pure_dict(tree) if isinstance(tree, nnx.State) else tree


assert_trees_close = partial(comparison.assert_trees_close, rtol=2e-5, atol=2e-6)


def stepped(seen, momentum, unbiased=False, virtual_batch_size=None):
    """The running state after one step from mean 0 and variance 1."""
    if momentum is None:
        return {"count": seen.count, "mean": seen.mean, "var": seen.var}
    var = seen.var * (seen.count / (seen.count - 1) if unbiased else 1)
    return {"mean": (1 - momentum) * seen.mean, "var": momentum + (1 - momentum) * var}


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("api", APIS)
def test_it_is_a_loop_with_one_step_of_the_state(api, net):
    mask, *options = NETS[net]
    x = batch()
    f, old = APIS[api](options, x, mask)
    data = {"x": x, "mask": mask}
    grads, moments = jax.jit(lambda data: bnjax.accumulate(f, data, K))(data)
    new = bnjax.update_batch_stats(old, moments)
    assert jax.tree.structure(new) == jax.tree.structure(old)

    one = jax.jit(f)
    results = [one(jax.tree.map(lambda t, i=i: t[i::K], data)) for i in range(K)]
    assert_trees_close(grads, jax.tree.map(lambda *g: sum(g) / K, *(g for g, _ in results)))

    new = as_dict(new)
    assert_trees_close(new["a"], stepped(references.moments(x, 0, mask), **options[0]))
    stacked = jax.tree.map(lambda *t: np.stack(t), *(as_dict(m)["b"]["batch"][0] for _, m in results))
    n = stacked.count[:, None]
    mean = (n * stacked.mean).sum(0) / n.sum()
    var = (n * (stacked.var + (stacked.mean - mean) ** 2)).sum(0) / n.sum()
    assert_trees_close(new["b"], stepped(references.Measured(np.full(3, n.sum()), mean, var), **options[1]))


def test_one_micro_batch_is_a_plain_step():
    x = batch()
    net = LinenNet(*PLAIN)
    variables = jax.jit(net.init)(jax.random.key(0), x)
    f, old = linen_net(PLAIN, x, None)
    _, moments = jax.jit(lambda data: bnjax.accumulate(f, data, 1))({"x": x, "mask": None})
    apply = jax.jit(net.apply, static_argnames="mutable")
    _, plain = apply(variables, x, mutable="batch_stats")
    assert_trees_close(bnjax.update_batch_stats(old, moments), plain["batch_stats"], rtol=1e-6, atol=1e-7)
    _, both = apply(variables, x, mutable=True)
    assert_trees_close(both["batch_stats"], plain["batch_stats"], rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(both["batch_moments"]["a"]["batch"][0].mean, moments["a"]["batch"][0].mean, rtol=1e-6)


@functools.cache
def alone():
    """On one device."""
    f, _ = linen_net(PLAIN, batch(), MASK)
    return f, jax.jit(lambda data: bnjax.accumulate(f, data, K))({"x": batch(), "mask": MASK})


LAYOUTS = ["jit, Auto", "jit, Explicit", "shard_map", "shard_map, check_vma=False"]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_over_devices(layout):
    """The same numbers, and a micro-batch is moved nowhere: all that crosses devices is added up."""
    x, mask = batch(), MASK
    data = {"x": x, "mask": mask}
    f, want = alone()
    kind = AxisType.Explicit if "Explicit" in layout else AxisType.Auto
    mesh = devices.mesh(2, kind=kind)
    if "shard_map" in layout:
        check = "False" not in layout
        net = LinenNet(*({**options, "axis_name": "d"} for options in PLAIN))
        variables = jax.jit(net.init)(jax.random.key(0), x, mask)

        def local(part):
            n = lax.psum(part["mask"].sum(), "d")

            def loss(params):
                y, new = net.apply({**variables, "params": params}, part["x"], part["mask"], mutable="batch_moments")
                return ((y + 0.3) ** 3 * part["mask"]).sum() / n, new["batch_moments"]

            grads, moments = jax.grad(loss, has_aux=True)(variables["params"])
            return (grads if check else lax.psum(grads, "d")), moments

        run = jax.shard_map(
            lambda data: bnjax.accumulate(local, data, K), mesh=mesh, in_specs=P("d"), out_specs=P(), check_vma=check
        )
    else:
        run = lambda data: bnjax.accumulate(f, data, K)  # noqa: E731
    with jax.set_mesh(mesh):
        data = jax.device_put(data, NamedSharding(mesh, P("d")))
        program = compiled(jax.jit(run), data)
        assert_trees_close(program(data), want)
    assert set(operations(program)) == {"all-reduce"}


def test_means_over_the_valid_are_weighed():
    """The gradient of the masked mean is that of the whole batch, one micro-batch empty, its mean NaN."""
    x, mask = batch(), MASK.copy()
    mask[1::K] = False

    def f(part):
        def loss(w):
            return (((part["x"] @ w) ** 2)[:, None] * part["mask"]).sum() / part["mask"].sum()

        mean = jax.grad(loss)(jnp.ones(FEATURES))
        return jnp.where(part["mask"].any(), mean, jnp.nan)  # 0 / 0, which the compiler might take for 0

    data = {"x": x, "mask": mask}
    got = jax.jit(lambda data: bnjax.accumulate(f, data, K, weight=lambda part: part["mask"].sum()))(data)
    np.testing.assert_allclose(got, f(data), rtol=1e-5)
    assert np.isnan(bnjax.accumulate(f, data, K)).all()
    none = bnjax.accumulate(f, {"x": x, "mask": mask & False}, K, weight=lambda part: part["mask"].sum())
    np.testing.assert_array_equal(none, 0)


def test_dtypes_come_back_and_sums_are_wider():
    """A sum in bfloat16 would stay at 256."""
    small = bnjax.accumulate(
        lambda x: {"b": x.sum().astype(jnp.bfloat16), "i": x.sum().astype(int)}, jnp.ones(512), 512
    )
    assert small["b"].dtype == jnp.bfloat16
    assert small["b"] == 1
    mean = bnjax.accumulate(lambda x: x[0].astype(int), jnp.arange(4.0), 4)
    assert mean == 1.5


def test_numbers_of_python_are_averaged_too():
    mean = bnjax.accumulate(lambda x: {"rate": 0.5, "examples": len(x), "sum": x.sum()}, jnp.arange(6.0), 2)
    assert jax.tree.map(float, mean) == {"rate": 0.5, "examples": 3.0, "sum": 7.5}


def test_a_norm_called_twice_takes_two_steps_in_order():
    x = batch()

    class Twice(nn.Module):
        @nn.compact
        def __call__(self, x):
            norm = bl.BatchNorm(use_running_average=False, momentum=0.9)
            return norm(norm(x) * 3 + 1)

    net = Twice()

    @jax.jit
    def run(key):
        variables = net.init(key, x)
        _, new = net.apply(variables, x, mutable=["batch_stats", "batch_moments"])
        return bnjax.update_batch_stats(variables["batch_stats"], new["batch_moments"]), new["batch_stats"]

    assert_trees_close(*run(jax.random.key(0)), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("options", [{}, {"momentum": None}, {"unbiased": True}], ids=str)
def test_stacked_norms(options):
    """A scan over layers stacks their states and their moments."""
    x, mask = batch(), MASK

    class Layer(nn.Module):
        @nn.compact
        def __call__(self, x, _):
            y = bl.BatchNorm(use_running_average=False, **options)(nn.Dense(FEATURES)(x), mask=mask)
            return nn.relu(y) + x, None

    collections = {"params": 0, "batch_stats": 0, "batch_moments": 0}
    net = nn.scan(Layer, variable_axes=collections, split_rngs={"params": True}, length=2)()

    @jax.jit
    def run(key):
        variables = net.init(key, x, None)
        _, new = net.apply(variables, x, None, mutable=["batch_stats", "batch_moments"])
        return bnjax.update_batch_stats(variables["batch_stats"], new["batch_moments"]), new["batch_stats"]

    assert_trees_close(*run(jax.random.key(0)), rtol=1e-6, atol=1e-7)


def test_features_of_several_axes_and_complex_ones():
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(6, 2, 3)) + 1j * rng.normal(size=(6, 2, 3))).astype(np.complex64)
    linen = bl.BatchNorm(use_running_average=False, axis=(1, 2), use_scale=False, use_bias=False)

    @jax.jit
    def run(x):
        variables = linen.init(jax.random.key(0), x)
        f = lambda x: linen.apply(variables, x, mutable="batch_moments")[1]["batch_moments"]  # noqa: E731
        new = bnjax.update_batch_stats(variables["batch_stats"], bnjax.accumulate(f, x, 2))
        return new, linen.apply(variables, x, mutable="batch_stats")[1]["batch_stats"]

    got, plain = run(x)
    assert got["mean"].dtype == plain["mean"].dtype == jnp.complex64
    assert_trees_close(got, plain)

    layer = bx.BatchNorm(6, axis=(1, 2), use_scale=False, use_bias=False, rngs=nnx.Rngs(0))
    old = nnx.state(layer, nnx.BatchStat)
    old = jax.tree.map(jnp.copy, old)
    _, moments = nnx.capture(layer, bx.BatchMoments)(x)
    got = bnjax.update_batch_stats(old, moments)
    assert_trees_close(nnx.to_pure_dict(got), nnx.to_pure_dict(nnx.state(layer, nnx.BatchStat)))


def test_nnx_modules_are_as_before_outside_of_a_capture():
    layer = bx.BatchNorm(FEATURES, rngs=nnx.Rngs(0))
    before = nnx.graphdef(layer)
    layer(batch())
    _, others = nnx.capture(layer, nnx.Intermediate)(batch())
    assert nnx.graphdef(layer) == before
    assert not others


STEPPED = [n for n, row in bnjax.NORMS.items() if row.takes_running_average and row.module != "BatchNorm"]


@pytest.mark.parametrize("name", STEPPED)
def test_norms_that_hand_out_no_moments_say_so(name):
    """And do not leave their running state as it is without a word."""
    x, options = jnp.ones((2, 3, FEATURES)), {"num_groups": 2} if name == "bcn" else {}
    words = f"`{bnjax.NORMS[name].module}` hands out no moments.*"
    linen = bl.make_norm(name, **options)()
    variables = jax.eval_shape(partial(linen.init, use_running_average=False), jax.random.key(0), x)
    with pytest.raises(ValueError, match=words + 'mutable="batch_stats"'):
        jax.eval_shape(partial(linen.apply, use_running_average=False, mutable="batch_moments"), variables, x)
    jax.eval_shape(partial(linen.apply, use_running_average=True, mutable="batch_moments"), variables, x)
    model = bx.make_norm(name, FEATURES, **options, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=words + "nnx.capture"):
        nnx.capture(model, bx.BatchMoments)(x)
    model.eval()
    assert not nnx.capture(model, bx.BatchMoments)(x)[1]


def test_the_recurrent_cell_hands_out_what_linen_lifts():
    """In `nn.RNN` the moments of each step, if their collection is named too; in nnx none."""
    x = jnp.asarray(np.random.default_rng(0).normal(size=(5, 3, 2)), jnp.float32)
    rnn = nn.RNN(bl.BatchNormLSTMCell(4), variable_axes={"batch_stats": 0, "batch_moments": 0})
    variables = rnn.init(jax.random.key(0), x)
    _, plain = rnn.apply(variables, x, mutable="batch_stats")
    _, new = rnn.apply(variables, x, mutable="batch_moments")
    stats = bnjax.update_batch_stats(variables["batch_stats"], new["batch_moments"])
    assert_trees_close(stats, plain["batch_stats"], rtol=1e-6)
    cell = bx.BatchNormLSTMCell(2, 4, max_steps=3, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"`BatchNormLSTMCell` hands out no moments.*nnx\.capture"):
        nnx.capture(cell, bx.BatchMoments)(cell.initialize_carry((5, 2)), x[:, 0])


def test_micro_batches_are_strided():
    parts = bnjax.micro_batches({"x": np.arange(24).reshape(12, 2), "key": jax.random.split(jax.random.key(0), 12)}, 4)
    np.testing.assert_array_equal(parts["x"][1], [[2, 3], [10, 11], [18, 19]])
    assert parts["key"].shape == (4, 3)


def test_bad_input():
    x = batch()
    for k in (0, 5, 2.0, -3):
        with pytest.raises(ValueError, match="`k` must be a positive integer that divides"):
            bnjax.accumulate(jnp.sum, x, k)
    with pytest.raises(ValueError, match=r"`k`.*lengths \[6, 12\]"):
        bnjax.accumulate(lambda b: b["x"].sum(), {"x": x, "mask": MASK[:6]}, 2)
    with pytest.raises(ValueError, match=r"`weight` must return a number.*\(4, 4\)"):
        bnjax.accumulate(jnp.sum, x, 3, weight=lambda part: part)
    mesh = devices.mesh(4, kind=AxisType.Explicit)
    sharded = jax.device_put(x, NamedSharding(mesh, P("d")))
    with pytest.raises(ValueError, match="`k` must leave each of the 4 shards"):
        bnjax.micro_batches(sharded, 6)
    layer = bl.BatchNorm(use_running_average=False)
    variables = layer.init(jax.random.key(0), x)
    _, new = layer.apply(variables, x, mutable="batch_moments")
    with pytest.raises(ValueError, match=r"`batch_stats` has no `mean` and `var` at the top.*norm/mean"):
        bnjax.update_batch_stats({"norm": variables["batch_stats"]}, new["batch_moments"])
    with pytest.raises(ValueError, match="`batch_moments` must hold what the modules handed out"):
        bnjax.update_batch_stats(variables["batch_stats"], {"batch": (bnjax.Moments.empty((4,)),)})
    wider = jax.tree.map(lambda t: jnp.repeat(t, 2), variables["batch_stats"])
    with pytest.raises(ValueError, match=r"`batch_stats` has a `mean` of shape \(8,\) at the top.*\(4,\)"):
        bnjax.update_batch_stats(wider, new["batch_moments"])
    with pytest.raises(ValueError, match=r"`momentum` must be a number.*traced"):
        jax.jit(lambda m: layer.clone(momentum=m).apply(variables, x, mutable="batch_moments"))(0.9)


@pytest.mark.parametrize("nothing", [{}, {"norm": {}}, nnx.State({}), None], ids=repr)
def test_no_moments_at_all_are_a_mistake(nothing):
    """The model was evaluated, or nothing was asked of it: the running state would stay as it is, in silence."""
    stats = {"encoder": {"norm": {"mean": jnp.zeros(2), "var": jnp.ones(2)}}, "other": jnp.ones(3)}
    with pytest.raises(
        ValueError, match=r"`batch_moments` holds no moments .* at encoder/norm.*mutable=.*nnx\.capture"
    ):
        bnjax.update_batch_stats(stats, nothing)
    for without in ({}, {"other": stats["other"]}):
        assert bnjax.update_batch_stats(without, nothing) == without
