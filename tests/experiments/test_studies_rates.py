"""The studies of learning rates and batch sizes: what they call stable, and the training that they count steps of."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from experiments.lab.patches import PatchCNN
from experiments.models.norms import NormChoice
from experiments.studies import batch_size, learning_rate


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


def test_a_dense_layer_on_patches_is_a_convolution():
    """Three layers beside Flax's convolutions with the same kernels, padded by one, and its group norm."""
    net = PatchCNN(NormChoice("group", groups=2), widths=(4, 6, 8))
    x = jax.random.normal(jax.random.key(0), (3, 8, 8, 1))
    params = net.init(jax.random.key(1), x, False)["params"]
    want = x
    for i, (inputs, width, stride) in enumerate([(1, 4, 1), (4, 6, 2), (6, 8, 2)]):
        conv = nn.Conv(width, (3, 3), strides=stride, padding=1, use_bias=False)
        want = conv.apply({"params": {"kernel": params[f"conv{i + 1}"]["kernel"].reshape(3, 3, inputs, width)}}, want)
        want = nn.relu(nn.GroupNorm(2).apply({"params": params[f"GroupNorm_{i}"]}, want))
    want = want.mean((1, 2)) @ params["head"]["kernel"] + params["head"]["bias"][None]
    np.testing.assert_allclose(net.apply({"params": params}, x, False), want, rtol=1e-4, atol=1e-5)


def test_the_rate_rises_and_falls():
    """A line times a cosine; without warm-up the cosine alone, as Optax has it."""
    steps = np.arange(16)
    cosine = np.array([optax.cosine_decay_schedule(0.4, 16)(i) for i in steps])
    without, warm = (batch_size.rate_at(0.4, 16, jnp.asarray(part), jnp.asarray(steps)) for part in (0.0, 0.25))
    np.testing.assert_allclose(without, cosine, rtol=1e-5)
    np.testing.assert_allclose(warm, cosine * np.minimum(1, (steps + 1) / 4), rtol=1e-5)


def test_every_cell_of_batch_sizes_is_measured(monkeypatch):
    """A few steps: errors of 360 digits; of ghosts also those of the digits that the seed drew, and no others."""
    for name, value in (("SEEN", 64), ("SIZES", (8, 32)), ("WARMED", (32,)), ("WHOLE", 32), ("FEW", 40)):
        monkeypatch.setattr(batch_size, name, value)
    sizes = list(batch_size.run({"part": "size", "norm": "ghost", "size": 32}, [0, 1]))
    assert [(m.seed, m.step, m.more["warm"]) for m in sizes] == [(s, 2, w) for s in (0, 1) for w in (0.0, 0.25)]
    ghosts = list(batch_size.run({"part": "ghost", "norm": "ghost", "size": 32, "ghost": 8}, [0, 1]))
    assert [(m.metric, m.seed) for m in ghosts] == [(m, s) for m in ("train error", "error") for s in (0, 1)]
    for examples, found in ((360, [*sizes, *ghosts[2:]]), (40, ghosts[:2])):
        wrong = np.array([m.value for m in found]) * examples / 100
        np.testing.assert_allclose(wrong, wrong.round(), atol=1e-3)


def test_a_ghost_batch_that_is_the_batch_is_batch_norm():
    cells = batch_size.cells(False)
    assert [c["size"] for c in cells if c["norm"] == "ghost" and c["part"] == "size"] == [32, 1024]
    assert batch_size._of("ghost", 8) == batch_size._of("batch", 8)
