"""The memory switch: the same numbers, of which less is kept."""

from functools import partial

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn
from flax import nnx
from jax.sharding import PartitionSpec as P

import bnjax
from bnjax import linen as bnn
from bnjax import nnx as bnnx
from bnjax._core.remat import together
from tests.kit import devices
from tests.kit.comparison import assert_trees_close

X = jax.random.normal(jax.random.key(0), (16, 6))


class Unit(nn.Module):
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x, mask=None):
        for _ in range(2):
            y = nn.Dense(6, use_bias=False)(x)
            x = nn.relu(bnn.BatchNorm(use_running_average=False, axis_name=self.axis_name)(y, mask=mask)) + x
        return x


class Net(nn.Module):
    unit: type[nn.Module]
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x, mask=None):
        for i in range(2):
            x = self.unit(self.axis_name, name=f"unit{i}")(x, mask)
        return x


def loss(net, variables, x, mask=None):
    y, state = net.apply(variables, x, mask, mutable=["batch_stats"])
    return (y * jnp.cos(y)).mean(), state["batch_stats"]


def value_and_grads(net, variables, x, mask=None):
    def of_params(params, x):
        return loss(net, {**variables, "params": params}, x, mask)

    return jax.value_and_grad(of_params, (0, 1), has_aux=True)(variables["params"], x)


assert_same = partial(assert_trees_close, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("masked", [False, True])
def test_linen_computes_the_same(masked, compile_quickly):
    mask = (jnp.arange(16) % 3 > 0)[:, None] if masked else None
    plain, switched = Net(Unit), Net(bnn.remat(Unit))
    variables = plain.init(jax.random.key(1), X)
    assert jax.tree.structure(variables) == jax.tree.structure(switched.init(jax.random.key(1), X))
    want = jax.jit(lambda v: value_and_grads(plain, v, X, mask))(variables)
    assert_same(jax.jit(lambda v: value_and_grads(switched, v, X, mask))(variables), want)


def test_nnx_computes_the_same(compile_quickly):
    class Layer(nnx.Module):
        def __init__(self, rngs):
            self.dense = nnx.Linear(6, 6, use_bias=False, rngs=rngs)
            self.norm = bnnx.BatchNorm(6, activation="relu", rngs=rngs)

        def __call__(self, x):
            return self.norm(self.dense(x), residual=x)

    def of(call):
        layer = Layer(nnx.Rngs(0))
        value, grads = nnx.value_and_grad(lambda layer, x: (call(layer, x) ** 2).mean())(layer, X)
        return value, nnx.to_pure_dict(grads), nnx.to_pure_dict(nnx.state(layer))

    want = of(Layer.__call__)
    assert_same(of(bnnx.remat(Layer.__call__)), want)
    assert float(jnp.abs(want[2]["norm"]["mean"]).max()) > 0


def layer(w, x):
    y, _ = bnjax.batch_norm(x @ w, bnjax.Moments(jnp.zeros(()), jnp.zeros(6), jnp.ones(6)), activation="relu")
    return y


W = jax.random.normal(jax.random.key(2), (6, 6))


def test_derivatives_of_the_function_of_any_kind(compile_quickly):
    switched = bnjax.remat(layer)
    f, g = (lambda w, h=h: (h(w, X) ** 3).sum() for h in (layer, switched))
    assert_same(jax.grad(g)(W), jax.grad(f)(W))
    assert_same(jax.jvp(g, (W,), (W[::-1],)), jax.jvp(f, (W,), (W[::-1],)))
    assert_same(jax.grad(lambda w: jnp.vdot(jax.grad(g)(w), W))(W), jax.grad(lambda w: jnp.vdot(jax.grad(f)(w), W))(W))


def test_less_is_kept():
    """Eight layers under `lax.scan`, where the CPU's compiler cannot put off or bring forward what it likes."""
    many, x = jnp.zeros((8, 2, 6, 6)), jnp.zeros((512, 6))

    def memory(unit):
        def total(ws, x):
            return (jax.lax.scan(lambda x, w: (unit(w, x), None), x, ws)[0] ** 2).sum()

        analysis = jax.jit(jax.grad(total)).lower(many, x).compile().memory_analysis()
        return analysis.temp_size_in_bytes / (x.size * x.dtype.itemsize)

    def two(ws, x):
        return jnp.tanh(layer(ws[1], jnp.tanh(layer(ws[0], x))))

    # For each of 16 norms its input, the output and tanh of that; against the inputs, and the input of each pair.
    assert memory(two) > 3 * 16
    assert memory(bnjax.remat(two)) < 2 * 16


def test_moments_are_not_measured_again():
    """In the backward pass of two norms: two sums for each, and no more for the moments."""

    def sums(f):
        text = jax.jit(jax.grad(lambda w: (f(w, X) ** 2).sum())).lower(W).compile().as_text()
        return text.count(" reduce(")

    twice = bnjax.remat(lambda w, x: layer(w, layer(w, x)))
    again = jax.checkpoint(lambda w, x: layer(w, layer(w, x)))
    assert sums(twice) < sums(again)


@pytest.mark.parametrize("check_vma", [True, False])
def test_synchronised_under_shard_map(check_vma, compile_quickly):
    mesh = devices.mesh(4)
    plain, switched = Net(Unit), Net(bnn.remat(Unit), axis_name="d")
    variables = jax.jit(plain.init)(jax.random.key(1), X)

    def total(params, x):
        def local(params, x):
            value, _ = loss(switched, {**variables, "params": params}, x)
            return jax.lax.pmean(value, "d")

        return jax.shard_map(local, mesh=mesh, in_specs=(P(), P("d")), out_specs=P(), check_vma=check_vma)(params, x)

    (want, _), grads = jax.jit(lambda v: value_and_grads(plain, v, X))(variables)
    assert_same(jax.jit(jax.value_and_grad(total, (0, 1)))(variables["params"], X), (want, grads))


def test_gradients_wait_for_each_other():
    jaxpr = jax.make_jaxpr(jax.grad(lambda t: together(t)[0].sum() + 2 * together(t)[1].sum()))((W, X))
    barriers = [e for e in jaxpr.eqns if e.primitive.name == "optimization_barrier" and len(e.invars) == 2]
    assert len(barriers) >= 2
    keys = jax.random.key(0)
    assert together((keys, 1.0, jnp.arange(2)))[0] is keys
