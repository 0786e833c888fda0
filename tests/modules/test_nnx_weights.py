"""Wrappers of layers in nnx: a call changes nothing of the layer but what the layer itself would change."""

import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import errors, nnx
from flax import linen as nn

import bnjax.linen as bnn
import bnjax.nnx as bnnx
from tests.kit import formulas
from tests.kit.comparison import assert_close, wide

WRAPPERS = {
    "WeightNorm": "weight", "WeightStandardization": "ws", "ScaledWeightStandardization": "scaled_ws",
    "SpectralNorm": "spectral",
}  # fmt: skip
each = pytest.mark.parametrize("name", WRAPPERS)
X = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)


def wrapped(name, layer):
    more = {"n_steps": 50} if name == "SpectralNorm" else {}
    return getattr(bnnx, name)(layer, rngs=nnx.Rngs(1), **more)


def normalized(name, w):
    """In float64, by numpy; scales are ones."""
    return formulas.weight(WRAPPERS[name], wide(w), 1.0)


class Block(nnx.Module):
    """All that a layer may do in a call: it writes state, takes keys, sows, and counts its calls."""

    def __init__(self, rngs):
        linear = partial(nnx.Linear, 4, 4, use_bias=False, rngs=rngs)
        self.linear, self.norm, self.dropout = linear(), nnx.BatchNorm(4, rngs=rngs), nnx.Dropout(0.5, rngs=rngs)
        self.many, self.named = nnx.List([linear(), jnp.tanh]), nnx.Dict(a=linear())
        self.plain = nnx.data({"b": [linear()], "c": (linear(), 3)})
        self.again = self.named.a  # one module at two places, and one parameter at two
        self.tied = linear()
        self.tied.kernel = self.linear.kernel
        self.child = Child(self, rngs)
        self.calls, self.seen = 0, nnx.data(None)

    def __call__(self, x):
        self.calls += 1
        self.seen = self.tied
        x = self.norm(self.linear(x))
        for layer in (*self.many, self.named["a"], self.plain["b"][0], self.plain["c"][0], self.again, self.tied):
            x = layer(x)
        self.sow(nnx.Intermediate, "middle", x)
        return self.dropout(self.child(x))


class Child(nnx.Module, pytree=False):
    """No pytree, and in a circle: it holds its parent."""

    def __init__(self, parent, rngs):
        self.parent, self.linear = parent, nnx.Linear(4, 4, use_bias=False, rngs=rngs)

    def __call__(self, x):
        return self.linear(x) + self.parent.tied(x)


def variables(module):
    return {path: v for path, v in nnx.iter_graph(module) if isinstance(v, nnx.Variable)}


def values(module):
    def of(variable):
        value = variable.get_value()
        return jax.random.key_data(value) if isinstance(variable, nnx.RngKey) else value

    return jax.tree.map(np.asarray, {path: of(v) for path, v in variables(module).items()})


def kernels(module):
    return {path: value for path, value in values(module).items() if path[-1] == "kernel"}


@pytest.mark.filterwarnings("ignore:Using 'Module.sow")
@each
def test_a_layer_changes_what_it_would_by_itself_and_nothing_else(name):
    layer, plain = Block(nnx.Rngs(0)), Block(nnx.Rngs(0))
    wrapper, before = wrapped(name, layer), variables(layer)
    old = kernels(layer)
    for p in {id(v): v for path, v in variables(plain).items() if path[-1] == "kernel"}.values():
        p[...] = jnp.asarray(normalized(name, p[...]), jnp.float32)
    for calls in (1, 2):
        assert_close(wrapper(X), np.float64(plain(X)), 1e-5)
        after = variables(layer)
        assert {path: id(v) for path, v in after.items() if path in before} == {p: id(v) for p, v in before.items()}
        assert len(after) == len(before) + 1
        got, want = values(layer), values(plain)
        assert_close(
            {k: v for k, v in got.items() if k not in old}, {k: v for k, v in want.items() if k not in old}, 1e-5
        )
        jax.tree.map(np.testing.assert_array_equal, kernels(layer), old)
        assert layer.calls == calls
        assert layer.seen is layer.tied
        assert layer.child.parent is layer
        assert layer.again is layer.named.a
        assert len(layer.middle.get_value()) == calls


@each
def test_an_error_in_the_layer_leaves_all_as_it_was(name):
    class Fails(nnx.Module):
        def __init__(self):
            self.linear, self.calls = nnx.Linear(4, 4, rngs=nnx.Rngs(0)), 0

        def __call__(self, x):
            self.calls += 1
            raise RuntimeError(self.linear(x).shape)

    wrapper = wrapped(name, Fails())
    before = variables(wrapper), values(wrapper)
    with pytest.raises(RuntimeError, match=r"\(5, 4\)"):
        wrapper(X)
    assert variables(wrapper) == before[0]
    jax.tree.map(np.testing.assert_array_equal, values(wrapper), before[1])
    assert wrapper.layer_instance.calls == 0


# Transformations


def scan(f):
    return lambda x: jax.lax.scan(lambda carry, row: (carry, f(row[None])[0]), 0, x)[1]


CLOSED_OVER = {
    "jit": jax.jit,
    "vmap": lambda f: jax.vmap(lambda row: f(row[None])[0]),
    "scan": scan,
    "cond": lambda f: lambda x: jax.lax.cond(x.sum() > -1e9, f, lambda x: 0 * f(x), x),
    "remat": jax.checkpoint,
    "grad": lambda f: lambda x: jax.grad(lambda shift: (f(x) * shift).sum())(jnp.ones_like(X)),
}


CLOSED = (
    [("WeightNorm", t) for t in CLOSED_OVER]
    + [("SpectralNorm", t) for t in CLOSED_OVER]
    + [(n, "jit") for n in [*WRAPPERS][1:3]]
)


@pytest.mark.parametrize(("name", "transformation"), CLOSED)
def test_a_transformation_of_jax_may_close_over_a_wrapper(name, transformation):
    wrapper = wrapped(name, nnx.Linear(4, 4, rngs=nnx.Rngs(0)))
    call = {"update_stats": False} if name == "SpectralNorm" else {}
    before = values(wrapper)
    y = CLOSED_OVER[transformation](lambda x: wrapper(x, **call))(jnp.asarray(X))
    assert_close(y, X @ normalized(name, wrapper.layer_instance.kernel[...]), 1e-5)
    jax.tree.map(np.testing.assert_array_equal, values(wrapper), before)


def test_spectral_norm_says_what_to_do_where_it_cannot_keep_its_state():
    wrapper = wrapped("SpectralNorm", nnx.Linear(4, 4, rngs=nnx.Rngs(0)))
    before = values(wrapper)
    with pytest.raises(errors.TraceContextError) as error:
        jax.jit(wrapper)(X)
    assert "Call it with `update_stats=False` there" in error.value.__notes__[0]
    jax.tree.map(np.testing.assert_array_equal, values(wrapper), before)
    wrapper.eval()
    assert_close(jax.jit(wrapper)(X), X @ normalized("SpectralNorm", wrapper.layer_instance.kernel[...]), 1e-5)


@each
def test_transformations_of_nnx(name):
    """The module is an argument, and is written."""
    wrapper, other = (wrapped(name, nnx.Linear(4, 4, use_bias=False, rngs=nnx.Rngs(0))) for _ in range(2))
    y = wrapper(X)
    assert_close(nnx.jit(lambda m, x: m(x))(other, X), np.float64(y))
    assert_close(values(other), values(wrapper), 1e-5)
    want = nnx.grad(lambda m: (m(X) ** 2).sum())(wrapper)
    got = nnx.grad(nnx.remat(lambda m: (m(X) ** 2).sum()))(other)
    assert_close(nnx.to_pure_dict(got), nnx.to_pure_dict(want), 1e-5)
    assert np.abs(want["layer_instance"]["kernel"][...]).max() > 0 or name == "SpectralNorm"

    @nnx.vmap(in_axes=0)
    def stack(key):
        return wrapped(name, nnx.Linear(4, 4, use_bias=False, rngs=nnx.Rngs(params=key)))

    both = stack(jax.random.split(jax.random.key(0), 2))
    w = [normalized(name, k) for k in both.layer_instance.kernel[...]]
    assert_close(nnx.vmap(lambda m, x: m(x), in_axes=(0, None))(both, X), np.stack([X @ k for k in w]), 1e-5)
    one_after_another = nnx.scan(lambda m, x: m(x), in_axes=(0, nnx.Carry), out_axes=nnx.Carry)
    assert_close(one_after_another(both, jnp.asarray(X)), X @ w[0] @ w[1], 1e-5)


def test_a_wrapper_of_a_wrapper():
    """The inner one has a state, and normalizes what the outer one has."""
    linear = nnx.Linear(4, 4, use_bias=False, rngs=nnx.Rngs(0))
    wrapper, old = wrapped("WeightNorm", wrapped("SpectralNorm", linear)), np.asarray(linear.kernel[...])
    inner = normalized("WeightNorm", old)
    assert_close(wrapper(X), X @ normalized("SpectralNorm", inner), 1e-5)
    sigma = wrapper.layer_instance.batch_stats["kernel", "sigma"][...]
    np.testing.assert_allclose(sigma, np.linalg.svd(inner)[1][0], rtol=1e-5)
    np.testing.assert_array_equal(linear.kernel[...], old)


def test_moments_are_captured_from_within_a_layer():
    class Layer(nnx.Module):
        def __init__(self):
            self.linear, self.norm = nnx.Linear(4, 4, rngs=nnx.Rngs(0)), bnnx.BatchNorm(4, rngs=nnx.Rngs(0))

        def __call__(self, x):
            return self.norm(self.linear(x))

    wrapper = wrapped("WeightNorm", Layer())
    _, captured = nnx.capture(wrapper, bnnx.BatchMoments)(X)
    want = X @ normalized("WeightNorm", wrapper.layer_instance.linear.kernel[...])
    assert_close(captured["layer_instance"]["norm"]["batch"][0].mean, want.mean(0), 1e-5)


# Threads


THREADS = 4
INSIDE = threading.Barrier(THREADS)


class Meeting(nnx.Linear):
    """All threads are in the call at once."""

    def __call__(self, x):
        INSIDE.wait(timeout=60)
        return super().__call__(x)


class LinenMeeting(nn.Dense):
    def __call__(self, x):
        if not self.is_initializing():
            INSIDE.wait(timeout=60)
        return super().__call__(x)


def in_threads(f):
    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(f, range(5 * THREADS)))


@each
@pytest.mark.parametrize("api", ["linen", "nnx"])
def test_four_threads_are_as_one(name, api):
    wrapper = wrapped(name, Meeting(4, 4, use_bias=False, rngs=nnx.Rngs(0)))
    old = np.asarray(wrapper.layer_instance.kernel[...])
    more, call = ({"n_steps": 50}, {"update_stats": True}) if name == "SpectralNorm" else ({}, {})
    if api == "nnx":
        ys = in_threads(lambda _: wrapper(X, **call))
        np.testing.assert_array_equal(wrapper.layer_instance.kernel[...], old)
    else:
        layer = getattr(bnn, name)(LinenMeeting(4, use_bias=False, name="layer"), **more)
        start = layer.init(jax.random.key(0), X, **call)
        params = jax.tree.map(lambda t: jnp.ones(4) if t.ndim == 1 else jnp.asarray(old), start["params"])
        ys = in_threads(lambda _: layer.apply(start | {"params": params}, X, **call, mutable="batch_stats")[0])
    assert_close(ys, [X @ normalized(name, old)] * len(ys), 1e-5)


# Tables


CELLS = ("BatchNormLSTMCell", "LayerNormGRUCell", "LayerNormLSTMCell")
MODULES = [name for name, thing in vars(bnnx).items() if isinstance(thing, type) and issubclass(thing, nnx.Module)]


def example(name):
    """A module of that class, and the arguments of a call."""
    rngs = nnx.Rngs(0)
    if name in WRAPPERS:
        return wrapped(name, nnx.Linear(4, 4, rngs=rngs)), (X,)
    if name in CELLS:
        cell = getattr(bnnx, name)(4, 3, rngs=rngs, **({"max_steps": 2} if name == CELLS[0] else {}))
        return cell, (cell.initialize_carry(X.shape), X)
    more = {"num_groups": 2} if name in ("GroupNorm", "EvoNormS0", "BatchChannelNorm") else {}
    more = {"fraction": 0.5} if name == "PartialRMSNorm" else more
    return getattr(bnnx, name)(4, rngs=rngs, **more), (X[:, None],)


@pytest.mark.parametrize("name", MODULES)
def test_tabulate_and_display(name, capsys):
    """A row for each module that is called; afterwards every class is as it was."""
    module, inputs = example(name)
    table = nnx.tabulate(module, *inputs, console_kwargs={"force_terminal": False, "width": 200})
    assert f"{name} Summary" in table
    paths = [line.split("│")[1].strip() for line in table.splitlines() if line.startswith("│")]
    assert set(paths) <= {""} | {part for part in vars(module) if isinstance(getattr(module, part), nnx.Module)}
    nnx.display(module)
    assert name in capsys.readouterr().out
    assert jax.tree.leaves(module(*inputs))
