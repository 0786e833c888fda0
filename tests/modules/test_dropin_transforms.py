"""BatchNorm under Flax's lifted transforms: output, gradients and state are those of the plain module."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

import bnjax.nnx
from bnjax.linen import BatchNorm as LinenBatchNorm
from bnjax.nnx import BatchNorm as NnxBatchNorm
from tests.kit.comparison import assert_trees_close
from tests.kit.dropin import random

C, LAYERS = 5, 3
X = random(6, 4, C) * 2 + 1
XS = random(LAYERS, 6, 4, C, seed=1) * 2 + 1
POOLED = {"momentum": None, "activation": "relu"}
OPTIONS = [{}, POOLED]


# Within a few roundings of float32: the compiler fuses what is under a transform differently.
assert_close = partial(assert_trees_close, rtol=1e-5, atol=1e-5)


def at(tree, i):
    return jax.tree.map(lambda t: t[i], tree)


def stack(trees):
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


# linen


class Block(nn.Module):
    """A layer and its normalization, of the kind of module that `transform` makes of ours."""

    options: dict | None = None
    transform: object = None

    @nn.compact
    def __call__(self, x):
        cls = self.transform(LinenBatchNorm) if self.transform else LinenBatchNorm
        options = POOLED if self.options is None else self.options
        return x + cls(use_running_average=False, name="norm", **options)(nn.Dense(C, name="dense")(x))


def trained(module, variables, *args):
    """Output, new state and gradients; jitted, with the variables made by another module of the same tree."""

    @jax.jit
    def run(variables, *args):
        def loss(params):
            y, new = module.apply(variables | {"params": params}, *args, mutable="batch_stats")
            return jnp.sum(jnp.sin(jax.tree.leaves(y)[-1])), (y, new)

        grads, outcome = jax.grad(loss, has_aux=True)(variables["params"])
        return grads, outcome

    return run(variables, *args)


def varied(variables):
    """Other values, of which variances stay positive."""
    leaves, structure = jax.tree.flatten(variables)
    leaves = [t + np.asarray(random(*t.shape, seed=i)) ** 2 / 4 for i, t in enumerate(leaves)]
    return jax.tree.unflatten(structure, leaves)


def initial(module, *args):
    """Off their initial values, so that nothing is right by chance."""
    return varied(jax.jit(module.init)(jax.random.key(0), *args))


@pytest.mark.parametrize("options", OPTIONS, ids=["default", "pooled, relu"])
@pytest.mark.parametrize("transform", [nn.jit, nn.remat], ids=["jit", "remat"])
def test_linen_jit_and_remat(transform, options):
    plain, lifted = Block(options), Block(options, transform)
    variables = initial(plain, X)
    assert_close(initial(lifted, X), variables)
    assert_close(trained(lifted, variables, X), trained(plain, variables, X))


class Layer(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        return Block(name="block")(x), None


def test_linen_scan_over_layers():
    scanned = nn.scan(Layer, variable_axes={"params": 0, "batch_stats": 0}, split_rngs={"params": True}, length=LAYERS)
    variables = initial(scanned(), X, None)

    @jax.jit
    def run(variables, y):
        (scanned_y, _), scanned_new = scanned().apply(variables, y, None, mutable="batch_stats")
        states = []
        for i in range(LAYERS):
            (y, _), new = Layer().apply(at(variables, i), y, None, mutable="batch_stats")
            states.append(new)
        return (scanned_y, scanned_new), (y, stack(states))

    assert_close(*run(variables, X))


class Step(nn.Module):
    options: dict

    @nn.compact
    def __call__(self, carry, x):
        return carry, Block(self.options, name="block")(x)


@pytest.mark.parametrize("options", OPTIONS, ids=["default", "pooled, relu"])
def test_linen_scan_over_time_carries_the_state(options):
    """The state must keep its shapes and dtypes for this."""
    scanned = nn.scan(Step, variable_broadcast="params", variable_carry="batch_stats", split_rngs={"params": False})
    variables = initial(Step(options), None, XS[0])

    @jax.jit
    def run(variables, xs):
        (_, scanned_ys), scanned_state = scanned(options).apply(variables, None, xs, mutable="batch_stats")
        state, ys = {"batch_stats": variables["batch_stats"]}, []
        for x in xs:
            (_, y), state = Step(options).apply(variables | state, None, x, mutable="batch_stats")
            ys.append(y)
        return (scanned_ys, scanned_state), (jnp.stack(ys), state)

    assert_close(*run(variables, XS))


def test_linen_vmap_with_states_apart():
    lifted = nn.vmap(Block, variable_axes={"params": 0, "batch_stats": 0}, split_rngs={"params": True})()
    variables = initial(lifted, XS)
    assert_close(trained(lifted, variables, XS), jax.vmap(lambda v, x: trained(Block(), v, x))(variables, XS))


def test_linen_vmap_with_an_axis_name_measures_all():
    """Initialised outside, where the name does not exist."""
    named = Block(POOLED | {"axis_name": "slice"})
    variables = initial(named, XS[0])

    @jax.jit
    def run(variables, xs):
        apply = jax.vmap(lambda v, x: named.apply(v, x, mutable="batch_stats"), (None, 0), axis_name="slice")
        return apply(variables, xs), Block().apply(variables, xs, mutable="batch_stats")

    (y, new), (whole, wanted) = run(variables, XS)
    assert_close((y, at(new, 0)), (whole, wanted))
    assert_close(at(new, 1), wanted)


# nnx


class NnxBlock(nnx.Module):
    """A layer and its normalization."""

    def __init__(self, rngs, options):
        self.dense = nnx.Linear(C, C, rngs=rngs)
        self.norm = NnxBatchNorm(C, rngs=rngs, **options)

    def __call__(self, x):
        return x + self.norm(self.dense(x))


def block(options=POOLED, seed=0):
    module = NnxBlock(nnx.Rngs(seed), options)
    graphdef, state = nnx.split(module)
    return nnx.merge(graphdef, varied(state))


@nnx.jit(static_argnums=2)
def stepped(module, x, call):
    """Output, gradients and the state after it."""

    def loss(module):
        y = call(module, x)
        return jnp.sum(jnp.sin(y)), y

    grads, y = nnx.grad(loss, has_aux=True)(module)
    return y, nnx.to_pure_dict(grads), stats(module)


def plain(module, x):
    return module(x)


jitted = nnx.jit(plain)


def stats(module):
    return nnx.to_pure_dict(nnx.state(module, nnx.BatchStat))


def layers_and_stack():
    """Layers, and one module of the same values stacked."""
    layers = [block(seed=seed) for seed in range(LAYERS)]
    return layers, nnx.merge(nnx.graphdef(layers[0]), stack([nnx.state(layer) for layer in layers]))


@pytest.mark.parametrize("options", OPTIONS, ids=["default", "pooled, relu"])
@pytest.mark.parametrize("transform", [nnx.jit, nnx.remat], ids=["jit", "remat"])
def test_nnx_jit_and_remat(transform, options):
    assert_close(stepped(block(options), X, transform(plain)), stepped(block(options), X, plain))


@pytest.mark.parametrize("options", OPTIONS, ids=["default", "pooled, relu"])
def test_nnx_split_and_merge(options):
    """The functional way: state in, state out, under plain `jax.jit`."""
    graphdef, params, rest = nnx.split(block(options), nnx.Param, ...)

    @jax.jit
    def step(params, rest, x):
        def loss(params):
            module = nnx.merge(graphdef, params, rest, copy=True)
            y = module(x)
            return jnp.sum(jnp.sin(y)), (y, nnx.state(module, nnx.BatchStat))

        grads, (y, state) = jax.grad(loss, has_aux=True)(params)
        return y, nnx.to_pure_dict(grads), nnx.to_pure_dict(state)

    assert_close(step(params, rest, X), stepped(block(options), X, plain))


def test_nnx_scan_over_layers():
    layers, stacked = layers_and_stack()
    y = nnx.jit(nnx.scan(plain, in_axes=(0, nnx.Carry), out_axes=nnx.Carry))(stacked, X)
    wanted = X
    for layer in layers:
        wanted = jitted(layer, wanted)
    assert_close(y, wanted)
    assert_close(stats(stacked), stack([stats(layer) for layer in layers]))


@pytest.mark.parametrize("options", OPTIONS, ids=["default", "pooled, relu"])
def test_nnx_scan_over_time_carries_the_state(options):
    module, other = block(options), block(options)

    @nnx.jit
    @nnx.scan(in_axes=(nnx.Carry, 0), out_axes=(nnx.Carry, 0))
    def over_time(module, x):
        return module, module(x)

    module, ys = over_time(module, XS)
    assert_close(ys, jnp.stack([jitted(other, x) for x in XS]))
    assert_close(stats(module), stats(other))


def test_nnx_vmap_with_states_apart():
    layers, stacked = layers_and_stack()
    y = nnx.jit(nnx.vmap(plain, in_axes=(0, 0)))(stacked, XS)
    assert_close(y, jnp.stack([jitted(layer, x) for layer, x in zip(layers, XS, strict=True)]))
    assert_close(stats(stacked), stack([stats(layer) for layer in layers]))


def test_nnx_vmap_with_an_axis_name_measures_all():
    module, whole = block(POOLED | {"axis_name": "slice"}), block()
    y = nnx.jit(nnx.vmap(plain, in_axes=(None, 0), axis_name="slice"))(module, XS)
    assert_close(y, jitted(whole, XS))
    assert_close(stats(module), stats(whole))


# Gradients through the running state


@pytest.mark.parametrize("api", ["linen", "nnx"])
def test_gradients_at_evaluation(api):
    """Frozen statistics are constants; x, scale and bias have their gradients."""
    mean, var, scale, bias = (random(C, seed=i) for i in range(4))
    var = var**2 + 0.5

    def apply(x, scale, bias):
        if api == "linen":
            module = LinenBatchNorm(use_running_average=True)
            return module.apply(
                {"params": {"scale": scale, "bias": bias}, "batch_stats": {"mean": mean, "var": var}}, x
            )
        module = NnxBatchNorm(C, rngs=nnx.Rngs(0))
        nnx.update(module, {"scale": scale, "bias": bias, "mean": mean, "var": var})
        return module(x, use_running_average=True)

    dy = random(*X.shape, seed=8)
    _, pull = jax.vjp(apply, X, scale, bias)
    dx, dscale, dbias = jax.jit(pull)(dy)
    rstd = 1 / np.sqrt(np.asarray(var, np.float64) + 1e-5)
    np.testing.assert_allclose(dx, dy * (scale * rstd)[None, None], rtol=1e-5)
    np.testing.assert_allclose(dscale, (dy * np.asarray(X - mean[None, None])).sum((0, 1)) * rstd, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(dbias, dy.sum((0, 1)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["layer", "rms", "group", "instance", "positional", "pixel", "scale", "grn", "dyt"])
def test_nnx_vmap_of_a_norm_itself(name):
    """Arguments of the call that are by keyword only would be refused, as with Flax's LayerNorm."""
    options = {"num_groups": 2} if name == "group" else {}
    norm = bnjax.nnx.make_norm(name, 6, rngs=nnx.Rngs(0), **options)
    x = jax.random.normal(jax.random.key(0), (5, 2, 3, 6))
    np.testing.assert_allclose(nnx.vmap(norm)(x), jnp.stack([norm(part) for part in x]), rtol=2e-5, atol=2e-6)
