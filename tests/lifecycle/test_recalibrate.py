"""Recalibration and AdaBN of linen models, against numpy in float64."""

import weakref
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax.core import freeze as frozen
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from bnjax import linen as bnn
from bnjax.linen import adapt, freeze, recalibrate, swap, upgrade
from tests.kit import devices, models_linen, population
from tests.kit.models_linen import LINEN

RNG = np.random.default_rng(0)
X = [RNG.normal(m, 1 + abs(m), (n, 3)).astype(np.float32) for m, n in ((1, 5), (3, 5), (-2, 2))]
FIRST = 1e-6  # a norm with no other before it
LATER = 1e-5


class Two(nn.Module):
    """Two norms; `x` is (examples, ..., 3)."""

    norm: type = nn.BatchNorm

    @nn.compact
    def __call__(self, x, mask=None):
        x = nn.relu(self.norm(use_running_average=True, name="a")(x, mask=mask))
        return self.norm(use_running_average=True, name="b")(nn.Dense(4)(x), mask=mask)


TWO = Two()
VARIABLES = jax.tree.map(np.asarray, TWO.init(jax.random.key(0), X[0]))


def both(x, axis=0):
    """Mean and variance in float64."""
    x = np.asarray(x, complex if np.iscomplexobj(x) else float)
    return {"mean": x.mean(axis), "var": x.var(axis)}


def assert_close(got, want, tolerance):
    """The mean in standard deviations, and the variance as a factor."""
    std = np.sqrt(want["var"])
    assert np.max(np.abs(np.asarray(got["mean"]) - want["mean"]) / std) <= tolerance
    assert np.max(np.abs(np.asarray(got["var"]) / want["var"] - 1)) <= tolerance


def layer_by_layer(x, variables=VARIABLES):
    """What the two norms of `Two` should have, by hand; `x` has the features last."""
    x = np.asarray(x, float).reshape(-1, 3)
    first = both(x)
    x = np.maximum((x - first["mean"]) / np.sqrt(first["var"] + 1e-5), 0)
    dense = variables["params"]["Dense_0"]
    return {"a": first, "b": both(x @ np.asarray(dense["kernel"], float) + np.asarray(dense["bias"], float))}


def assert_by_layer(stats, want):
    assert_close(stats["a"], want["a"], FIRST)
    assert_close(stats["b"], want["b"], LATER)


KIT = {False: "axis boxed own carried", True: "frozendict lifted_last odd masked"}


@pytest.mark.parametrize(("name", "by_layer"), [(name, key) for key, names in KIT.items() for name in names.split()])
def test_models_that_know_nothing_of_it(name, by_layer):
    case, variables = LINEN[name], models_linen.variables(name)
    before = jax.tree.map(np.array, variables)
    new, report = recalibrate(case.make(), variables, case.batches(3, 4, 2), call=case.call, by_layer=by_layer)
    measured = population.by_layer if by_layer else population.one_pass
    want = measured(population.linen(name), case.batches(3, 4, 2))
    got = population.pairs_of({"batch_stats": new})
    assert set(got) == {row.path for row in report if row.kind != "leaf"}
    assert set(report.done) == set(want)
    assert set(report.refused) == set(got) - set(want) | {row.path for row in report if row.kind == "leaf"}
    for path in want:
        assert_close(got[path]._asdict(), want[path]._asdict(), LATER)
    old = variables["batch_stats"]
    assert jax.tree.structure(new) == jax.tree.structure(old)
    for a, b in zip(jax.tree.leaves(new), jax.tree.leaves(old), strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
    jax.tree.map(np.testing.assert_array_equal, variables, before)
    kept = population.pairs_of({"batch_stats": old})
    for path in set(got) - set(want):
        np.testing.assert_array_equal(got[path].mean, kept[path].mean)


def test_uneven_batches_weigh_by_their_examples():
    stats, report = recalibrate(TWO, VARIABLES, X, by_layer=True)
    assert_by_layer(stats, layer_by_layer(np.concatenate(X)))
    assert report["a"].evidence["count"] == 12


def test_padded_and_masked_is_uneven():
    def padded(x):
        rest = RNG.normal(50, 9, (5 - len(x), 3)).astype(np.float32)
        return {"x": np.concatenate([x, rest]), "ok": np.arange(5) < len(x)}

    stats, _ = recalibrate(
        TWO, VARIABLES, [*map(padded, X)], call=lambda m, b: m(b["x"]), valid=lambda b: b["ok"], by_layer=True
    )
    assert_by_layer(stats, layer_by_layer(np.concatenate(X)))
    plain, _ = recalibrate(TWO, VARIABLES, X, by_layer=True)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-6), stats, plain)


def test_masks_of_positions_at_the_call_and_by_valid_both_count():
    x = RNG.normal(2, 3, (4, 5, 3)).astype(np.float32)
    call_mask, valid = RNG.random((4, 5)) < 0.7, RNG.random((4, 5)) < 0.7
    for at_call, by_valid in ((True, False), (False, True), (True, True)):
        ok = (call_mask if at_call else True) & (valid if by_valid else np.ones((4, 5), bool))
        stats, report = recalibrate(
            TWO,
            VARIABLES,
            [x],
            call=lambda m, b: m(b, mask=call_mask[..., None] if at_call else None),  # noqa: B023
            valid=(lambda b: valid) if by_valid else None,
            by_layer=True,
        )
        assert_by_layer(stats, layer_by_layer(x[ok]))
        assert report["a"].evidence["count"] == ok.sum()


@pytest.mark.parametrize("law", ["merge", "average"])
def test_the_prior_is_weighed_against_examples(law):
    x, old, prior = np.concatenate(X), VARIABLES["batch_stats"]["a"], 7.0
    old = {"mean": old["mean"] + np.float32([1, 2, 3]), "var": old["var"] * np.float32([1, 4, 9])}
    variables = VARIABLES | {"batch_stats": VARIABLES["batch_stats"] | {"a": old}}
    new = both(x)
    if law == "average":  # batches are averaged, too
        new["var"] = sum(len(t) * t.astype(float).var(0) for t in X) / len(x)
    w = prior / (prior + len(x))
    want = {name: w * old[name] + (1 - w) * new[name] for name in ("mean", "var")}
    if law == "merge":
        want["var"] = want["var"] + w * (1 - w) * (new["mean"] - old["mean"]) ** 2
    wide_batches = [t[:, None].repeat(4, 1) for t in X]  # positions are no examples
    for batches, verb in ((X, adapt), (wide_batches, recalibrate)):
        stats, _ = verb(TWO, variables, batches, prior=prior, law=law)
        assert_close(stats["a"], want, FIRST)


def test_adapt_has_the_prior_of_the_literature():
    stats, _ = adapt(TWO, VARIABLES, X)
    same, _ = recalibrate(TWO, VARIABLES, X, prior=16, law="average")
    jax.tree.map(np.testing.assert_array_equal, stats, same)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_four_devices_are_one(kind):
    mesh = devices.mesh(4, kind=kind)
    x = RNG.normal(2, 3, (8, 4, 3)).astype(np.float32)
    want, _ = recalibrate(TWO, VARIABLES, [x, x + 1])
    with jax.set_mesh(mesh):
        variables = jax.device_put(VARIABLES, NamedSharding(mesh, P()))
        batches = [jax.device_put(t, NamedSharding(mesh, P("d"))) for t in (x, x + 1)]
        got, _ = recalibrate(TWO, variables, batches)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(variables["batch_stats"]), strict=True):
        assert a.sharding == b.sharding
    for name in "ab":
        assert_close(got[name], jax.tree.map(np.asarray, want[name]), LATER)


def test_batches_are_read_one_by_one():
    seen, most = [], []

    def batches():
        for n in range(6):
            batch = np.full((2, 3), n, np.float32)
            seen.append(weakref.ref(batch))
            yield batch
            del batch
            most.append(sum(ref() is not None for ref in seen))

    stats, _ = recalibrate(TWO, VARIABLES, batches())
    assert_close(stats["a"], both(np.arange(6.0).repeat(3).reshape(6, 3)), FIRST)
    assert max(most) <= 2
    with pytest.raises(ValueError, match="`by_layer=True` reads the batches once for each norm, but `batches`"):
        recalibrate(TWO, VARIABLES, batches(), by_layer=True)


def test_float64_and_complex(x64):
    x = np.concatenate(X).astype(np.float64) + 1e6
    model = nn.BatchNorm(use_running_average=True, param_dtype=jnp.float64, force_float32_reductions=False)
    stats, _ = recalibrate(model, model.init(jax.random.key(0), x), [x[:5], x[5:]])
    assert stats["mean"].dtype == jnp.float64
    assert_close(stats, both(x), 1e-9)
    z = x - 1e6 + 1j * x[::-1]
    model = nn.BatchNorm(use_running_average=True, param_dtype=jnp.complex128, force_float32_reductions=False)
    variables = model.init(jax.random.key(0), z)
    stats, _ = recalibrate(model, variables, [z[:5], z[5:]])
    assert_close(stats, both(z), 1e-9)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_narrow_statistics_stay_narrow(dtype):
    model = nn.BatchNorm(use_running_average=True, param_dtype=dtype, force_float32_reductions=False)
    variables = model.init(jax.random.key(0), X[0])
    stats, _ = recalibrate(model, variables, X)
    assert stats["mean"].dtype == stats["var"].dtype == dtype
    assert_close(jax.tree.map(np.float64, stats), both(np.concatenate(X)), float(jnp.finfo(dtype).eps))


def test_narrow_inputs_are_measured_in_float32():
    narrow = [t.astype(jnp.bfloat16) for t in X]
    stats, _ = recalibrate(Two(partial(nn.BatchNorm, dtype=jnp.bfloat16)), VARIABLES, narrow)
    assert stats["a"]["mean"].dtype == jnp.float32
    assert_close(stats["a"], both(np.concatenate(narrow).astype(float)), FIRST)


def test_boxes_frozen_dicts_and_our_own_norms():
    model = Two(partial(bnn.BatchNorm, virtual_batch_size=1, axis_name="nowhere", momentum=None))
    variables = frozen(model.init(jax.random.key(0), X[0]))
    stats, _ = recalibrate(model, variables, X, by_layer=True)
    assert jax.tree.structure(stats) == jax.tree.structure(variables["batch_stats"])
    assert_by_layer(stats, layer_by_layer(np.concatenate(X), variables))


def test_one_example_a_batch():
    x = np.concatenate(X)
    stats, _ = recalibrate(TWO, VARIABLES, [t[None] for t in x], by_layer=True)
    assert_by_layer(stats, layer_by_layer(x))


class Branches(nn.Module):
    """A norm that runs for some batches only, one that runs twice, and one that never does."""

    def setup(self):
        self.often, self.seldom, self.never = (nn.BatchNorm(use_running_average=True) for _ in range(3))

    def __call__(self, x):
        if self.is_initializing():
            return self.often(x) + self.seldom(x) + self.never(x)
        x = nn.cond(x[0, 0] > 9, lambda m, x: m.seldom(x), lambda m, x: x, self, x)
        return self.often(x) + self.often(-x)


def test_branches_that_are_not_taken():
    model = Branches()
    variables = model.init(jax.random.key(0), X[0])
    large = X[1] + np.float32(20)
    stats, report = recalibrate(model, variables, [X[0], large])
    assert report.done == ("often", "seldom")
    assert (report["never"].done, report["never"].reason) == (False, "it was not called")
    assert_close(stats["seldom"], both(large), FIRST)
    assert report["seldom"].evidence["calls"] == 1
    assert report["often"].evidence["calls"] == 4
    assert "several times" in report["often"].reason
    _, report = recalibrate(model, variables, X[:1])
    assert report["seldom"].reason == "it was not called"


def test_what_is_not_finite_or_not_valid_keeps_the_old_statistics():
    bad = X[0].copy()
    bad[2, 1] = np.inf
    norm = nn.BatchNorm(use_running_average=True)
    model = nn.Sequential([norm, jnp.zeros_like, norm.copy()])
    variables = model.init(jax.random.key(0), bad)
    stats, report = recalibrate(model, variables, [X[0], bad])
    assert report.done == ("layers_2",)
    assert report["layers_0"].reason == "its input is not finite"
    jax.tree.map(np.testing.assert_array_equal, stats["layers_0"], variables["batch_stats"]["layers_0"])
    with pytest.raises(ValueError, match=r"found nothing to do(.|\n)*layers_0 \(batch\): no element was valid"):
        recalibrate(model, variables, X, valid=lambda b: np.zeros(len(b), bool))


def test_again_with_the_other_contexts():
    want = both(np.concatenate(X))
    with upgrade(pivot="running", unbiased=True, virtual_batch_size=1):
        stats, _ = recalibrate(TWO, VARIABLES, X)
    assert_close(stats["a"], want, FIRST)
    with freeze("b"):
        stats, report = recalibrate(TWO, VARIABLES, X)
    assert report["b"].reason == "it is frozen"
    assert_close(stats["a"], want, FIRST)
    with swap("layer", "b"):
        _, report = recalibrate(TWO, VARIABLES, X)
    assert report["b"].reason == "it is swapped for 'layer'"
    with pytest.raises(ValueError, match=r"found nothing to do(.|\n)*a \(batch\): it is frozen"), freeze():
        recalibrate(TWO, VARIABLES, X)


def test_large_means_keep_their_variance():
    """Nothing of the old statistics is a pivot: they are far away."""
    x = [t + np.float32(4e3) for t in X]
    stats, _ = recalibrate(TWO, VARIABLES, x)
    # A float32 near 4000 is good to 2.4e-4, 1e-4 of a standard deviation; the mean of a batch is one.
    assert_close(stats["a"], both(np.concatenate(x)), 2e-4)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"law": "mean"}, "`law`.*'mean'"),
        ({"prior": -1}, "`prior`.*-1"),
        ({"by_layer": 2}, "`by_layer`.*2"),
        ({"valid": 3}, "`valid`.*3"),
        ({"valid": lambda b: b}, "`valid`.*float32"),
        ({"valid": lambda b: np.ones(7, bool)}, r"`valid`.*\(7,\).*'a'"),
        ({"batches": 3}, "`batches`.*3"),
        ({"batches": []}, "`batches` is empty"),
        ({"variables": {"params": {}}}, "`variables`.*`batch_stats`.*params"),
        ({"call": lambda m, b: b}, r"found nothing to do(.|\n)*a \(unknown\): it was not called"),
    ],
)
def test_what_is_wrong_is_said(options, words):
    given = {"variables": VARIABLES, "batches": X[:1]} | options
    with pytest.raises(ValueError, match=words):
        recalibrate(TWO, given.pop("variables"), given.pop("batches"), **given)


def test_a_prior_wants_to_know_how_many_examples_there_are():
    batch = {"x": X[0], "other": np.zeros(99)}
    with pytest.raises(ValueError, match=r"`prior`.*\[5, 99\].*`valid"):
        recalibrate(TWO, VARIABLES, [batch], call=lambda m, b: m(b["x"]), prior=3)


def test_statistics_that_a_scan_shares_are_refused():
    case = LINEN["broadcast"]
    with pytest.raises(ValueError, match="`call` runs a batch norm whose `batch_stats` are broadcast"):
        recalibrate(case.make(), models_linen.variables("broadcast"), case.batches(1), call=case.call)


def test_a_model_is_traced_once_and_again_where_something_else_is_in_force():
    traces = []

    def call(model, batch):
        traces.append(batch.shape)
        return model(batch)

    first, _ = recalibrate(TWO, VARIABLES, X[:1], call=call)
    again, _ = recalibrate(Two(), VARIABLES, X[:1], call=call)
    assert len(traces) == 1
    jax.tree.map(np.testing.assert_array_equal, first, again)
    with freeze("b"):
        _, report = recalibrate(TWO, VARIABLES, X[:1], call=call)
    assert (len(traces), report.done) == (2, ("a",))
    _, report = recalibrate(TWO, VARIABLES, X[:1], call=call)
    assert (len(traces), report.done) == (2, ("a", "b"))
