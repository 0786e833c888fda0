"""The studies of dropout and other regularizers: their network, the ratio of variances, and the penalties."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.lab.fitting import digits
from experiments.lab.perceptron import Perceptron
from experiments.models.norms import NormChoice
from experiments.results.evidence import Evidence, Row, cell_name
from experiments.studies import regularizers, variance_shift


def test_a_traced_rate_drops_that_part_and_only_in_training():
    """Of the input of the head alone: its kernel is one, so that the logits are sums of what is left."""
    net = Perceptron(NormChoice("none"), 0, last=0.25, width=1)
    x = jnp.ones((4000, 1))
    variables = net.init({"params": jax.random.key(0)}, x, False)
    ones = jax.tree.map(jnp.ones_like, variables)

    @jax.jit
    def logits(rate, train):
        of_rate = Perceptron(NormChoice("none"), 0, last=rate, width=1)
        given, spared = (
            of_rate.apply(ones, x, t, rngs={"dropout": jax.random.key(1)})[:, 0] - 1 for t in (True, False)
        )
        return jnp.where(train, given, spared)

    dropped = logits(0.25, True)
    np.testing.assert_allclose(np.unique(dropped), [0, 4 / 3], rtol=1e-6)
    assert abs(float((dropped == 0).mean()) - 0.25) < 0.03  # four standard deviations
    assert (logits(0.25, False) == 1).all()
    assert (logits(0.0, True) == 1).all()


def test_the_ratio_is_that_of_independent_features():
    """Relu of normal numbers x: with dropout of 1/2 their variance is 2 E[x²] - E[x]², without it E[x²] - E[x]²."""
    net = Perceptron(NormChoice("batch", momentum=0.0), 2, before=0.5, width=512)
    x = jax.random.normal(jax.random.key(0), (2048, 64))
    keys = {"params": jax.random.key(1), "dropout": jax.random.key(2)}
    variables = net.init(keys, x, True)
    _, state = net.apply(variables, x, True, rngs={"dropout": jax.random.key(3)}, mutable=["batch_stats"])
    first, second = variance_shift.variance_ratios(net, {**variables, **state}, x)
    square, mean = 0.5, 1 / np.sqrt(2 * np.pi)
    np.testing.assert_allclose(first, 1, rtol=1e-4)
    np.testing.assert_allclose(second, (square - mean**2) / (2 * square - mean**2), rtol=0.02)


def test_what_is_measured_is_what_numpy_computes(monkeypatch):
    """Two norms after three steps: the ratios, and the accuracies with both statistics, in float64."""
    for name, value in (("DEPTH", 2), ("STEPS", 3), ("RATES", (0.0, 0.5))):
        monkeypatch.setattr(variance_shift, name, value)
    kept = []
    monkeypatch.setattr(
        variance_shift, "recalibrated", lambda v, *a, of=variance_shift.recalibrated: (kept.append(v), of(v, *a))[1]
    )
    found = list(variance_shift.run({"place": "before", "variance": "biased"}, [0]))
    (x, _), (held_out, classes) = digits(flat=True)
    for rate, variables in zip((0.0, 0.5), kept, strict=True):
        params, running = (jax.tree.map(np.float64, variables[name]) for name in ("params", "batch_stats"))
        ratios, logits = written_out(params, running, np.float64(x), np.float64(held_out), measure=False)
        _, again = written_out(params, running, np.float64(x), np.float64(held_out), measure=True)
        mine = [m for m in found if m.more["rate"] == rate]
        np.testing.assert_allclose([m.value for m in mine if m.metric.startswith("ratio")], ratios, rtol=1e-4)
        errors = {m.more["statistics"]: m.value for m in mine if m.metric == "error"}
        wanted = [100 * (out.argmax(-1) != classes).mean() for out in (logits, again)]
        np.testing.assert_allclose([errors["running"], errors["recalibrated"]], wanted, atol=0.3)  # one digit of 360


def written_out(params, running, x, held_out, measure):
    """The ratios of the variances in `x` by the running ones; the logits of `held_out`."""
    ratios = []
    for i in range(2):
        dense, norm, state = params[f"dense{i + 1}"], params[f"BatchNorm_{i}"], running[f"BatchNorm_{i}"]
        x, held_out = (v @ dense["kernel"] + dense.get("bias", 0) for v in (x, held_out))
        ratios.append((x.var(0) / state["var"]).mean())
        mean, var = (x.mean(0), x.var(0)) if measure else (state["mean"], state["var"])
        x, held_out = (
            np.maximum((v - mean) / np.sqrt(var + 1e-5) * norm["scale"] + norm["bias"], 0) for v in (x, held_out)
        )
    return ratios, held_out @ params["head"]["kernel"] + params["head"]["bias"]


def test_penalties_are_those_of_the_loss():
    """The gradient of a loss that has them in it, and none for norms."""
    net = Perceptron(NormChoice("layer"), 2, width=3)
    x, l1, l2 = jnp.ones((4, 5)), 0.3, 0.7
    params = jax.tree.map(lambda p: p + 0.01, net.init({"params": jax.random.key(0)}, x, False)["params"])  # none is 0

    def penalty(params):
        reached = [p for name, part in params.items() if "Norm" not in name for p in jax.tree.leaves(part)]
        return sum(l1 * jnp.abs(p).sum() + l2 / 2 * (p**2).sum() for p in reached)

    zero = jax.tree.map(jnp.zeros_like, params)
    added, _ = regularizers.penalties(jnp.asarray(l1), jnp.asarray(l2)).update(zero, optax.EmptyState(), params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), added, jax.grad(penalty)(params))


def test_the_best_is_chosen_by_other_digits_than_the_held_out_ones():
    """Of two settings the one with the better validation, although its accuracy is worse."""
    rows = []
    for one in regularizers.grid():
        good = one == {"dropout": "0.5-last", "l1": 0.0, "l2": 0.0}
        cell = cell_name({"norm": "batch", **one})
        values = [("validation, all seeds", 0, 90.0 if good else 80.0)]
        values += [("accuracy", seed, 50.0 + seed if good else 60.0) for seed in range(2)]
        rows += [Row("regularizers", cell, seed, metric, 1, value, "d", "c", "v") for metric, seed, value in values]
    found = Evidence(rows)
    assert regularizers.best(found, "batch", regularizers.DROPPED)["dropout"] == "0.5-last"
    gains = [row for row in regularizers.gains(found, ["batch"]) if row["regularizer"] == "dropout last"]
    assert [row["points"] for row in gains] == [-9.5]


def test_a_seed_learns_from_its_own_digits(monkeypatch):
    """What it draws is trained with, and the rest is for validation: none is in both."""
    parts = []
    monkeypatch.setattr(regularizers, "fit", lambda net, few, *a, **k: (parts.append(few), (None, None))[1])
    monkeypatch.setattr(regularizers, "accuracy", lambda net, v, examples: parts.append(examples))
    for seed in (0, 1):
        regularizers.trained("none", jnp.array(seed), *jnp.zeros(4))
    drawn = [{x.tobytes() for x in np.asarray(parts[i][0])} for i in (0, 2, 3)]
    assert parts[0][0].shape == (regularizers.EXAMPLES, 64)
    assert len(parts[2][0]) == 1437 - regularizers.EXAMPLES
    assert not drawn[0] & drawn[1]
    assert drawn[0] != drawn[2]
