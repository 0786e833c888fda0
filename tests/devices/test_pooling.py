"""Per-device running statistics pooled: what one device would have, had it seen everything."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from jax import lax
from jax.sharding import PartitionSpec as P

import bnjax
from bnjax import linen as bl
from bnjax import nnx as bx
from tests.kit import devices, references
from tests.kit.programs import compiled, operations

DEVICES = 4


on_mesh = partial(devices.sharded, devices=DEVICES, out_specs=P())


def pooled(layout, stats, counts=None):
    """Statistics with a leading axis of devices, pooled, as every device has them."""
    sync = partial(bnjax.sync_batch_stats, axis_name="d")
    args = (stats,) if counts is None else (stats, jnp.asarray(counts))
    if layout in ("pmap", "vmap"):
        transform = {"pmap": partial(jax.pmap, devices=jax.devices()[:DEVICES]), "vmap": jax.vmap}[layout]
        out = transform(lambda s, n=None: sync(s, counts=n), axis_name="d")(*args)
        return devices.same_on_all(out)

    def local(s, n=None):
        mine = jax.tree.map(lambda t: t[0], s)
        return sync(mine, counts=None if n is None else n[0])

    return on_mesh(local, check_vma=layout == "shard_map")(*args)


LAYOUTS = ["pmap", "vmap", "shard_map", "shard_map, check_vma=False"]


def seen(mean, rows=(40, 40, 40, 40)):
    """Of each device: as much data as `rows` says, of deviation 1, and means that differ by as much."""
    rng = np.random.default_rng(0)
    return [rng.normal(size=(n, 3)) + mean + i for i, n in enumerate(rows)]


def stats_of(parts, **more):
    m = [references.moments(x, 0) for x in parts]
    stats = {"mean": np.stack([t.mean for t in m]), "var": np.stack([t.var for t in m])}
    return {k: jnp.asarray(v, jnp.float32) for k, v in {**stats, **more}.items()}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("mean", [0.0, 1e4])
def test_the_pool_is_of_all_data(layout, mean):
    """At mean/std = 1e4 too: to 1e-6 of the statistics that went in, rounded to float32 as they are."""
    equal, unequal = seen(mean), seen(mean, rows=(10, 40, 3, 90))
    counts = np.asarray([len(x) for x in unequal], np.float32)
    repeated = jnp.broadcast_to(counts[:, None], (DEVICES, 3))
    tree = {
        "deep": {"norm": stats_of(equal), "other": {"kernel/u": jnp.full((DEVICES, 1, 2), 0.6)}},
        "counted": stats_of(unequal, count=repeated),
        "steps": jnp.arange(DEVICES),
        "narrow": jax.tree.map(lambda t: t.astype(jnp.bfloat16), stats_of(seen(1.0))),
    }
    got = pooled(layout, tree)
    for name, stats, n in (("norm", tree["deep"]["norm"], np.ones(DEVICES)), ("counted", tree["counted"], counts)):
        share = (n / n.sum())[:, None]
        m, v = (references.wide(stats[k]) for k in ("mean", "var"))
        want = (share * m).sum(0)
        own = got["deep"]["norm"] if name == "norm" else got["counted"]
        np.testing.assert_allclose(own["mean"], want, rtol=1e-6)
        np.testing.assert_allclose(own["var"], (share * (v + (m - want) ** 2)).sum(0), rtol=1e-6)
    np.testing.assert_allclose(got["counted"]["mean"], references.moments(np.concatenate(unequal), 0).mean, rtol=1e-6)
    np.testing.assert_allclose(got["counted"]["count"], counts.sum() / DEVICES)
    np.testing.assert_allclose(got["deep"]["other"]["kernel/u"], 0.6, rtol=1e-6)
    assert got["steps"] == DEVICES - 1
    assert got["steps"].dtype == jnp.int32
    assert got["narrow"]["mean"].dtype == jnp.bfloat16
    # As statistics of other data would be: averaging the variances, as Flax advises, loses what is between devices.
    averaged = np.asarray(tree["deep"]["norm"]["var"]).mean(0)
    assert (got["deep"]["norm"]["var"] > averaged + 0.9).all()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_counts_weigh_the_devices(layout):
    parts = seen(1e4, rows=(10, 40, 3, 90))
    got = pooled(layout, {"norm": stats_of(parts)}, [10.0, 40.0, 3.0, 90.0])["norm"]
    want = references.moments(np.concatenate(parts), 0)
    np.testing.assert_allclose(got["mean"], want.mean, rtol=1e-6)
    np.testing.assert_allclose(got["var"], want.var, rtol=2e-4)  # the means, rounded to float32: 5e-4 of a deviation


def test_who_has_seen_nothing_weighs_nothing():
    parts = seen(0.0)
    got = pooled("vmap", stats_of(parts), [0, 1, 0, 1])
    want = references.moments(np.concatenate(parts[1::2]), 0)
    np.testing.assert_allclose(got["var"], want.var, rtol=1e-5)
    for counts in (None, np.zeros(DEVICES)):  # and where nobody has, all weigh the same: variance 1 stays 1
        fresh = {"mean": jnp.zeros((4, 3)), "var": jnp.ones((4, 3)), "count": jnp.zeros((4, 3))}
        got = pooled("vmap", fresh, counts)
        np.testing.assert_array_equal(got["var"], 1)
        np.testing.assert_array_equal(got["count"], 0)


def test_pooling_again_changes_nothing_and_training_goes_on():
    """A pool after every epoch of per-device training with `momentum=None` is the pool of all that was seen."""
    first, then = seen(3.0), seen(-2.0, rows=(5, 10, 20, 30))
    counts = jnp.full((4, 3), 40.0)
    once = pooled("vmap", stats_of(first, count=counts))
    every = lambda tree: jax.tree.map(lambda t: jnp.broadcast_to(t, (DEVICES, *t.shape)), tree)  # noqa: E731
    twice = pooled("vmap", every(once))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-6), twice, once)
    on_each = bnjax.Moments(*(every(once)[k] for k in ("count", "mean", "var")))
    new = [references.moments(x, 0) for x in then]
    new = bnjax.Moments(*(jnp.asarray(np.stack(t), jnp.float32) for t in zip(*new, strict=True)))
    later = vars(bnjax.merge(on_each, new))
    got = pooled("vmap", later)
    want = references.moments(np.concatenate(first + then), 0)
    np.testing.assert_allclose(got["mean"], want.mean, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(got["var"], want.var, rtol=1e-5)


def test_groups_named_and_complex():
    stats = stats_of(seen(2.0))
    stats = {"mean": stats["mean"] * (1 + 1j), "var": 2 * stats["var"]}
    two = jax.tree.map(lambda t: t.reshape(2, 2, 3), stats)
    sync = jax.vmap(jax.vmap(lambda s: bnjax.sync_batch_stats(s, ["a", "b"]), axis_name="b"), axis_name="a")
    got = jax.tree.map(lambda t: t[1, 1], sync({"c": two, "r": two["var"]}))
    m = references.wide(stats["mean"])
    want = 2 * references.wide(stats["var"] / 2).mean(0) + (np.abs(m - m.mean(0)) ** 2).mean(0)
    np.testing.assert_allclose(got["c"]["mean"], m.mean(0), rtol=1e-6)
    np.testing.assert_allclose(got["c"]["var"], want, rtol=1e-6)
    assert got["r"].dtype == jnp.float32
    inner = jax.vmap(jax.vmap(lambda s: bnjax.sync_batch_stats(s, "b"), axis_name="b"), axis_name="a")(two)
    np.testing.assert_allclose(inner["mean"][1, 0], m[2:].mean(0), rtol=1e-6)


class Net(nn.Module):
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x):
        for features in (3, 5, 7):
            x = nn.Dense(features)(x)
            x = bl.BatchNorm(use_running_average=False, momentum=0.0, axis_name=self.axis_name)(x)
        return x


def data():
    return (np.random.default_rng(0).normal(size=(16, 4)) + np.arange(16)[:, None] / 4).astype(np.float32)


@pytest.mark.parametrize("check_vma", [True, False])
def test_two_all_reduces_for_a_whole_model(check_vma):
    x, net = data(), Net()
    variables = jax.jit(net.init)(jax.random.key(0), x)

    def local(variables, x):
        _, new = net.apply(variables, x, mutable="batch_stats")
        return bnjax.sync_batch_stats({**new["batch_stats"], "sigma": jnp.ones(2)}, "d")

    f = on_mesh(local, check_vma=check_vma, in_specs=(P(), P("d")))
    assert operations(compiled(f, variables, x)) == ["all-reduce"] * 2


def test_a_run_of_its_own_statistics_may_be_resumed_synchronised():
    """What raises, or becomes NaN, without pooling is right with it."""
    x, alone, together = data(), Net(), Net(axis_name="d")
    variables = jax.jit(alone.init)(jax.random.key(0), x)

    def local(variables, x, *, pool):
        _, new = alone.apply(variables, x, mutable="batch_stats")
        stats = bnjax.sync_batch_stats(new["batch_stats"], "d") if pool else new["batch_stats"]
        return together.apply({**variables, "batch_stats": stats}, x, mutable="batch_stats")[0]

    specs = {"in_specs": (P(), P("d")), "out_specs": P("d")}
    want, _ = jax.jit(partial(alone.apply, mutable="batch_stats"))(variables, x)
    for check_vma in (True, False):
        got = on_mesh(partial(local, pool=True), check_vma=check_vma, **specs)(variables, x)
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match=r"running.mean.*differs.*Pool"):
        on_mesh(partial(local, pool=False), check_vma=True, **specs)(variables, x)
    assert np.isnan(on_mesh(partial(local, pool=False), check_vma=False, **specs)(variables, x)).all()


def test_nnx_states_and_pure_dicts():
    """Lists of layers and spectral norm's own statistics among them."""

    class Model(nnx.Module):
        def __init__(self, rngs):
            self.norms = nnx.List([bx.BatchNorm(3, momentum=m, rngs=rngs) for m in (0.9, None)])
            self.spectral = bx.SpectralNorm(nnx.Linear(3, 2, rngs=rngs), rngs=rngs)

    old = nnx.state(Model(nnx.Rngs(0)), nnx.BatchStat)
    one = stats_of(seen(0.0))
    stacked = jax.tree.map(lambda t: jnp.broadcast_to(t, (DEVICES, *t.shape)), old)
    for i in (0, 1):
        stacked["norms"][i]["mean"].set_value(one["mean"])
        stacked["norms"][i]["var"].set_value(one["var"])
    stacked["norms"][1]["count"].set_value(jnp.full((4, 3), 40.0))
    got = jax.vmap(lambda s: bnjax.sync_batch_stats(s, "d"), axis_name="d")(stacked)
    assert jax.tree.structure(got) == jax.tree.structure(stacked)
    pure = jax.vmap(lambda s: bnjax.sync_batch_stats(s, "d"), axis_name="d")(nnx.to_pure_dict(stacked))
    jax.tree.map(np.testing.assert_array_equal, nnx.to_pure_dict(got), pure)
    want = references.moments(np.concatenate(seen(0.0)), 0)
    for i in (0, 1):
        np.testing.assert_allclose(pure["norms"][i]["var"][2], want.var, rtol=1e-5)
    jax.tree.map(
        partial(np.testing.assert_allclose, rtol=1e-6), pure["spectral"], nnx.to_pure_dict(stacked)["spectral"]
    )


def test_moments_in_a_tree_and_nothing_at_all():
    stats = stats_of(seen(1.0))
    tree = {"norm": bnjax.Moments(jnp.zeros(DEVICES), stats["mean"], stats["var"])}
    got = pooled("vmap", tree)["norm"]
    jax.tree.map(np.testing.assert_array_equal, {"mean": got.mean, "var": got.var}, pooled("vmap", stats))
    assert bnjax.sync_batch_stats({}, "nowhere") == {}


def test_bad_input():
    with pytest.raises(ValueError, match=r"`mean` of shape \(2,\).*`var` of shape \(3,\) at a/b"):
        bnjax.sync_batch_stats({"a": {"b": {"mean": jnp.zeros(2), "var": jnp.ones(3)}}}, "d")
    with pytest.raises(ValueError, match=r"`counts` must be a number.*\(4,\)"):
        bnjax.sync_batch_stats({}, "d", counts=jnp.ones(4))


def test_flax_s_advice_loses_the_variance_between_devices():
    stats = stats_of(seen(0.0))
    averaged = jax.vmap(lambda s: lax.pmean(s, "d"), axis_name="d")(stats)["var"][0]
    want = references.moments(np.concatenate(seen(0.0)), 0).var
    assert (averaged < 0.6 * want).all()
