"""Over devices: every layout that JAX has gives what one device gives, count-weighted, gradients included."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from bnjax import Moments, all_reduce, batch_norm, moments
from tests import references

DEVICES, SHAPE = 4, (16, 5, 3)


def mesh(kind=AxisType.Auto):
    return jax.make_mesh((DEVICES,), ("d",), axis_types=(kind,), devices=jax.devices()[:DEVICES])


def train(x, g, where, scale, bias, running, name=None, total=True, **options):
    """One step on one device: y, dx, dscale, dbias, and the new state; `total` adds gradients up over devices."""

    def loss(x, scale, bias):
        y, new = batch_norm(x, running, scale, bias, where=where, axis_name=name, activation="relu", **options)
        return (y * g).sum(), (y, new)

    (dx, *own), (y, new) = jax.grad(loss, (0, 1, 2), has_aux=True)(x, scale, bias)
    return y, dx, *(lax.psum(own, name) if name is not None and total else own), new


def mapped(transform, x, g, where, *params, **options):
    """Under `pmap` or `vmap`: a leading axis of devices; what comes out of all of them must be the same."""
    x, g, where = jax.tree.map(lambda t: t.reshape(DEVICES, -1, *t.shape[1:]), (x, g, where))
    f = transform(partial(train, name="d", **options), axis_name="d", in_axes=(0, 0, 0, None, None, None))
    y, dx, *same = f(x, g, where, *params)
    for t in jax.tree.leaves(same):
        np.testing.assert_array_equal(t, np.broadcast_to(t[0], t.shape))
    return y.reshape(SHAPE), dx.reshape(SHAPE), *jax.tree.map(lambda t: t[0], same)


def sharded(check_vma, *arrays, **options):
    """Under `shard_map`: with the check, JAX adds up the gradients of what is the same everywhere by itself."""
    f = partial(train, name="d", total=not check_vma, **options)
    specs = (P("d"), P("d"), P("d"), P(), P(), P())
    out = (P("d"), P("d"), P(), P(), P())
    return jax.jit(jax.shard_map(f, mesh=mesh(), in_specs=specs, out_specs=out, check_vma=check_vma))(*arrays)


def compiled(kind, x, g, where, *params, **options):
    """Under plain `jit` a batch that is sharded over devices is one batch."""
    on = mesh(kind)
    with jax.set_mesh(on):
        x, g, where = jax.device_put((x, g, where), NamedSharding(on, P("d")))
        return jax.jit(partial(train, **options))(x, g, where, *params)


LAYOUTS = {
    "pmap": partial(mapped, jax.pmap),
    "vmap": partial(mapped, lambda f, **options: jax.jit(jax.vmap(f, **options))),
    "shard_map": partial(sharded, True),
    "shard_map, check_vma=False": partial(sharded, False),
    "jit, Auto": partial(compiled, AxisType.Auto),
    "jit, Explicit": partial(compiled, AxisType.Explicit),
}


def unequal():
    where = np.random.default_rng(1).random((16, 5, 1)) < np.linspace(0.1, 1, 16)[:, None, None]
    assert len({where[i : i + 4].sum() for i in range(0, 16, 4)}) == DEVICES
    return where


def one_empty():
    where = np.random.default_rng(2).random(SHAPE) < 0.6
    where[:4] = False
    where[4:12, :, 1] = False
    return where


MASKS = {"equal devices": None, "unequal devices": unequal(), "a device fully masked": one_empty()}


def sample(dtype, mean=1.0, features=(3,)):
    rng = np.random.default_rng(0)
    x = rng.normal(size=SHAPE) + mean + np.arange(16)[:, None, None] / 8  # devices differ in their means
    arrays = x, rng.normal(size=SHAPE), rng.uniform(0.5, 2, features), rng.normal(size=features)
    return tuple(t.astype(dtype) for t in arrays)


def state(dtype, mean=0.5):
    return Moments(jnp.full(3, 10, dtype), jnp.full(3, mean, dtype), jnp.ones(3, dtype))


def run(layout, arrays, where, running, **options):
    x, g, scale, bias = arrays
    return LAYOUTS[layout](x, g, where, scale, bias, running, **options)


def assert_close(got, want, rtol, atol):
    for g, w in zip(got, want, strict=True):
        np.testing.assert_allclose(g, w, rtol, atol)


@pytest.mark.parametrize("devices", MASKS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_is_one_device(layout, devices, precision):
    arrays, where = sample(precision), MASKS[devices]
    want = references.batch_norm(*arrays, where=where, relu=True)
    *got, new = run(layout, arrays, where, state(precision), momentum=0.0)
    tight = {"rtol": 1e-5, "atol": 4e-6} if precision is np.float32 else {"rtol": 1e-12, "atol": 1e-13}
    assert_close(got, want[:4], **tight)
    assert_close((new.mean, new.var), want.batch[1:], **tight)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("options", [{"pivot": "sample", "momentum": None}, {"pivot": None, "unbiased": True}], ids=str)
def test_every_pivot_is_right_at_large_means(layout, options):
    """Where the devices must agree on it, from the first step on, unmasked."""
    arrays = sample(np.float32, mean=1e4)
    running = Moments(jnp.zeros(()), jnp.zeros(3), jnp.ones(3))
    want = references.batch_norm(*arrays, relu=True)
    *got, new = run(layout, arrays, None, running, **{"momentum": 0.0, **options})
    assert_close(got, want[:4], rtol=1e-5, atol=4e-6)
    n = 80
    np.testing.assert_allclose(new.mean, want.batch.mean, rtol=2e-7)
    np.testing.assert_allclose(new.var, want.batch.var * (n / (n - 1) if "unbiased" in options else 1), rtol=1e-5)
    assert new.count == (n if options.get("momentum", 0) is None else 0)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_sample_under_a_mask_at_large_means(layout):
    arrays, where = sample(np.float32, mean=1e4), unequal()
    running = Moments(jnp.zeros(()), jnp.zeros(3), jnp.ones(3))
    *got, _ = run(layout, arrays, where, running, pivot="sample")
    assert_close(got, references.batch_norm(*arrays, where=where, relu=True)[:4], rtol=1e-5, atol=4e-6)


@pytest.mark.parametrize("layout", ["pmap", "vmap", "shard_map", "shard_map, check_vma=False"])
@pytest.mark.parametrize("devices", ["equal devices", "a device fully masked"])
def test_ghost_batches_stay_on_their_device_and_the_state_is_of_all(layout, devices):
    arrays, where = sample(np.float32), MASKS[devices]
    *got, new = run(layout, arrays, where, state(np.float32), momentum=0.0, virtual_batch_size=2)
    parts = []
    for i in range(0, 16, 2):
        mask = None if where is None else where[i : i + 2]
        x, g, scale, bias = arrays
        parts.append(references.batch_norm(x[i : i + 2], g[i : i + 2], scale, bias, where=mask, relu=True))
    want = [np.concatenate([getattr(p, k) for p in parts]) for k in ("y", "dx")]
    want += [sum(getattr(p, k) for p in parts) for k in ("dscale", "dbias")]
    assert_close(got, want, rtol=1e-4, atol=1e-5)  # ten numbers a slice: worst measured 2e-5
    assert_close((new.mean, new.var), references.moments(arrays[0], (0, 1), where)[1:], rtol=1e-5, atol=1e-6)


def test_unequal_devices_weigh_by_count_where_flax_averages():
    """Flax averages the means of the devices, and one fully masked device makes everything NaN."""
    x = jnp.asarray(sample(np.float32)[0]).reshape(DEVICES, -1, 3)
    for where in (unequal(), one_empty()):
        w = np.broadcast_to(where, SHAPE).reshape(DEVICES, -1, 3)
        both = jax.jit(jax.vmap(lambda x, w: all_reduce(moments(x, 0, where=w), "d"), axis_name="d"))(x, w)
        want = references.moments(x, (0, 1), w)
        for i in range(DEVICES):
            assert_close((both.count[i], both.mean[i], both.var[i]), want, rtol=1e-5, atol=1e-6)
        averaged = np.mean([references.moments(x[i], 0, w[i]).mean for i in range(DEVICES)], 0)
        assert (np.abs(averaged - want.mean) > 0.05).any()


def test_one_value_a_device_is_enough_when_devices_add_up():
    x, g, scale, bias = sample(np.float32)
    x, g = x[:, 0], g[:, 0]
    f = jax.vmap(lambda x: batch_norm(x[None], state(np.float32), scale, bias, axis_name="d")[0][0], axis_name="d")
    np.testing.assert_allclose(jax.jit(f)(x), references.batch_norm(x, g, scale, bias).y, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("names", ["a", "b", ("a", "b")], ids=str)
@pytest.mark.parametrize("check_vma", [True, False])
def test_a_mesh_of_two_axes_syncs_along_those_named(names, check_vma):
    """The inner axis named gives groups of devices, in every layout."""
    x, _, scale, bias = sample(np.float32)
    two = jax.make_mesh((2, 2), ("a", "b"), axis_types=(AxisType.Auto,) * 2, devices=jax.devices()[:DEVICES])
    options = {"in_specs": P(("a", "b")), "out_specs": P(("a", "b")), "check_vma": check_vma}
    f = jax.shard_map(lambda x: batch_norm(x, state(np.float32), scale, bias, axis_name=names)[0], mesh=two, **options)
    blocks = np.split(np.arange(16), DEVICES)  # device (a, b) has block 2 a + b
    groups = {"a": [(0, 2), (1, 3)], "b": [(0, 1), (2, 3)], ("a", "b"): [(0, 1, 2, 3)]}[names]
    want = np.zeros(SHAPE)
    for group in groups:
        rows = np.concatenate([blocks[i] for i in group])
        want[rows] = references.batch_norm(x[rows], x[rows], scale, bias).y
    np.testing.assert_allclose(jax.jit(f)(x), want, rtol=1e-5, atol=4e-6)


@pytest.mark.parametrize("layout", ["pmap", "shard_map, check_vma=False"])
@pytest.mark.parametrize("options", [{}, {"pivot": "sample"}, {"virtual_batch_size": 4}], ids=str)
def test_groups_of_devices(layout, options):
    arrays, groups = sample(np.float32), [[0, 2], [1, 3]]
    x, g, scale, bias = arrays
    blocks = np.split(np.arange(16), DEVICES)
    name = {"axis_name": "d", "axis_index_groups": groups, "momentum": 0.0, **options}

    def local(x, g):
        def loss(x):
            y, new = batch_norm(x, state(np.float32), scale, bias, **name)
            return (y * g).sum(), (y, new)

        dx, (y, new) = jax.grad(loss, has_aux=True)(x)
        return y, dx, new.mean[None], new.var[None]

    if layout == "pmap":
        got = jax.pmap(local, axis_name="d")(*(t.reshape(DEVICES, -1, *SHAPE[1:]) for t in (x, g)))
        y, dx, mean, var = (t.reshape(-1, *t.shape[2:]) for t in got)
    else:
        f = jax.shard_map(local, mesh=mesh(), in_specs=P("d"), out_specs=P("d"), check_vma=False)
        y, dx, mean, var = jax.jit(f)(x, g)
    for group in groups:
        rows = np.concatenate([blocks[i] for i in group])
        want = references.batch_norm(x[rows], g[rows], scale, bias)
        for i in group:
            assert_close((mean[i], var[i]), want.batch[1:], rtol=1e-5, atol=1e-6)
        if "virtual_batch_size" not in options:
            assert_close((y[rows], dx[rows]), (want.y, want.dx), rtol=1e-5, atol=4e-6)


def test_features_may_be_sharded_too():
    x, g, scale, bias = (np.tile(t, 2) for t in sample(np.float32))
    two = jax.make_mesh((2, 2), ("d", "m"), axis_types=(AxisType.Auto,) * 2, devices=jax.devices()[:DEVICES])
    running = Moments(jnp.zeros(()), jnp.zeros(6), jnp.ones(6))
    want = references.batch_norm(x, g, scale, bias)
    local = lambda x, s, b, m, v: batch_norm(x, Moments(running.count, m, v), s, b, axis_name="d")[0]  # noqa: E731
    specs = (P("d", None, "m"), *[P("m")] * 4)
    f = jax.jit(jax.shard_map(local, mesh=two, in_specs=specs, out_specs=specs[0]))
    np.testing.assert_allclose(f(x, scale, bias, running.mean, running.var), want.y, rtol=1e-5, atol=4e-6)
    with jax.set_mesh(two):
        args = [
            jax.device_put(t, NamedSharding(two, s))
            for t, s in zip((x, scale, bias, running.mean, running.var), specs, strict=True)
        ]
        for pivot in ("running", "sample", None):
            alone = lambda x, s, b, m, v, p=pivot: batch_norm(x, Moments(running.count, m, v), s, b, pivot=p)  # noqa: E731
            y, new = jax.jit(alone)(*args)
            np.testing.assert_allclose(y, want.y, rtol=1e-5, atol=4e-6)
            assert new.mean.sharding.spec == P("m")


def test_second_derivatives_go_through_the_devices(x64):
    x, g, scale, bias = sample(np.float64)

    def curvature(f):
        """A sum of squares of gradients, differentiated."""

        def slope(x, scale):
            dx, dscale = jax.grad(lambda x, s: f(x, s), (0, 1))(x, scale)
            return jnp.sin(dx).sum() + jnp.sin(dscale).sum()

        return jax.jit(jax.grad(slope, (0, 1)))(x, scale)

    def alone(x, scale):
        return ((batch_norm(x, state(np.float64), scale, bias)[0] + 0.1) ** 3 * g).sum()

    def local(x, g, scale):
        y = batch_norm(x, state(np.float64), scale, bias, axis_name="d")[0]
        return lax.psum(((y + 0.1) ** 3 * g).sum(), "d")

    want = curvature(alone)
    together = jax.shard_map(local, mesh=mesh(), in_specs=(P("d"), P("d"), P()), out_specs=P())
    assert_close(curvature(lambda x, s: together(x, g, s)), want, rtol=1e-10, atol=1e-11)


def test_under_vmap_it_is_many_syncs():
    """A vmap of models over a sharded batch."""
    x, _, scale, bias = sample(np.float32)
    xs = jnp.stack([x, 2 * x + 1])
    local = lambda x: batch_norm(x, state(np.float32), scale, bias, axis_name="d")[0]  # noqa: E731
    f = jax.vmap(jax.shard_map(local, mesh=mesh(), in_specs=P("d"), out_specs=P("d")))
    for got, one in zip(jax.jit(f)(xs), xs, strict=True):
        np.testing.assert_allclose(got, references.batch_norm(one, one, scale, bias).y, rtol=1e-5, atol=4e-6)


def all_reduces(f, *args):
    """How many all-reduces a compiled function makes, whatever the number of their operands."""
    return len(re.findall(r"= .*\ball-reduce(?:-start)?\(", jax.jit(f).lower(*args).compile().as_text()))


@pytest.mark.parametrize("check_vma", [True, False])
def test_about_the_running_mean_there_is_one_all_reduce_each_way(check_vma):
    x, _, scale, _ = sample(np.float32)

    def synced(x, scale, **options):
        local = lambda x, s: batch_norm(x, state(np.float32), s, axis_name="d", **options)[0]  # noqa: E731
        specs = {"in_specs": (P("d"), P()), "out_specs": P("d"), "check_vma": check_vma}
        return jax.shard_map(local, mesh=mesh(), **specs)(x, scale)

    assert all_reduces(synced, x, scale) == 1
    assert all_reduces(partial(synced, where=unequal()[:4]), x, scale) == 1
    assert all_reduces(partial(synced, pivot="sample"), x, scale) == 2
    assert all_reduces(jax.grad(lambda x, s: (synced(x, s) ** 2).sum(), (0, 1)), x, scale) == 2


@pytest.mark.parametrize("pivot", ["running", "sample", None])
def test_features_may_be_sharded_over_an_explicit_mesh(pivot):
    x, g, scale, bias = (np.tile(t, 2) for t in sample(np.float32))
    two = jax.make_mesh((2, 2), ("d", "m"), axis_types=(AxisType.Explicit,) * 2, devices=jax.devices()[:4])
    with jax.set_mesh(two):
        put = lambda t, *spec: jax.device_put(t, NamedSharding(two, P(*spec)))  # noqa: E731
        running = Moments(jnp.zeros(()), put(jnp.zeros(6), "m"), put(jnp.ones(6), "m"))
        y, new = jax.jit(partial(batch_norm, pivot=pivot))(
            put(x, "d", None, "m"), running, put(scale, "m"), put(bias, "m")
        )
    np.testing.assert_allclose(y, references.batch_norm(x, g, scale, bias).y, rtol=1e-5, atol=4e-6)
    assert new.mean.sharding.spec == P("m")


def test_running_means_that_differ_are_refused_where_the_type_tells():
    """Measurements about different numbers do not add up: 2.7 instead of 6e-7, without a word, otherwise."""
    x, *_ = sample(np.float32)
    means = jnp.zeros((DEVICES, 3))

    def local(x, mean, **options):
        running = Moments(jnp.zeros(()), mean[0], jnp.ones(3))
        return batch_norm(x, running, axis_name="d", **options)[0]

    def on_mesh(**options):
        f = jax.shard_map(partial(local, **options), mesh=mesh(), in_specs=P("d"), out_specs=P("d"))
        return jax.jit(f)(x, means)

    for options in ({}, {"virtual_batch_size": 2}):
        with pytest.raises(ValueError, match=r"(?s)running.mean.*'d'.*pivot=None"):
            on_mesh(**options)
    for pivot in ("sample", None):
        want = references.batch_norm(x, x, np.ones(3), np.zeros(3)).y
        np.testing.assert_allclose(on_mesh(pivot=pivot), want, rtol=1e-5, atol=4e-6)
