"""Identities that one compiler sees as barriers: in every transformation and layout, and in exported programs."""

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from bnjax._lowering.barriers import materialized, unshared
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
