"""The studies of learning rates and batch sizes: what they call stable, and the training that they count steps of."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from experiments.studies import learning_rate


def test_steps_are_counted_to_the_first_time():
    curve = np.array([0.1, 0.5, 0.92, 0.85, 0.95])
    assert learning_rate.steps_to(0.9, curve) == 20
    assert learning_rate.steps_to(0.99, curve) == 40  # never: all of them


def test_the_largest_stable_rate_is_relative_to_the_best():
    """Of two seeds, over 15 rates: nine tenths of 90 are 81, of 50 are 45."""
    accuracies = np.full((15, 2), 10.0)
    accuracies[:8, 0] = [85, 88, 90, 90, 90, 82, 81, 80]
    accuracies[:4, 1] = [50, 49, 44, 45]
    np.testing.assert_allclose(10 ** learning_rate.largest_stable(accuracies), [0.1, 0.018])


def test_a_curve_is_that_of_training_written_out(monkeypatch):
    """Four steps of two layers with Flax's layer norm and relu, looked at after every second one."""
    for name, value in (("STEPS", 4), ("EVERY", 2), ("BATCH", 8), ("DEPTH", 2)):
        monkeypatch.setattr(learning_rate, name, value)
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(40, 6)).astype(np.float32), rng.integers(0, 10, 40)
    got = learning_rate.trained("layer", (x, y), (x, y), jnp.array(3), jnp.array(0.1))
    key = jax.random.key(3)
    params = learning_rate.Perceptron(learning_rate.NormChoice("layer"), 2).init({"params": key}, x, True)["params"]

    def logits(params, x):
        for i in (1, 2):
            x = x @ params[f"dense{i}"]["kernel"]
            x = nn.relu(nn.LayerNorm().apply({"params": params[f"LayerNorm_{i - 1}"]}, x))
        return x @ params["head"]["kernel"] + params["head"]["bias"][None]

    def loss(params, x, y):
        return -jax.nn.log_softmax(logits(params, x))[jnp.arange(len(y)), y].mean()

    right, state = [], jax.tree.map(jnp.zeros_like, params)
    for i in range(5):
        right.append((logits(params, x).argmax(-1) == y).mean())
        at = np.asarray(jax.random.randint(jax.random.fold_in(key, i), (8,), 0, 40))
        state = jax.tree.map(lambda m, g: 0.9 * m + g, state, jax.grad(loss)(params, x[at], y[at]))
        params = jax.tree.map(lambda p, m: p - 0.1 * m, params, state)
    assert len(set(map(float, right[::2]))) > 1
    np.testing.assert_allclose(got, right[::2], atol=1e-6)
