"""The article's network: against one written with Flax alone, linen against nnx, and under a mask."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from experiments.cli.errors import UserError
from experiments.config import NORMS, Config, ModelConfig, OptimizerConfig, TrainConfig
from experiments.models import Job, make_network
from experiments.tasks import classes, classification
from experiments.tasks.task import View
from experiments.training.layouts import make_layout
from experiments.training.optimizer import make_optimizer
from experiments.training.steps import eval_step, init_state, train_step
from tests.kit.comparison import assert_trees_close

SHAPE, CLASSES, BATCH = (8, 12, 2), 5, 6


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


class FlaxCNN(nn.Module):
    """The same network, written once more with Flax's own layers."""

    norm: str

    @nn.compact
    def __call__(self, x, train):
        def norm(name, x):
            return x if self.norm == "none" else nn.BatchNorm(not train, momentum=0.8, name=name)(x)

        x = norm("norm0", x)
        x = norm("norm1", nn.relu(nn.Conv(3, (3, 3), name="conv1")(x)))
        x = nn.max_pool(x, (2, 2), (2, 2))
        x = norm("norm2", nn.relu(nn.Conv(4, (3, 3), name="conv2")(x)))
        x = nn.max_pool(x, (2, 2), (2, 2))
        x = norm("norm3", nn.relu(nn.Dense(5, name="dense")(x.reshape(len(x), -1))))
        return nn.Dense(CLASSES, name="head")(x)


@pytest.fixture
def batch():
    keys = jax.random.split(jax.random.key(1), 2)
    return {
        "image": 2 + jax.random.normal(keys[0], (BATCH, *SHAPE)),
        "label": jax.random.randint(keys[1], (BATCH,), 0, CLASSES),
        "mask": jnp.ones(BATCH, bool),
    }


def images(shape):
    return Job(jax.ShapeDtypeStruct((1, *shape), jnp.float32), CLASSES)


def network(api, norm):
    config = ModelConfig(api=api, norm=norm, widths=(3, 4, 5), momentum=0.8, dtype="float64")
    return make_network(config, images(SHAPE))


@functools.cache
def parameters(norm):
    """Parameters and statistics in float64, away from where they start."""
    leaves, tree = jax.tree.flatten(jax.jit(network("linen", norm).init)(jax.random.key(0)))
    keys = jax.random.split(jax.random.key(2), len(leaves))
    return tree.unflatten([x + 0.1 * jax.random.uniform(k, x.shape) for x, k in zip(leaves, keys, strict=True)])


@functools.cache
def step(api, norm):
    """A compiled function: loss, gradients, logits, new statistics; and logits and statistics at evaluation."""

    def flax_apply(params, stats, x, *, train, mask):
        variables = {"params": params, "batch_stats": stats}
        logits, new = FlaxCNN(norm).apply(variables, x, train, mutable=["batch_stats"])
        return logits, new.get("batch_stats", {})

    apply = flax_apply if api == "flax" else network(api, norm).apply

    @jax.jit
    def run(params, stats, batch):
        def loss(params):
            logits, new = apply(params, stats, batch["image"], train=True, mask=batch["mask"])
            return classes.measure(logits, classification.view(batch))["loss"], (logits, new)

        evaluated = apply(params, stats, batch["image"], train=False, mask=batch["mask"])
        return jax.value_and_grad(loss, has_aux=True)(params), evaluated

    return run


assert_close = functools.partial(assert_trees_close, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("norm", ["batch", "none"])
@pytest.mark.parametrize("api", ["linen", "nnx"])
def test_the_network_is_the_one_written_with_flax(api, norm, batch):
    params, stats = parameters(norm)
    assert_close(step(api, norm)(params, stats, batch), step("flax", norm)(params, stats, batch))
    assert bool(stats) == (norm == "batch")


def test_linen_and_nnx_name_and_shape_everything_alike():
    def shapes(api):
        made = jax.eval_shape(network(api, "batch").init, jax.random.key(0))
        return jax.tree.map(lambda x: (x.shape, x.dtype), made)

    assert shapes("linen") == shapes("nnx")


@pytest.mark.parametrize("api", ["linen", "nnx"])
def test_a_padded_batch_is_the_batch_without_its_padding(api, batch):
    padded = jax.tree.map(lambda x: jnp.concatenate([x, jnp.full((3, *x.shape[1:]), 7, x.dtype)]), batch)
    padded["mask"] = padded["mask"].at[BATCH:].set(False)
    params, stats = parameters("batch")
    ((loss, (logits, new)), grads), (evaluated, unchanged) = step(api, "batch")(params, stats, padded)
    kept = ((loss, (logits[:BATCH], new)), grads), (evaluated[:BATCH], unchanged)
    assert_close(kept, step(api, "batch")(params, stats, batch))


def test_measured_sums_are_over_what_counts():
    logits = jnp.array([[0.0, 1.0], [2.0, 0.0], [5.0, 5.0]])
    mask = jnp.array([True, True, False])
    sums = classes.measure(logits, View(None, mask, jnp.array([1, 1, 0]), mask))
    expected = {"loss": np.log1p(np.exp(-1)) + np.log1p(np.exp(2)), "correct": 1, "count": 2}
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), sums, expected)


@pytest.mark.parametrize(
    ("config", "expected"),  # a learning rate for each of four steps
    [
        (OptimizerConfig(learning_rate=0.5, schedule="constant"), [0.5, 0.5, 0.5, 0.5]),
        (OptimizerConfig(learning_rate=0.5), [0.5, 0.25 + 0.25 * 0.5**0.5, 0.25, 0.25 - 0.25 * 0.5**0.5]),
        (OptimizerConfig(learning_rate=0.5, warmup_steps=2), [0, 0.25, 0.5, 0.25]),
        (OptimizerConfig(learning_rate=0.5, warmup_steps=9), [0, 0.125, 0.25, 0.375]),
    ],
)
def test_the_learning_rate_follows_its_schedule(config, expected):
    """With a gradient only at one step, the step is 1.9 times the rate there: 1 + momentum, Nesterov's."""
    rates = []
    for step in range(4):
        optimizer = make_optimizer(config, 4)
        params = jnp.zeros(())
        state = optimizer.init(params)
        for i in range(step + 1):
            updates, state = optimizer.update(jnp.asarray(float(i == step)), state, params)
            params = optax.apply_updates(params, updates)
        rates.append(-params / 1.9)
    np.testing.assert_allclose(rates, expected, rtol=1e-5, atol=1e-7)


def test_adam_takes_its_first_step_of_the_learning_rate():
    optimizer = make_optimizer(OptimizerConfig(name="adam", learning_rate=0.5), 4)
    updates, _ = optimizer.update(jnp.asarray(3.0), optimizer.init(jnp.zeros(())), jnp.zeros(()))
    np.testing.assert_allclose(updates, -0.5, rtol=1e-5)


@pytest.mark.parametrize(
    ("norm", "api"), [(norm, "linen") for norm in ("none", *NORMS)] + [("renorm", "nnx"), ("switchable", "nnx")]
)
def test_every_norm_that_configs_offer_trains(norm, api, batch):
    """From one example, which linen's parameters are made with, to a step; as far as shapes and dtypes tell."""
    batch["image"] = batch["image"][..., :1]
    model = ModelConfig(api=api, norm=norm, widths=(16, 16, 32), ghost_size=3, dtype="float64")
    config = Config(model=model, train=TrainConfig(batch_size=BATCH))
    layout = make_layout(config, jax.devices()[:1])
    network = make_network(model, images(batch["image"].shape[1:]), layout.norm(BATCH))
    optimizer = make_optimizer(config.optimizer, 1)
    state = jax.eval_shape(functools.partial(init_state, network, optimizer, model.dtype), jax.random.key(0))
    new, sums = jax.eval_shape(functools.partial(train_step, network, optimizer, layout), state, batch)
    assert new == state
    assert jax.eval_shape(functools.partial(eval_step, network, layout), state, batch) == sums
    wrong = [t for t in jax.tree.leaves(state.batch_stats) if t.dtype != (jnp.float64 if t.shape else jnp.float32)]
    assert not wrong, "statistics are of the config's dtype, and what counts steps is a float32"


@pytest.mark.parametrize("api", ["linen", "nnx"])
@pytest.mark.parametrize(
    ("norm", "widths", "wrong"),
    [
        ("prms", (16, 15, 32), "15 features"),
        ("dbn", (16, 24, 32), "24 channels"),
        ("iternorm", (8, 8, 96), "96 channels"),
    ],
)
def test_widths_that_a_norm_cannot_take_are_refused(norm, widths, wrong, api):
    words = rf"`config.model.norm={norm}` .*`config.model.widths={re.escape(str(widths))}`: .* {wrong}"
    with pytest.raises(UserError, match=words):
        make_network(ModelConfig(api=api, norm=norm, widths=widths), images((8, 12, 1)))
