"""The study of internal covariate shift, beside what is written out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from experiments.lab import landscape
from experiments.lab.fitting import Step
from experiments.studies import covariate_shift as study

RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(20, 6)).astype(np.float32)
Y = RANDOM.integers(0, 10, 20)


def test_the_drift_is_the_mean_of_all_moves_written_out():
    quantiles = np.sort(RANDOM.normal(size=(5, 3, 4)), 1)
    relative, absolute = [], []
    for look in range(4):
        for unit in range(4):
            spread = quantiles[look, 2, unit] - quantiles[look, 0, unit]
            for q in range(3):
                absolute.append(abs(quantiles[look + 1, q, unit] - quantiles[look, q, unit]))
                relative.append(absolute[-1] / spread)
    np.testing.assert_allclose(study.drift(quantiles), [np.mean(relative), np.mean(absolute)])
    assert study.drift(3 * quantiles)[0] == pytest.approx(np.mean(relative))


@pytest.mark.parametrize("version", study.VERSIONS)
def test_what_is_looked_at_goes_into_the_last_sigmoid(version, monkeypatch):
    """Before the first step, with dense layers and norms in a loop; a second look is after a step."""
    for name, value in (("STEPS", 2), ("EVERY", 1), ("BATCH", 4)):
        monkeypatch.setattr(study, name, value)
    quantiles, accuracies = study.watched(version, (X, Y), (X, Y), jnp.array(3), jnp.array(0.1))
    assert quantiles.shape == (2, 3, study.WIDTH)
    assert accuracies.shape == (2,)
    assert (quantiles[0] != quantiles[1]).any()
    key = jax.random.key(3)
    params = study.Sigmoid("none").init({"params": key, "dropout": key}, X[:1], True)["params"]
    x = np.float64(X)
    for i in range(1, 4):
        x = x @ np.float64(params[f"dense{i}"]["kernel"]) + np.float64(params[f"dense{i}"]["bias"])
        if version != "none":
            x = (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5)
        last, x = x, 1 / (1 + np.exp(-x))
    want = np.quantile(last, study.QUANTILES, axis=0)
    if version == "batch_noisy":  # behind the last norm alone the noise would be a line of these
        assert np.abs(quantiles[0] - want).max() > 0.1
    else:
        np.testing.assert_allclose(quantiles[0], want, atol=1e-4)


def test_noise_moves_and_stretches_each_unit():
    x = jnp.asarray(RANDOM.normal(size=(4000, 50)).astype(np.float32))
    found, other = (np.asarray(study.noisy(x, jax.random.key(i))) for i in (0, 1))
    scale = found.std(0) / np.asarray(x).std(0)
    shift = found.mean(0) - scale * np.asarray(x).mean(0)
    assert (scale >= 1 - 1e-4).all()
    assert (scale <= 1.25 + 1e-4).all()
    assert (np.abs(shift) <= 0.5 + 1e-4).all()
    assert scale.max() - scale.min() > 0.15
    assert shift.max() - shift.min() > 0.6
    assert np.abs(found.mean(0) - other.mean(0)).max() > 0.3


def test_what_is_met_along_the_gradient_is_that_of_each_step_written_out():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x, train):
            return nn.Dense(10, name="head")(nn.tanh(nn.Dense(5, name="first")(x)))

    net = Net()
    params = net.init(jax.random.key(0), X, True)["params"]

    def loss(params):
        logits = nn.tanh(X @ params["first"]["kernel"] + params["first"]["bias"][None]) @ params["head"]["kernel"]
        return -jax.nn.log_softmax(logits + params["head"]["bias"][None])[jnp.arange(20), Y].mean()

    def length(tree):
        return np.sqrt(sum((np.float64(leaf) ** 2).sum() for leaf in jax.tree.leaves(tree)))

    start, gradient = jax.value_and_grad(loss)(params)
    step = Step(jnp.array(0), {"params": params}, jnp.asarray(X), jnp.asarray(Y), start, gradient, {})
    found = landscape.along_gradient(net, step)
    unit = length(gradient)
    for kind, rates in (
        ("absolute", landscape.ABSOLUTE),
        ("relative", [part * length(params) / unit for part in landscape.RELATIVE]),
    ):
        losses, changes, ways = [float(start)], [], []
        for rate in rates:
            moved = jax.tree.map(lambda p, g, r=rate: p - r * g, params, gradient)
            value, own = jax.value_and_grad(loss)(moved)
            losses.append(float(value))
            changes.append(length(jax.tree.map(jnp.subtract, own, gradient)))
            ways.append(rate * unit)
        if kind == "relative":
            changes, ways = [c / unit for c in changes], [way / length(params) for way in ways]
        want = {
            "low": min(losses), "high": max(losses), "range": max(losses) - min(losses), "change": max(changes),
            "smoothness": max(c / way for c, way in zip(changes, ways, strict=True)),
        }  # fmt: skip
        for name, value in want.items():
            np.testing.assert_allclose(found[kind][name], value, rtol=2e-4, err_msg=f"{kind} {name}")


def test_what_is_not_finite_is_the_worst():
    values = landscape._finite(jnp.array([1.0, jnp.nan, jnp.inf, 1e9]))
    np.testing.assert_array_equal(values, [1.0, 1e6, 1e6, 1e6])
