"""What goes over the wire, counted in compiled programs: how often, how much, and between whom."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from bnjax import Moments, batch_norm, data_mesh
from tests.kit import devices, references, samples
from tests.kit.apis import APIS
from tests.kit.programs import Collective, collectives, compiled, operations

DEVICES, EXAMPLES, C = 4, 16, 8
EVERYONE = ((0, 1, 2, 3),)


def sample():
    """The means of devices and of features differ."""
    return samples.sample((EXAMPLES, 3, C), mean=np.linspace(0, 2, EXAMPLES)[:, None, None] + np.arange(C) / C)


def fresh():
    return samples.running(C)


def mesh(kind, *shape):
    names = ("data", "model")[: len(shape)]
    return devices.mesh(*shape, names=names, kind=kind)


MASKS = {"no mask": None, "over examples": (EXAMPLES, 1, 1), "over features": (EXAMPLES, 1, C)}
FORWARD = {"no mask": 2 * C, "over examples": 2 * C + 1, "over features": 3 * C}  # floats a norm


def net(params, x, mask, **options):
    """Two norms, and weights."""
    new = []
    for w, scale, bias in params:
        x, running = batch_norm(x @ w, fresh(), scale, bias, where=mask, activation="relu", **options)
        new.append(running)
    return x, new


def step(params, x, mask, *, total=None, **options):
    def loss(params):
        y, new = net(params, x, mask, **options)
        return (y**3).sum(), new

    grads, new = jax.grad(loss, has_aux=True)(params)
    return (grads if total is None else lax.psum(grads, total)), new


def counted(layout, f, total, *args):
    """The collectives of `f(params, x, mask)` over four devices."""
    on = data_mesh(DEVICES, "d")
    if layout == "jit":
        put = lambda t: t if t is None else jax.device_put(t, NamedSharding(on, P("d")))  # noqa: E731
        return collectives(compiled(jax.jit(f), args[0], *map(put, args[1:])))
    check = layout == "shard_map"
    f = partial(f, axis_name="d", **({"total": None if check else "d"} if total else {}))
    out = P() if total else (P("d"), P())
    f = jax.shard_map(f, mesh=on, in_specs=(P(), P("d"), P("d")), out_specs=out, check_vma=check)
    return collectives(compiled(jax.jit(f), *args))


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("layout", ["jit", "shard_map", "shard_map, check_vma=False"])
def test_one_all_reduce_a_norm_each_way(layout, mask):
    """Forward 2 C + 1 floats, 3 C if the mask varies over features, and one for the guard of the pivot where types do
    not guard it. Backward at most 4 C with the gradients of scale and bias. The weights' gradients share one more."""
    x, _, scale, bias = sample()
    params = [(np.eye(C, dtype=np.float32), scale, bias)] * 2
    where = None if MASKS[mask] is None else np.ones(MASKS[mask], bool)
    most = FORWARD[mask] + ("False" in layout)

    forward = counted(layout, net, False, params, x, where)
    assert len(forward) == 2
    assert all(c.operation == "all-reduce" and c.size <= most and c.groups == EVERYONE for c in forward), forward

    both = counted(layout, step, True, params, x, where)
    assert len(both) == 5, both
    assert sum(c.size for c in both) <= 2 * (most + 4 * C) + 2 * C * C, both


@pytest.mark.parametrize("pivot", ["sample", None])
@pytest.mark.parametrize("check_vma", [True, False])
def test_about_another_pivot_there_are_two_forward(pivot, check_vma):
    x, _, scale, bias = sample()
    layout = "shard_map" if check_vma else "shard_map, check_vma=False"
    params = [(np.eye(C, dtype=np.float32), scale, bias)]
    forward = counted(layout, partial(net, pivot=pivot), False, params, x, None)
    assert [c.operation for c in forward] == ["all-reduce"] * 2
    assert sum(c.size for c in forward) <= 3 * C + 1


@pytest.mark.parametrize("check_vma", [True, False])
def test_gradients_taken_outside_of_shard_map_need_no_sum(check_vma):
    """And cost one all-reduce each way, too."""
    x, g, scale, bias = sample()

    def synced(x, scale, bias):
        local = lambda x, *p: batch_norm(x, fresh(), *p, axis_name="d", activation="relu")[0]  # noqa: E731
        specs = {"in_specs": (P("d"), P(), P()), "out_specs": P("d"), "check_vma": check_vma}
        return jax.shard_map(local, mesh=data_mesh(DEVICES, "d"), **specs)(x, scale, bias)

    f = compiled(jax.jit(jax.grad(lambda *args: (synced(*args) * g).sum(), (0, 1, 2))), x, scale, bias)
    assert operations(f) == ["all-reduce"] * 2
    want = references.batch_norm(x, g, scale, bias, relu=True)
    for got, w in zip(f(x, scale, bias), want[1:4], strict=True):
        assert references.relative(got, w) < 2e-5


def training(api, **options):
    """Output, gradients and state of one norm, under `jit`."""

    def run(x, g, mask, scale, bias, running):
        def loss(x, scale, bias):
            y, new = APIS[api](x, mask, scale, bias, running, momentum=0.0, activation="relu", **options)
            return (y * g).sum(), (y, new)

        grads, (y, new) = jax.grad(loss, (0, 1, 2), has_aux=True)(x, scale, bias)
        return y, *grads, new

    return run


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("api", APIS)
def test_with_features_sharded_nothing_goes_over_their_axis(kind, api):
    x, g, scale, bias = (t.reshape(EXAMPLES, 1, 3, C) if t.ndim > 1 else t for t in sample())
    mask = np.random.default_rng(1).random((EXAMPLES, 1, 3, 1)) < 0.7
    two = mesh(kind, 2, 2)
    put = lambda t, *spec: jax.device_put(t, NamedSharding(two, P(*spec)))  # noqa: E731
    full = ("data", None, None, "model")
    running = Moments(put(jnp.zeros(())), put(jnp.zeros(C), "model"), put(jnp.ones(C), "model"))
    with jax.set_mesh(two):
        args = put(x, *full), put(g, *full), put(mask, "data"), put(scale, "model"), put(bias, "model"), running
        f = compiled(jax.jit(training(api)), *args)
        y, dx, dscale, dbias, new = f(*args)
    assert collectives(f) == [Collective("all-reduce", size, ((0, 2), (1, 3))) for size in (C + 1, C)]
    want = references.batch_norm(x, g, scale, bias, where=mask, relu=True)
    for got, w in zip((y, dx, dscale, dbias, new.mean, new.var), (*want[:4], *want.batch[1:]), strict=True):
        assert references.relative(got, w) < 2e-5
    assert y.sharding.spec == dx.sharding.spec == P(*full)
    assert {t.sharding.spec for t in (dscale, dbias, new.mean, new.var)} == {P("model")}


@pytest.mark.parametrize(
    ("kind", "api", "mask"),
    [(kind, "core", mask) for kind in (AxisType.Auto, AxisType.Explicit) for mask in MASKS]
    + [(AxisType.Auto, "linen", "no mask"), (AxisType.Auto, "nnx", "over examples")],
    ids=str,
)
def test_per_device_statistics_under_jit_stay_on_the_device(kind, api, mask):
    """Ghost batches of what a device has: output and its gradient cross nothing, a shared state one small all-reduce,
    shared parameters another, as every gradient does."""
    x, g, *params = sample()
    where = None if MASKS[mask] is None else np.random.default_rng(1).random(MASKS[mask]) < 0.8
    one, each = mesh(kind, DEVICES), EXAMPLES // DEVICES
    put = lambda t: t if t is None else jax.device_put(t, NamedSharding(one, P("data")))  # noqa: E731
    run = training(api, virtual_batch_size=each)
    with jax.set_mesh(one):
        args = put(x), put(g), put(where), *params, fresh()
        normalized = compiled(jax.jit(lambda *a: run(*a)[:2]), *args)
        assert collectives(normalized) == []
        more = {"state": (lambda *a: (run(*a)[:2], run(*a)[4]), FORWARD[mask] + (mask == "over examples"))}
        if mask == "no mask":
            more["parameters"] = lambda *a: run(*a)[:4], 2 * C
        for f, size in more.values():
            [c] = collectives(compiled(jax.jit(f), *args))
            assert c.operation == "all-reduce"
            assert c.size <= size
        y, dx = map(np.asarray, normalized(*args))
    for i in range(0, EXAMPLES, each):
        part = slice(i, i + each)
        want = references.batch_norm(x[part], g[part], *params, where=None if where is None else where[part], relu=True)
        assert references.relative(y[part], want.y) < 2e-5
        assert references.relative(dx[part], want.dx) < 2e-5


def test_ghost_batches_may_span_shards_of_an_auto_mesh_and_not_of_an_explicit_one():
    x, g, *params = sample()
    run = training("core", virtual_batch_size=8)
    one = mesh(AxisType.Auto, DEVICES)
    args = (*jax.device_put((x, g), NamedSharding(one, P("data"))), None, *params, fresh())
    pairs = collectives(compiled(jax.jit(lambda *a: run(*a)[:2]), *args))
    assert [c.groups for c in pairs] == [((0, 1), (2, 3))] * 2
    one = mesh(AxisType.Explicit, DEVICES)
    with (
        jax.set_mesh(one),
        pytest.raises(ValueError, match=r"`virtual_batch_size` must divide the 4 examples.*it is 8"),
    ):
        jax.jit(run)(*jax.device_put((x, g), NamedSharding(one, P("data"))), None, *params, fresh())


@pytest.mark.parametrize("check_vma", [True, False])
def test_groups_by_a_mesh_of_two_axes_talk_among_themselves(check_vma):
    x, *_ = sample()
    local = lambda x: batch_norm(x, fresh(), axis_name="member")[0]  # noqa: E731
    two = devices.mesh(2, 2, names=("group", "member"))
    both = P(("group", "member"))
    f = jax.jit(jax.shard_map(local, mesh=two, in_specs=both, out_specs=both, check_vma=check_vma))
    [c] = collectives(compiled(f, x))
    assert c.groups == ((0, 1), (2, 3))
