"""Gradients of all synchronised norms over eight devices: those of one device that has the whole batch."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import bnjax.linen
from tests.kit import devices
from tests.kit.comparison import assert_close
from tests.kit.formulas import ROWS
from tests.kit.norms import CHANNELS_TOGETHER, SYNCED, variables_of, when

DEVICES, SHAPE = 8, (16, 3, 6)


def sample(name):
    """An input whose mean differs over devices, a cotangent, and a mask: of the last device nothing is valid."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=SHAPE) + np.linspace(0, 2, SHAPE[0])[:, None, None]
    n = rng.random((*SHAPE[:-1], 1 if name in CHANNELS_TOGETHER else SHAPE[-1])) < 0.7
    n[-SHAPE[0] // DEVICES :] = False
    domain = {"domain": np.arange(SHAPE[0]) % 3 // 2} if name in ("domain", "split") else {}
    return x, rng.normal(size=SHAPE), n, domain


@pytest.mark.parametrize("name", SYNCED)
def test_gradients_over_eight_devices_are_those_of_one(name, x64):
    x, g, n, domain = sample(name)
    make = partial(bnjax.linen.make_norm(name, **ROWS[name].options), use_running_average=False)
    variables = variables_of(make(), np.random.default_rng(1), x, np.float64)

    def gradients(axis_name, total, params, x, g, n, domain):
        """To the parameters and the input, and the output and the state."""

        def loss(params, x):
            whole = variables | {"params": params}
            y, new = make(axis_name=axis_name).apply(whole, x, mask=n, **domain, mutable="batch_stats")
            return (y * g).sum(), (y, new)

        (dparams, dx), (y, new) = jax.grad(loss, (0, 1), has_aux=True)(params, x)
        return (lax.psum(dparams, "d") if total else dparams, new), (dx, y)

    mesh = devices.mesh(DEVICES)

    @jax.jit
    def everything(*args):
        def over_devices(check_vma):
            f = partial(gradients, "d", not check_vma)  # with the check JAX adds up by itself
            specs = {"in_specs": (P(), *[P("d")] * 4), "out_specs": (P(), P("d")), "check_vma": check_vma}
            return jax.shard_map(f, mesh=mesh, **specs)(*args)

        return gradients(None, False, *args), over_devices(True), over_devices(False)

    args = variables["params"], x, g, n, domain
    alone, *together = jax.tree.map(np.asarray, everything(*jax.tree.map(jnp.asarray, args)))
    for got in together:
        assert_close(got, alone, 1e-9)
    assert all(np.abs(t).max() > 1e-3 for t in jax.tree.leaves(alone))


@pytest.mark.parametrize("name", ROWS)
def test_on_an_explicit_mesh_of_the_batch(name):
    """All norms but two run, gradients and all, and those two say that JAX cannot; types are enough to know."""
    mesh = devices.mesh(DEVICES, kind=AxisType.Explicit)
    layer = bnjax.linen.make_norm(name, **ROWS[name].options)()
    call = when(name, True)
    variables = jax.eval_shape(partial(layer.init, **call), jax.random.key(0), jnp.ones((16, 4, 4, 6)))

    def gradients(variables, x):
        y, pullback, _ = jax.vjp(
            lambda v, x: layer.apply(v, x, **call, mutable="batch_stats"), variables, x, has_aux=True
        )
        return y, pullback(y)[1]

    with jax.set_mesh(mesh):
        x = jax.ShapeDtypeStruct((16, 4, 4, 6), jnp.float32, sharding=NamedSharding(mesh, P("d", None, None, None)))
        if name in CHANNELS_TOGETHER:
            with pytest.raises(Exception, match="reshape is not supported"):  # JAX's ShardingTypeError, which it hides
                jax.eval_shape(gradients, variables, x)
        else:
            y, dx = jax.eval_shape(gradients, variables, x)
            assert y.sharding.spec == dx.sharding.spec == x.sharding.spec
