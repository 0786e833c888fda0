"""The models that the tests of this folder run on do run, by Flax alone, and what their statistics should be is."""

import jax
import numpy as np
import pytest
from flax import nnx
from flax.core import unfreeze

from tests.kit import models_linen, models_nnx, population
from tests.kit.models_linen import LINEN
from tests.kit.models_nnx import NNX


def finite(tree):
    return all(np.isfinite(np.asarray(t, np.float64)).all() for t in jax.tree.leaves(tree))


def moved(new, old):
    return [bool((a != b).any()) for a, b in zip(jax.tree.leaves(new), jax.tree.leaves(old), strict=True)]


def stats_of(model):
    return nnx.clone(nnx.state(model, nnx.BatchStat))


@pytest.mark.parametrize("name", LINEN)
def test_linen_models_run(name):
    case, variables = LINEN[name], models_linen.variables(name)
    assert finite(models_linen.evaluate(name, variables, case.example))
    if "broadcast" in case.flags:
        with pytest.raises(ValueError, match="broadcast"):
            models_linen.train(name, variables, case.example)
        return
    y, stats = models_linen.train(name, variables, case.example)
    old = unfreeze(variables.get("batch_stats", {}))
    assert finite((y, stats))
    assert jax.tree.structure(unfreeze(stats)) == jax.tree.structure(old)
    assert any(moved(stats, old)) != ("none" in case.flags)


@pytest.mark.parametrize("name", NNX)
def test_nnx_models_run(name):
    case, model = NNX[name], models_nnx.model(name)
    old = stats_of(model)
    assert finite(models_nnx.evaluate(name, model, case.example))
    assert not any(moved(stats_of(model), old))
    assert finite((models_nnx.train(name, model, case.example), stats_of(model)))
    # Flax says nothing where a scan shares the statistics: they stay.
    assert any(moved(stats_of(model), old)) == case.flags.isdisjoint({"none", "broadcast"})


def test_the_first_norm_is_measured_over_what_it_is_given():
    batches = LINEN["masked"].batches(3, last=6)
    dense = population.wide(models_linen.variables("masked")["params"]["Dense_0"])
    x = np.concatenate([b["x"][b["mask"]] for b in batches]).astype(np.float64)
    x = x @ dense["kernel"] + dense["bias"]
    for measure in (population.one_pass, population.by_layer):
        mean, var = measure(population.linen("masked"), batches)["BatchNorm_0"]
        np.testing.assert_allclose(mean, x.mean(0), rtol=1e-13)
        np.testing.assert_allclose(var, x.var(0), rtol=1e-13)


def by_a_step(old, new, momentum=0.9):
    """The statistics of the batch, from those before a step and after it."""
    return {p: [(b - momentum * a) / (1 - momentum) for a, b in zip(old[p], new[p], strict=True)] for p in old}


def linen_step(name, batch):
    _, stats = models_linen.train(name, models_linen.variables(name), batch)
    return population.linen(name), stats


def nnx_step(name, batch):
    model = models_nnx.model(name)
    models_nnx.train(name, model, batch)
    return population.of_nnx(name), stats_of(model)


@pytest.mark.parametrize("name", ["densenet", "lifted_last", "axis"])
@pytest.mark.parametrize("step", [linen_step, nnx_step])
def test_of_one_batch_every_norm_is_measured_as_by_a_step_of_training(step, name):
    batch = LINEN[name].example
    subject, new = step(name, batch)
    expected = by_a_step(subject.pairs, population.pairs_of(population.wide({"batch_stats": new})))
    for measure in (population.one_pass, population.by_layer):
        pairs = measure(subject, [batch])
        assert pairs.keys() == expected.keys()
        for path, pair in pairs.items():
            for got, want in zip(pair, expected[path], strict=True):
                np.testing.assert_allclose(got, want, rtol=2e-4, atol=2e-4)  # a step is in float32, and taken tenfold
