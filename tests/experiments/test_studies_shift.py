"""The study of damaged images: its network, its ways to adapt, and its batches, beside what is written out."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from experiments.data import Data
from experiments.data.pixels import Pixels
from experiments.lab import adapting, damaged, fitting
from experiments.studies import shift

RANDOM = np.random.default_rng(0)
IMAGES = RANDOM.uniform(size=(12, 8, 8, 1)).astype(np.float32)


def variables_of(norm, seed=0):
    """Of a network that was never trained, with norms as if it had been."""
    made = adapting.network(norm).init(jax.random.key(seed), IMAGES[:1], False)
    return jax.tree.map(lambda leaf: leaf + RANDOM.uniform(0.0, 0.3, leaf.shape).astype(np.float32), made)


NAMES = {"batch": "BatchNorm", "group": "GroupNorm", "layer": "LayerNorm", "none": "None"}


def convolved(params, x, i):
    own = dict(params[f"conv{i}"])
    width = own["kernel"].shape[1]
    own["kernel"] = own["kernel"].reshape(3, 3, -1, width)
    return nn.Conv(width, (3, 3), strides=i, padding=1, use_bias="bias" in own).apply({"params": own}, x)


def logits_of(norm, params, x):
    """The network of two convolutions, by Flax's layers."""
    for i in (1, 2):
        x = nn.relu(NORMALIZED[norm](convolved(params, x, i), params.get(f"{NAMES[norm]}_{i - 1}")))
    return x.mean((1, 2)) @ params["head"]["kernel"] + params["head"]["bias"][None]


def of_batch(x, own):
    return nn.BatchNorm(use_running_average=False).apply({"params": own}, x, mutable=["batch_stats"])[0]


NORMALIZED = {
    "none": lambda x, _: x,
    "batch": of_batch,
    "group": lambda x, own: nn.GroupNorm(4).apply({"params": own}, x),
    "layer": lambda x, own: nn.LayerNorm(reduction_axes=(1, 2, 3)).apply({"params": own}, x),
}


@pytest.mark.parametrize("norm", NORMALIZED)
def test_patches_make_convolutions(norm):
    variables = variables_of(norm)
    found, _ = adapting.network(norm).apply(variables, IMAGES, True, mutable=["batch_stats"])
    np.testing.assert_allclose(found, logits_of(norm, variables["params"], IMAGES), rtol=1e-4, atol=1e-5)


def test_only_the_chosen_images_count_beside_the_old_statistics():
    variables, chosen = variables_of("batch"), [2, 3, 7]
    found = adapting.adapted("batch", variables, adapting.part_of(IMAGES, chosen), 5)
    x = np.float64(convolved(variables["params"], IMAGES[chosen], 1))
    old, new = (own["batch_stats"]["BatchNorm_0"] for own in (variables, found))
    for name, own in (("mean", x.mean((0, 1, 2))), ("var", x.var((0, 1, 2)))):
        np.testing.assert_allclose(new[name], (5 * old[name] + 3 * own) / 8, rtol=1e-5)
    assert found["params"] is variables["params"]


@pytest.mark.parametrize("norm", ["batch", "group"])
def test_tent_is_adam_on_the_entropy_written_out(norm, monkeypatch):
    monkeypatch.setattr(adapting, "TENT_STEPS", 3)
    monkeypatch.setattr(adapting, "TENT_BATCH", 6)
    adapting._tented.cache_clear()
    variables = [variables_of(norm, seed) for seed in (0, 1)]
    found = adapting.tented(norm, variables, IMAGES, [4, 9])[1]["params"]
    adapting._tented.cache_clear()

    def entropy(own, params, x):
        p = jax.nn.softmax(logits_of(norm, params | own, x))
        return -(p * jnp.log(p)).sum(1).mean()

    params = variables[1]["params"]
    own = {name: params[name] for name in params if name.startswith(NAMES[norm])}
    adam = optax.adam(5e-3)
    state = adam.init(own)
    for key in jax.random.split(jax.random.key(9), 3):
        gradients = jax.grad(entropy)(own, params, IMAGES[jax.random.permutation(key, 12)[:6]])
        updates, state = adam.update(gradients, state)
        own = optax.apply_updates(own, updates)
    # Adam divides by the size of a gradient, and so amplifies its rounding.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-4), found, params | own)
    assert all((found[layer]["kernel"] == params[layer]["kernel"]).all() for layer in ("conv1", "conv2", "head"))


@pytest.mark.parametrize("classes", adapting.CLASSES)
def test_batches_of_few_classes_are_a_tenth_of_the_examples_each(classes):
    labels = np.repeat(np.arange(10), 36)
    rows = list(adapting.few_classes(labels, classes, 3))
    assert [len(own) for own in rows] == [36] * 10
    assert all(len(set(labels[own])) <= classes for own in rows)
    assert sorted(np.concatenate(rows)) == list(range(360))


@pytest.mark.parametrize("part", ["damage", "images", "classes"])
def test_a_cell_has_the_errors_of_its_methods(part, monkeypatch):
    """With few images, and networks that were never trained."""
    for name, value in (("TENT_STEPS", 1), ("TENT_BATCH", 6), ("SIZES", (3,)), ("CLASSES", (10,))):
        monkeypatch.setattr(adapting, name, value)
    adapting._tented.cache_clear()
    networks_of = {norm: [variables_of(norm), variables_of(norm, 1)] for norm in ("batch", "group")}
    for module in (shift, damaged):
        monkeypatch.setattr(module, "trained", lambda norm, seeds, lesson=None: networks_of[norm])
    mean = IMAGES.mean((1, 2, 3), keepdims=True)
    dull = np.float32(0.15 * (IMAGES - mean) + mean)
    predicted = np.asarray(adapting.network("batch").apply(networks_of["batch"][1], dull, False).argmax(-1))
    labels = np.where(np.arange(12) < 7, predicted, (predicted + 1) % 10)  # five of twelve are wrong
    monkeypatch.setattr(shift, "digits", lambda: (None, (IMAGES, labels)))
    lesson = adapting.Lesson(lambda: (None, (IMAGES, labels)), 7)
    monkeypatch.setattr(damaged, "measured", functools.partial(damaged.measured, lesson=lesson))
    cells = [{"part": part, "corruption": "contrast"}]
    if part == "damage":
        cells = [{**cells[0], "norm": norm} for norm in networks_of]
    found = [(cell, one) for cell in cells for one in shift.run(cell, (0, 1))]
    adapting._tented.cache_clear()
    of_batch = [one for cell, one in found if cell == cells[0]]
    assert len(of_batch) == {"damage": 2 * 3 * 5, "images": 2 * 3, "classes": 2 * 3}[part]
    errors = [
        o.value for o in of_batch if o.seed == 1 and o.more["method"] == "as_is" and o.more.get("severity", 5) == 5
    ]
    np.testing.assert_allclose(errors, 5 / 12, atol=1e-6)
    if part == "damage":
        tents = [
            one.more["severity"] for cell, one in found if cell["norm"] == "group" and one.more["method"] == "tent"
        ]
        assert tents == [5, 5]


def test_clothes_are_halved(monkeypatch):
    """Of bytes that are mapped: each point is the mean of four, of numbers in [0, 1]."""
    of_bytes = RANDOM.integers(0, 256, (3, 4, 6)).astype(np.uint8)
    part = {"image": Pixels(of_bytes), "label": np.arange(3, dtype=np.int32)}
    monkeypatch.setattr(fitting, "load_data", lambda config: Data(part, part))
    (images, labels), held_out = fitting.clothes(3, 3)
    x = np.float64(of_bytes) / 255
    want = (x[:, ::2, ::2] + x[:, 1::2, ::2] + x[:, ::2, 1::2] + x[:, 1::2, 1::2]) / 4
    np.testing.assert_allclose(images, want[..., None], rtol=1e-6)
    np.testing.assert_array_equal(held_out[0], images)
    np.testing.assert_array_equal(labels, [0, 1, 2])
