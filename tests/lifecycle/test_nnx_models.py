"""The verbs of nnx on the models of the kit: every pair is reported once, and done right or left as it was."""

import jax
import numpy as np
import pytest
from flax import nnx

from bnjax.nnx import freeze, recalibrate, swap, unfreeze, upgrade
from tests.kit import models_nnx, population
from tests.kit.models_nnx import NNX

# Of models in bfloat16 what a norm is given has that precision; the second norm is given what the first made of it.
TOLERANCES = {"bfloat16": 3e-2}
WITH_NORMS = [name for name, case in NNX.items() if "none" not in case.flags]
MEASURED = [name for name in WITH_NORMS if "broadcast" not in NNX[name].flags]
# Measured again and again until it settles, which takes long: of models that are built alike, one.
BY_LAYER = ["axis", "bfloat16", "mobilenet", "lifted_last", "boxed", "odd", "more", "masked"]


def batches(name):
    return NNX[name].batches(3, last=6)


def pairs_of(model):
    return population.pairs_of(jax.tree.map(np.asarray, nnx.state(model, nnx.BatchStat)))


def assert_measured(got, want, tolerance):
    """Means are compared in units of the deviation."""
    np.testing.assert_allclose((got.mean - want.mean) / np.sqrt(want.var), 0, atol=tolerance)
    np.testing.assert_allclose(got.var, want.var, rtol=tolerance)


def assert_reported(report, model):
    """One row for each pair, and one for each further leaf."""
    pairs = pairs_of(model)
    leaves = len(jax.tree.leaves(nnx.state(model, nnx.BatchStat)))
    assert sorted(row.path for row in report if row.kind != "leaf") == sorted(pairs)
    assert len(report) == leaves - len(pairs)
    assert all(row.reason for row in report if not row.done)


@pytest.mark.parametrize("name", MEASURED)
def test_one_pass_measures_every_norm_in_the_flow_of_the_batch(name):
    model = models_nnx.model(name)
    old, want = pairs_of(model), population.one_pass(population.of_nnx(name), batches(name))
    state, report = recalibrate(model, batches(name), call=NNX[name].call)
    assert_reported(report, model)
    assert sorted(report.done) == sorted(want)
    new = population.pairs_of(state)
    for path in old:
        if path in want:
            assert_measured(new[path], want[path], TOLERANCES.get(name, 1e-5))
        else:
            np.testing.assert_array_equal(new[path], old[path])
    assert jax.tree.structure(state) == jax.tree.structure(nnx.state(model, nnx.BatchStat))


@pytest.mark.parametrize("name", BY_LAYER)
def test_by_layer_every_norm_is_exact(name):
    want = population.by_layer(population.of_nnx(name), batches(name))
    state, _ = recalibrate(models_nnx.model(name), batches(name), call=NNX[name].call, by_layer=True)
    new = population.pairs_of(state)
    for path, pair in want.items():
        assert_measured(new[path], pair, TOLERANCES.get(name, 1e-5))


@pytest.mark.parametrize(
    ("name", "reason"), [("broadcast", "takes the module as a constant"), ("transformer", "no norm at all")]
)
def test_models_on_which_nothing_can_be_done(name, reason):
    with pytest.raises(ValueError, match=reason):
        recalibrate(models_nnx.model(name), batches(name), call=NNX[name].call)


@pytest.mark.parametrize("name", WITH_NORMS)
def test_upgraded_models_compute_what_they_did(name):
    want, got = models_nnx.model(name), models_nnx.model(name)
    report = upgrade(got)
    assert_reported(report, got)
    assert set(report.refused) == {row.path for row in report if row.kind in ("leaf", "OwnBatchNorm")}
    tolerance = TOLERANCES.get(name, 1e-5)
    for program in (models_nnx.evaluate, models_nnx.train):
        y, y_flax = (np.asarray(program(name, m, NNX[name].example), np.float64) for m in (got, want))
        np.testing.assert_allclose(y, y_flax, atol=2 * tolerance * abs(y_flax).max())
    for pair, pair_flax in zip(pairs_of(got).values(), pairs_of(want).values(), strict=True):
        np.testing.assert_allclose(pair, pair_flax, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", WITH_NORMS)
def test_frozen_models_train_as_they_are_evaluated(name):
    model, plain = models_nnx.model(name), models_nnx.model(name)
    before = pairs_of(model)
    report = freeze(model)
    models_nnx.train(name, model, NNX[name].example)
    new = pairs_of(model)
    for path in report.done:
        np.testing.assert_array_equal(new[path], before[path])
    if not NNX[name].flags & {"foreign", "more", "dropout"}:
        y = models_nnx.train(name, model, NNX[name].example)
        want = models_nnx.evaluate(name, plain, NNX[name].example)
        tolerance = TOLERANCES.get(name, 1e-5) * float(abs(want).max())
        np.testing.assert_allclose(np.float32(y), np.float32(want), atol=tolerance)
    unfreeze(model)
    plain.train()
    assert nnx.graphdef(model) == nnx.graphdef(plain)


@pytest.mark.parametrize("name", WITH_NORMS)
def test_models_train_with_other_norms(name):
    model, before = models_nnx.model(name), pairs_of(models_nnx.model(name))
    report = swap(model, "renorm", rngs=nnx.Rngs(0))
    for path, pair in before.items():
        np.testing.assert_array_equal(pairs_of(model)[path], pair)
    why = {row.reason for row in report if row.kind == "batch" and not row.done}
    assert report.done
    assert why == {
        "lifted_last": {"its variables are stacked along another axis than the first"},
        "subclasses": {"its class `NormRelu` has a call of its own, which would be lost"},
    }.get(name, set())
    assert np.isfinite(np.float32(models_nnx.train(name, model, NNX[name].example))).all()
