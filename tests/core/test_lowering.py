"""What compilers are told, as primitives: in every transformation and layout, and in exported programs."""

import gc
from types import FunctionType

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from bnjax import instance_norm
from bnjax._lowering.barriers import materialized, unshared
from bnjax._lowering.linear import linear
from bnjax._lowering.platforms import by_platform
from tests.kit import devices

BARRIERS = {"cpu": unshared, "cuda": materialized}


def barriers(f, *args, platform):
    """How many barriers the program of a platform has."""
    return jax.jit(f).trace(*args).lower(lowering_platforms=(platform,)).as_text().count("optimization_barrier")


@pytest.mark.parametrize("name", BARRIERS)
def test_a_barrier_stands_in_one_platforms_program_forward_and_backward(name):
    def f(x):
        return BARRIERS[name](jnp.sin(x))

    for platform in ("cpu", "cuda", "tpu"):
        n = int(platform == name)
        assert barriers(f, 1.0, platform=platform) == n
        assert barriers(jax.vmap(f), jnp.ones(3), platform=platform) == n
        assert barriers(lambda x: jax.vjp(f, x)[1](x), 1.0, platform=platform) == n  # the primal is not used
        assert barriers(lambda x: jax.jvp(f, (x,), (x,)), 1.0, platform=platform) == 2 * n


@pytest.mark.parametrize("name", BARRIERS)
def test_derivatives_of_every_order_and_mode_pass(name):
    def f(x):
        return BARRIERS[name](x) ** 3

    x = jnp.arange(3.0)
    np.testing.assert_allclose(jax.vmap(jax.grad(jax.grad(f)))(x), 6 * x)
    np.testing.assert_allclose(jax.vmap(jax.jacfwd(jax.jacrev(f)))(x), 6 * x)
    np.testing.assert_allclose(jax.jit(jax.vmap(jax.grad(jax.checkpoint(f))))(x), 3 * x**2)
    assert f(2) == 8  # eagerly


def test_one_exported_program_serves_all_platforms():
    exported = jax.export.export(jax.jit(lambda x: materialized(unshared(x)) + 1), platforms=("cpu", "cuda", "tpu"))(
        jax.ShapeDtypeStruct((2,), "float32")
    )
    back = jax.export.deserialize(exported.serialize())
    np.testing.assert_array_equal(back.call(jnp.zeros(2)), [1, 1])


@pytest.mark.parametrize("name", BARRIERS)
def test_the_type_of_an_array_is_kept(name):
    mesh = devices.mesh(4, kind=AxisType.Explicit)
    x = jax.device_put(jnp.arange(8.0), NamedSharding(mesh, P("d")))
    with jax.sharding.set_mesh(mesh):
        assert jax.typeof(jax.jit(BARRIERS[name])(x)).sharding.spec == P("d")
        g = jax.jit(jax.grad(lambda x: BARRIERS[name](x).sum()))(x)
    assert jax.typeof(g).sharding.spec == P("d")
    auto = devices.mesh(4)
    f = jax.shard_map(lambda x: jax.lax.psum(BARRIERS[name](x), "d"), mesh=auto, in_specs=P("d"), out_specs=P())
    np.testing.assert_array_equal(jax.jit(f)(jnp.arange(8.0)), [12, 16])


def switched(x, y):
    return by_platform(lambda x, y: jnp.sin(x) * y, x, y, cpu=lambda x, y: y * jnp.sin(x), cuda=lambda x, y: x)


def test_a_platform_gets_its_own_way_and_derivatives_are_of_the_common_one():
    x, y = jnp.arange(3.0), jnp.ones(3)
    for platform, sine in (("cpu", 1), ("cuda", 0), ("tpu", 1)):
        assert jax.jit(switched).trace(x, y).lower(lowering_platforms=(platform,)).as_text().count("sine") == sine
    np.testing.assert_allclose(switched(x, y), jnp.sin(x))
    np.testing.assert_allclose(jax.jit(switched)(x, y), jnp.sin(x), rtol=1e-6)
    np.testing.assert_allclose(jax.vmap(jax.grad(switched))(x, y), jnp.cos(x), rtol=1e-6)
    np.testing.assert_allclose(jax.vmap(switched, (0, None))(x[:, None], y).shape, (3, 3))
    exported = jax.export.export(jax.jit(switched), platforms=("cpu", "cuda", "tpu"))(x, y)
    np.testing.assert_allclose(jax.export.deserialize(exported.serialize()).call(x, y), jnp.sin(x), rtol=1e-6)


def test_a_platform_without_a_lowering_of_its_own_is_refused():
    with pytest.raises(ValueError, match="'tpu'"):
        by_platform(lambda x: x, 1.0, tpu=lambda x: x)


def tangent(x, scale, dx, dscale):
    """Linear in the last two; on a CPU the transpose is written in another way."""

    def f(residuals, tangents):
        x, scale = residuals
        return ((jnp.cos(x) + scale) * tangents[0] + x * tangents[1]).sum(0)

    return linear(f, (x, scale), (dx, dscale), cpu=lambda residuals, tangents: f(residuals, tangents) + 0)


@jax.custom_jvp
def g(x, scale):
    return (jnp.sin(x) + x * scale).sum(0)


@g.defjvp
def g_jvp(primals, dots):
    return g(*primals), tangent(*primals, *dots)


def derivatives(f, x, scale):
    """First and second derivatives, forwards and backwards."""

    def slope(x):
        return jax.grad(lambda x: (f(x, scale) ** 2).sum())(x)

    first = jax.jacrev(f, (0, 1))(x, scale), jax.jacfwd(f, (0, 1))(x, scale)
    each = jax.vmap(jax.grad(lambda x, s: f(x, s).sum()), (0, None))(x[:, None], scale)
    return first, jax.jacfwd(slope)(x), jax.jacrev(slope)(x), each


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit, jax.checkpoint], ids=["eager", "jit", "checkpoint"])
def test_a_linear_primitive_has_the_derivatives_of_its_formula(wrap):
    x, scale = jnp.asarray(np.random.default_rng(0).uniform(0.1, 1, (3, 2))), jnp.asarray([[0.5, 2.0]])
    found, want = derivatives(wrap(g), x, scale), derivatives(g.fun, x, scale)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), found, want)


def test_a_linear_primitive_keeps_its_residuals_and_has_one_barrier_on_a_cpu():
    x, scale = jnp.ones((3, 2)), jnp.ones((1, 2))
    kept = jax.tree.leaves(jax.vjp(jax.jit(g), x, scale)[1])
    assert sorted(t.shape for t in kept if t.ndim) == [(1, 2), (3, 2)]

    def both(x, scale):
        y, back = jax.vjp(g, x, scale)
        return back(y)

    assert barriers(both, x, scale, platform="cpu") == 1
    assert barriers(both, x, scale, platform="tpu") == 0


def test_what_is_lowered_later_has_the_widths_it_was_traced_with():
    with jax.enable_x64(True):
        x = jnp.arange(56.0).reshape(1, 2, 7, 4)
        traced = jax.jit(jax.grad(lambda x: instance_norm(x)[0, 0, 0, 0])).trace(x)
    text = traced.lower().as_text()
    assert "f64" in text
    assert "f32" not in text


def kept_functions():
    """How many functions of the library are alive."""
    gc.collect()
    return sum(isinstance(f, FunctionType) and str(f.__module__).startswith("bnjax") for f in gc.get_objects())


def test_a_program_that_is_gone_leaves_no_function_behind():
    def lower():  # JAX may keep a function that is made anew for each program, and what it traced of it
        jax.jit(lambda x: instance_norm(x)).trace(jnp.ones((1, 2, 7, 4))).lower(lowering_platforms=("cpu",))

    lower()
    before = kept_functions()
    lower()
    assert kept_functions() == before
