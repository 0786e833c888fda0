"""Over devices: every layout that JAX has gives what one device gives, count-weighted, gradients included."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from bnjax import Moments, all_reduce, batch_norm, batch_renorm, moments
from bnjax._collectives.psum import _fingerprint
from tests.kit import devices, references, samples
from tests.kit.apis import APIS
from tests.kit.comparison import assert_each_close, errors

DEVICES, SHAPE = 4, (16, 5, 3)


def train(x, g, where, scale, bias, running, name=None, total=True, api=APIS["core"], **options):
    """One step on one device: y, dx, dscale, dbias, and the new state; `total` adds gradients up over devices."""

    def loss(x, scale, bias):
        y, new = api(x, where, scale, bias, running, axis_name=name, activation="relu", **options)
        return (y * g).sum(), (y, new)

    (dx, *own), (y, new) = jax.grad(loss, (0, 1, 2), has_aux=True)(x, scale, bias)
    return y, dx, *(lax.psum(own, name) if name is not None and total else own), new


# A layout takes `step(x, g, masks, *params, name=..., total=...)`, which returns what is of the batch and what is the
# same on all devices, and returns the same function of what is on all of them together.
ALL = P("d"), P("d"), P("d"), P(), P(), P()


def mapped(transform, names, step):
    """Under `pmap`, `vmap` or one in the other: leading axes of devices."""
    axes = (DEVICES,) if len(names) == 1 else (2, 2)
    f = partial(step, name=names if len(names) > 1 else names[0])
    for name, t in zip(names[::-1], transform[::-1], strict=True):
        f = t(f, axis_name=name, in_axes=(0, 0, 0, None, None, None))

    def call(*arrays):
        batch = jax.tree.map(lambda t: t.reshape(*axes, -1, *t.shape[1:]), arrays[:3])
        of_batch, same = f(*batch, *arrays[3:])
        return jax.tree.map(lambda t: t.reshape(SHAPE), of_batch), devices.same_on_all(same, len(axes))

    return call


def sharded(check_vma, step):
    """Under `shard_map`: with the check, JAX adds up the gradients of what is the same everywhere by itself."""
    f = partial(step, name="d", total=not check_vma)
    return devices.sharded(f, DEVICES, ALL, (P("d"), P()), check_vma)


def vmap_in_shard_map(step):
    """Halves of what a device has, both names synchronised."""

    def local(*arrays):
        halves = jax.tree.map(lambda t: t.reshape(2, -1, *t.shape[1:]), arrays[:3])
        f = jax.vmap(partial(step, name=("d", "half")), axis_name="half", in_axes=(0, 0, 0, None, None, None))
        of_batch, same = f(*halves, *arrays[3:])
        return jax.tree.map(lambda t: t.reshape(-1, *SHAPE[1:]), of_batch), jax.tree.map(lambda t: t[0], same)

    return devices.sharded(local, DEVICES, ALL, (P("d"), P()), check_vma=False)


def compiled(kind, step):
    """Under plain `jit` a batch that is sharded over devices is one batch."""
    on, f = devices.mesh(DEVICES, kind=kind), jax.jit(step)

    def call(x, g, masks, *params):
        with jax.set_mesh(on):
            return f(*jax.device_put((x, g, masks), NamedSharding(on, P("d"))), *params)

    return call


def jitted_vmap(f, **options):
    return jax.jit(jax.vmap(f, **options))


LAYOUTS = {
    "pmap": partial(mapped, [jax.pmap], ("d",)),
    "vmap": partial(mapped, [jitted_vmap], ("d",)),
    "vmap in pmap": partial(mapped, [jax.pmap, jax.vmap], ("d", "half")),
    "shard_map": partial(sharded, True),
    "shard_map, check_vma=False": partial(sharded, False),
    "vmap in shard_map, check_vma=False": vmap_in_shard_map,
    "jit, Auto": partial(compiled, AxisType.Auto),
    "jit, Explicit": partial(compiled, AxisType.Explicit),
}
PLAIN = [layout for layout in LAYOUTS if "vmap in" not in layout]
NAMED = [layout for layout in PLAIN if "jit" not in layout]


def program(layout, cells):
    """Steps with these options, {cell: options}, in one program, for to compile is what takes time. A function of
    {cell: mask}, the arrays and the running state."""

    def step(x, g, masks, *arrays, **how):
        done = {k: train(x, g, masks[k], *arrays, **how, **options) for k, options in cells.items()}
        return {k: t[:2] for k, t in done.items()}, {k: t[2:] for k, t in done.items()}

    f = LAYOUTS[layout](step)

    def call(masks, arrays, running):
        x, g, *params = arrays
        of_batch, same = f(x, g, masks, *params, running)
        return {k: (*of_batch[k], *same[k]) for k in cells}

    return call


def unequal():
    where = np.random.default_rng(1).random((16, 5, 1)) < np.linspace(0.1, 1, 16)[:, None, None]
    assert len({where[i : i + 4].sum() for i in range(0, 16, 4)}) == DEVICES
    return where


def one_empty():
    where = np.random.default_rng(2).random(SHAPE) < 0.6
    where[:4] = False
    where[4:12, :, 1] = False
    return where


def short_batch():
    """A last batch, filled up: thirteen examples on four devices."""
    return np.broadcast_to(np.arange(16)[:, None, None] < 13, (16, 5, 1))


MASKS = {
    "no mask": None,
    "unequal devices": unequal(),
    "a device fully masked": one_empty(),
    "a short last batch": short_batch(),
}


def sample(dtype, mean=1.0):
    """Devices differ in their means."""
    return samples.sample(SHAPE, mean=mean + np.arange(16)[:, None, None] / 8, dtype=dtype)


def state(dtype, mean=0.5):
    return samples.running(3, dtype, count=np.full(3, 10), mean=mean)


@pytest.fixture(scope="module")
def table():
    """Prints one line a cell, to be seen with `pytest -s`."""
    print("\n\n| layout | mask | API | dtype | y | dx | dscale | dbias | mean | var |")
    print("|" + " --- |" * 10)
    return lambda *cells: print("| " + " | ".join(c if isinstance(c, str) else f"{c:.0e}" for c in cells) + " |")


@pytest.mark.parametrize(
    ("precision", "layout"), [(np.float32, layout) for layout in LAYOUTS] + [(np.float64, layout) for layout in PLAIN],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)  # fmt: skip
def test_every_layout_is_one_device(layout, precision, table):
    with jax.enable_x64(precision is np.float64):
        tabulate(layout, precision, table)


# What one program does, twice: a mask over examples is another program than one over features.
ROUNDS = [
    {"none": "no mask", "examples": "unequal devices", "features": "a device fully masked"},
    {"none": "no mask", "examples": "a short last batch", "features": "a device fully masked"},
]


def tabulate(layout, precision, table):
    arrays, wrong, seen = sample(precision), [], set()
    f = program(layout, {(kind, api): {"api": APIS[api], "momentum": 0.0} for kind in ROUNDS[0] for api in APIS})
    for masks in ROUNDS:
        got = f({(kind, api): MASKS[masks[kind]] for kind in masks for api in APIS}, arrays, state(precision))
        for (kind, api), result in got.items():
            cell = masks[kind], api
            if cell in seen:
                continue
            seen.add(cell)
            want = references.batch_norm(*arrays, where=MASKS[masks[kind]], relu=True)
            *own, new = result
            off = errors([*own, new.mean, new.var], [*want[:4], *want.batch[1:]])
            table(layout, *cell, precision.__name__, *off)
            if not max(off) < (2e-5 if precision is np.float32 else 1e-12):
                wrong.append((*cell, off))
    assert len(seen) == len(MASKS) * len(APIS)
    assert not wrong


OTHER_PIVOTS = {
    "sample": {"pivot": "sample", "momentum": None},
    "two passes": {"pivot": None, "unbiased": True, "momentum": 0.0},
    "sample, masked": {"pivot": "sample", "momentum": 0.0},
}


@pytest.mark.parametrize("layout", PLAIN)
def test_every_pivot_is_right_at_large_means(layout):
    """Where the devices must agree on it, from the first step on."""
    arrays = sample(np.float32, mean=1e4)
    masks = {"sample": None, "two passes": None, "sample, masked": unequal()}
    running = Moments(jnp.zeros(3), jnp.zeros(3), jnp.ones(3))
    for cell, (*got, new) in program(layout, OTHER_PIVOTS)(masks, arrays, running).items():
        want = references.batch_norm(*arrays, where=masks[cell], relu=True)
        assert_each_close(got, want[:4], rtol=1e-5, atol=4e-6)
        np.testing.assert_allclose(new.mean, want.batch.mean, rtol=2e-7)
        np.testing.assert_allclose(new.var, want.batch.var * (80 / 79 if cell == "two passes" else 1), rtol=1e-5)
        np.testing.assert_array_equal(new.count, 80 if cell == "sample" else 0)


@pytest.mark.parametrize("layout", NAMED)
def test_ghost_batches_stay_on_their_device_and_the_state_is_of_all(layout):
    arrays = x, g, scale, bias = sample(np.float32)
    masks = {case: MASKS[case] for case in ("no mask", "a device fully masked")}
    f = program(layout, {key: {"momentum": 0.0, "virtual_batch_size": 2} for key in masks})
    for case, (*got, new) in f(masks, arrays, state(np.float32)).items():
        where = masks[case]
        parts = []
        for i in range(0, 16, 2):
            mask = None if where is None else where[i : i + 2]
            parts.append(references.batch_norm(x[i : i + 2], g[i : i + 2], scale, bias, where=mask, relu=True))
        want = [np.concatenate([getattr(p, k) for p in parts]) for k in ("y", "dx")]
        want += [sum(getattr(p, k) for p in parts) for k in ("dscale", "dbias")]
        assert_each_close(got, want, rtol=1e-4, atol=1e-5)  # ten numbers a slice: worst measured 2e-5
        assert_each_close((new.mean, new.var), references.moments(x, (0, 1), where)[1:], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("layout", ["shard_map", "shard_map, check_vma=False", "vmap", "shard_map, mean"])
def test_what_is_left_to_do_for_the_gradient_of_a_parameter(layout):
    """The rows of docs/guide/devices.md that the table above does not cover."""
    x, g, scale, bias = sample(np.float32)
    want = references.batch_norm(x, g, scale, bias).dscale
    local = lambda x, g, s: (batch_norm(x, state(np.float32), s, bias, axis_name="d")[0] * g).sum()  # noqa: E731
    if layout == "vmap":  # taken outside
        losses = jax.vmap(local, axis_name="d", in_axes=(0, 0, None))
        split = lambda t: t.reshape(DEVICES, -1, *SHAPE[1:])  # noqa: E731
        got = jax.jit(jax.grad(lambda s: losses(split(x), split(g), s).sum()))(scale)
    elif "mean" in layout:  # taken inside, of the mean over devices
        mean = lambda x, g, s: lax.pmean(local(x, g, s), "d")  # noqa: E731
        got = DEVICES * jax.jit(
            jax.shard_map(jax.grad(mean, 2), mesh=devices.mesh(DEVICES), in_specs=(P("d"), P("d"), P()), out_specs=P())
        )(x, g, scale)
    else:  # taken outside
        each = lambda x, g, s: local(x, g, s)[None]  # noqa: E731
        specs = {"in_specs": (P("d"), P("d"), P()), "out_specs": P("d"), "check_vma": "False" not in layout}
        losses = jax.shard_map(each, mesh=devices.mesh(DEVICES), **specs)
        got = jax.jit(jax.grad(lambda s: losses(x, g, s).sum()))(scale)
    assert references.relative(got, want) < 2e-5


def test_unequal_devices_weigh_by_count_where_flax_averages():
    """Flax averages the means of the devices, and one fully masked device makes everything NaN."""
    x = jnp.asarray(sample(np.float32)[0]).reshape(DEVICES, -1, 3)
    for where in (unequal(), one_empty()):
        w = np.broadcast_to(where, SHAPE).reshape(DEVICES, -1, 3)
        both = jax.jit(jax.vmap(lambda x, w: all_reduce(moments(x, 0, where=w), "d"), axis_name="d"))(x, w)
        want = references.moments(x, (0, 1), w)
        for i in range(DEVICES):
            assert_each_close((both.count[i], both.mean[i], both.var[i]), want, rtol=1e-5, atol=1e-6)
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
    two = devices.mesh(2, 2, names=("a", "b"))
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
        f = jax.shard_map(local, mesh=devices.mesh(DEVICES), in_specs=P("d"), out_specs=P("d"), check_vma=False)
        y, dx, mean, var = jax.jit(f)(x, g)
    for group in groups:
        rows = np.concatenate([blocks[i] for i in group])
        want = references.batch_norm(x[rows], g[rows], scale, bias)
        for i in group:
            assert_each_close((mean[i], var[i]), want.batch[1:], rtol=1e-5, atol=1e-6)
        if "virtual_batch_size" not in options:
            assert_each_close((y[rows], dx[rows]), (want.y, want.dx), rtol=1e-5, atol=4e-6)


def test_features_may_be_sharded_too():
    x, g, scale, bias = (np.tile(t, 2) for t in sample(np.float32))
    two = devices.mesh(2, 2, names=("d", "m"))
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
    together = jax.shard_map(local, mesh=devices.mesh(DEVICES), in_specs=(P("d"), P("d"), P()), out_specs=P())
    assert_each_close(curvature(lambda x, s: together(x, g, s)), want, rtol=1e-10, atol=1e-11)


def test_under_vmap_it_is_many_syncs():
    """A vmap of models over a sharded batch."""
    x, _, scale, bias = sample(np.float32)
    xs = jnp.stack([x, 2 * x + 1])
    local = lambda x: batch_norm(x, state(np.float32), scale, bias, axis_name="d")[0]  # noqa: E731
    f = jax.vmap(jax.shard_map(local, mesh=devices.mesh(DEVICES), in_specs=P("d"), out_specs=P("d")))
    for got, one in zip(jax.jit(f)(xs), xs, strict=True):
        np.testing.assert_allclose(got, references.batch_norm(one, one, scale, bias).y, rtol=1e-5, atol=4e-6)


@pytest.mark.parametrize("pivot", ["running", "sample", None])
def test_features_may_be_sharded_over_an_explicit_mesh(pivot):
    x, g, scale, bias = (np.tile(t, 2) for t in sample(np.float32))
    two = devices.mesh(2, 2, names=("d", "m"), kind=AxisType.Explicit)
    with jax.set_mesh(two):
        put = lambda t, *spec: jax.device_put(t, NamedSharding(two, P(*spec)))  # noqa: E731
        running = Moments(jnp.zeros(()), put(jnp.zeros(6), "m"), put(jnp.ones(6), "m"))
        y, new = jax.jit(partial(batch_norm, pivot=pivot))(
            put(x, "d", None, "m"), running, put(scale, "m"), put(bias, "m")
        )
    np.testing.assert_allclose(y, references.batch_norm(x, g, scale, bias).y, rtol=1e-5, atol=4e-6)
    assert new.mean.sharding.spec == P("m")


def differing(layout, **options):
    """A sync of devices whose running means differ."""
    x, *_ = sample(np.float32)
    means = jnp.arange(12.0).reshape(DEVICES, 3) / 8

    def local(x, mean):
        running = Moments(jnp.zeros(()), mean, jnp.ones(3))
        return batch_norm(x, running, axis_name="d", **options)[0]

    if layout == "pmap":
        return jax.pmap(local, axis_name="d")(x.reshape(DEVICES, -1, 5, 3), means).reshape(SHAPE)
    if layout == "vmap":
        return jitted_vmap(local, axis_name="d")(x.reshape(DEVICES, -1, 5, 3), means).reshape(SHAPE)
    f = lambda x, mean: local(x, mean[0])  # noqa: E731
    check = layout == "shard_map"
    return devices.sharded(f, DEVICES, check_vma=check)(x, means)


@pytest.mark.parametrize("layout", NAMED)
def test_running_means_that_differ_raise_or_are_nan_and_never_numbers(layout):
    """Measurements about different numbers do not add up: 2.7 instead of 6e-7, without a word, otherwise."""
    if layout == "shard_map":
        for options in ({}, {"virtual_batch_size": 2}):
            with pytest.raises(ValueError, match=r"(?s)running.mean.*'d'.*pivot=None"):
                differing(layout, **options)
    else:
        assert np.isnan(differing(layout)).all()
    for pivot in ("sample", None):
        want = references.batch_norm(sample(np.float32)[0], np.ones(SHAPE), np.ones(3), np.zeros(3)).y
        np.testing.assert_allclose(differing(layout, pivot=pivot), want, rtol=1e-5, atol=4e-6)


def test_norms_that_take_no_pivot_are_not_told_to_change_it():
    """Batch renormalization measures about the running mean, and nothing else."""

    def local(x, mean):
        return batch_renorm(x, Moments(jnp.zeros(()), mean[0], jnp.ones(3)), axis_name="d")[0]

    f = jax.shard_map(local, mesh=devices.mesh(DEVICES), in_specs=P("d"), out_specs=P("d"))
    with pytest.raises(ValueError, match=r"Pool .*`sync_batch_stats`.* where a norm takes a `pivot`, `pivot=None`"):
        jax.eval_shape(f, jnp.ones(SHAPE), jnp.ones((DEVICES, 3)))


@pytest.mark.parametrize("layout", ["vmap", "shard_map"])
@pytest.mark.parametrize("api", APIS)
def test_where_jax_takes_no_groups_the_error_says_what_to_write(layout, api):
    f = program(layout, {"groups": {"api": APIS[api], "axis_index_groups": [[0, 1], [2, 3]]}})
    with pytest.raises(ValueError, match=r"`axis_index_groups` is taken by JAX under.*make_mesh.*axis_name='member'"):
        f({"groups": None}, sample(np.float32), state(np.float32))


# Means of two devices: what differs may be one feature, and one bit.
MEANS = {
    "one feature": ([1.0], [1.25]),
    "one feature, by little": ([1.0], [np.nextafter(np.float32(1), np.float32(2))]),
    "the first feature only": ([1.0, 1, 1, 1], [1.25, 1, 1, 1]),
    "the last feature only": ([1.0, 1, 1, 1], [1, 1, 1, 2]),
    "two features, swapped": ([1.0, 2, 3, 4], [2.0, 1, 3, 4]),
    "all features by as much": ([0.0] * 2048, [1.0] * 2048),
}


@pytest.mark.parametrize("means", MEANS)
def test_no_difference_of_running_means_is_overlooked(means):
    first, second = MEANS[means]
    c = jnp.asarray([first, second, first, second], jnp.float32)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(DEVICES * 2, c.shape[1])), jnp.float32)
    local = lambda x, c: batch_norm(x, Moments(jnp.zeros(()), c[0], jnp.ones(c[0].shape)), axis_name="d")[0]  # noqa: E731
    f = devices.sharded(local, DEVICES, check_vma=False)
    assert np.isnan(f(x, c)).all()


@pytest.mark.parametrize("n", [2, 4096])
def test_a_difference_passes_by_chance_only(n):
    """Of many pairs of pivots, some in one feature, as few have one mark as bits allow; and marks add up exactly."""
    bits = 24 - (n - 1).bit_length()
    pairs, rng = 20_000, np.random.default_rng(0)
    a = rng.normal(size=(pairs, 3)).astype(np.float32)
    b = a.copy()
    b[::2, 0] += np.float32(2.0) ** rng.integers(-10, 3, pairs // 2)
    b[1::2] += 1
    marks = jax.jit(jax.vmap(partial(_fingerprint, bits=bits)))
    one, other = np.asarray(marks(a)), np.asarray(marks(b))
    assert one.max() * n <= 2**24
    assert len(np.unique(np.round(one))) > 0.9 * min(pairs, 2**bits) * (1 - np.exp(-1))
    assert (one == other).sum() <= 5 + 2 * pairs / 2**bits


def test_pivots_that_differ_beyond_float32_differ(x64):
    marks = [_fingerprint(jnp.asarray([c]), bits=23) for c in (1.0, 1 + 1e-12, 1.0 + 1e-12j, -0.0, 0.0)]
    assert len({float(m) for m in marks}) == 4
