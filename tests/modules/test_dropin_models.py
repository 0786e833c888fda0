"""Whole models with the class exchanged: trained side by side, and each other's checkpoints read."""

import importlib.util
import os
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import linen as nn
from flax import nnx, serialization

from tests.kit import comparison
from tests.kit.dropin import FLAX, OURS, random

STEPS, BATCH, CLASSES = 5, 8, 4
IMAGES = random(STEPS, BATCH, 8, 8, 3) + 0.5
LABELS = np.random.default_rng(1).integers(0, CLASSES, (STEPS, BATCH))
TX = optax.sgd(0.05, momentum=0.9, nesterov=True)

# Relative to the largest entry of each array, after five steps. Measured: 2.1e-6 for the small ResNet, 1.6e-6 for
# nnx's, 2.1e-5 for that of Flax's example. Flax with and without `use_fast_variance`: 1.6e-6, 1.2e-6, 1.6e-5.
ROUNDING = {"own": 2e-5, "flax_example": 1e-4, "nnx": 2e-5}


def assert_close(got, wanted, rounding):
    comparison.assert_alike(got, wanted)
    comparison.assert_close(got, wanted, rounding, floor=0)


def initialized(shapes):
    """Initial values for the shapes of a model's variables; compiling `init` takes longer than all of the rest."""

    def value(path, t):
        name = jax.tree_util.keystr(path[-1:], simple=True)
        if t.ndim > 1:
            return random(*t.shape) / np.sqrt(np.prod(t.shape[:-1]))
        return jnp.ones(t.shape, t.dtype) if name in ("scale", "var") else jnp.zeros(t.shape, t.dtype)

    return jax.tree.map_with_path(value, shapes)


def cross_entropy(logits, labels):
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


# linen. The class is exchanged where models look it up: `flax.linen.BatchNorm`.


class Block(nn.Module):
    """A residual block in the manner of Flax's ImageNet example."""

    filters: int
    norm: object
    strides: int = 1

    @nn.compact
    def __call__(self, x):
        conv = partial(nn.Conv, use_bias=False)
        y = conv(self.filters, (3, 3), (self.strides, self.strides))(x)
        y = nn.relu(self.norm()(y))
        y = conv(self.filters, (3, 3))(y)
        y = self.norm(scale_init=nn.initializers.zeros_init())(y)
        if x.shape != y.shape:
            x = conv(self.filters, (1, 1), (self.strides, self.strides), name="conv_proj")(x)
            x = self.norm(name="norm_proj")(x)
        return nn.relu(x + y)


class ResNet(nn.Module):
    """A convolution, a residual block, a head."""

    @nn.compact
    def __call__(self, x, train=True):
        norm = partial(nn.BatchNorm, use_running_average=not train, momentum=0.9, axis_name="batch")
        x = nn.Conv(8, (3, 3), use_bias=False, name="conv_init")(x)
        x = nn.relu(norm(name="bn_init")(x))
        x = Block(16, norm, strides=2)(x)
        return nn.Dense(CLASSES)(x.mean((1, 2)))


def flax_example():
    """The ResNet of Flax's ImageNet example, from the file that the environment names (`tests.flax_suite`)."""
    spec = importlib.util.spec_from_file_location("flax_example", os.environ["FLAX_EXAMPLE"])
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    block = module.BottleneckResNetBlock
    return module.ResNet(stage_sizes=[1, 1], block_cls=block, num_classes=CLASSES, num_filters=8)


MODELS = ["own"] + ["flax_example"] * ("FLAX_EXAMPLE" in os.environ)


def evaluate_linen(model, variables):
    logits = jax.jit(partial(model.apply, train=False))(variables, IMAGES[0])
    return np.asarray(logits)


def train_linen(model):
    """Variables after the steps; the batch in two slices, over which the statistics are synchronised."""
    variables = initialized(jax.eval_shape(partial(model.init, train=True), jax.random.key(0), IMAGES[0]))
    apply = partial(model.apply, train=True, mutable="batch_stats")

    @jax.jit
    def step(variables, moments, images, labels):
        def loss(params):
            inner = partial(apply, variables | {"params": params})
            logits, new = jax.vmap(inner, axis_name="batch")(images.reshape(2, BATCH // 2, *images.shape[1:]))
            return cross_entropy(logits.reshape(BATCH, -1), labels), jax.tree.map(lambda t: t[0], new)

        grads, new = jax.grad(loss, has_aux=True)(variables["params"])
        updates, moments = TX.update(grads, moments, variables["params"])
        return {"params": optax.apply_updates(variables["params"], updates)} | new, moments

    moments = TX.init(variables["params"])
    for images, labels in zip(IMAGES, LABELS, strict=True):
        variables, moments = step(variables, moments, images, labels)
    return variables


@pytest.mark.parametrize("name", MODELS)
def test_resnet_linen(name, monkeypatch, tmp_path):
    model = flax_example() if name == "flax_example" else ResNet()
    flax = train_linen(model)
    with monkeypatch.context() as exchanged:
        exchanged.setattr(nn, "BatchNorm", OURS["linen"])
        ours = train_linen(model)
        wanted = evaluate_linen(model, ours)
        flax_evaluated_by_ours = evaluate_linen(model, flax)
    assert nn.BatchNorm is FLAX["linen"]
    assert_close(ours, flax, ROUNDING[name])
    np.testing.assert_allclose(evaluate_linen(model, flax), flax_evaluated_by_ours, rtol=1e-5, atol=1e-5)

    # Exchanged back: our checkpoint, in Flax's model.
    template = jax.tree.map(np.zeros_like, flax)
    read = serialization.from_bytes(template, serialization.to_bytes(ours))
    np.testing.assert_allclose(evaluate_linen(model, read), wanted, rtol=1e-5, atol=1e-5)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "checkpoint", ours)
        checkpointer.wait_until_finished()
        read = checkpointer.restore(tmp_path / "checkpoint", template)
    np.testing.assert_allclose(evaluate_linen(model, read), wanted, rtol=1e-5, atol=1e-5)


# nnx


class NnxResNet(nnx.Module):
    """The same without a projection."""

    def __init__(self, norm, rngs):
        conv = partial(nnx.Conv, kernel_size=(3, 3), use_bias=False, rngs=rngs)
        self.convs = nnx.List([conv(3, 8), conv(8, 8), conv(8, 8)])
        self.norms = nnx.List([norm(8, momentum=0.9, rngs=rngs) for _ in self.convs])
        self.head = nnx.Linear(8, CLASSES, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.norms[0](self.convs[0](x)))
        y = nnx.relu(self.norms[1](self.convs[1](x)))
        x = nnx.relu(x + self.norms[2](self.convs[2](y)))
        return self.head(x.mean((1, 2)))


def nnx_shapes(norm):
    return nnx.eval_shape(lambda: NnxResNet(norm, nnx.Rngs(0)))


def train_nnx(norm):
    graphdef, shapes = nnx.split(nnx_shapes(norm))
    nnx.replace_by_pure_dict(shapes, initialized(nnx.to_pure_dict(shapes)))
    model = nnx.merge(graphdef, shapes)
    optimizer = nnx.Optimizer(model, TX, wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer, images, labels):
        optimizer.update(model, nnx.grad(lambda m: cross_entropy(m(images), labels))(model))

    for images, labels in zip(IMAGES, LABELS, strict=True):
        step(model, optimizer, images, labels)
    return model


def evaluate_nnx(model):
    return np.asarray(nnx.jit(lambda m, x: nnx.view(m, use_running_average=True)(x))(model, IMAGES[0]))


def test_resnet_nnx(tmp_path):
    flax, ours = train_nnx(FLAX["nnx"]), train_nnx(OURS["nnx"])
    state = nnx.state(ours)
    assert_close(nnx.to_pure_dict(state), nnx.to_pure_dict(nnx.state(flax)), ROUNDING["nnx"])
    wanted = evaluate_nnx(ours)

    graphdef, template = nnx.split(nnx_shapes(FLAX["nnx"]))
    np.testing.assert_allclose(evaluate_nnx(nnx.merge(graphdef, state)), wanted, rtol=1e-5, atol=1e-5)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "checkpoint", nnx.to_pure_dict(state))
        checkpointer.wait_until_finished()
        read = checkpointer.restore(tmp_path / "checkpoint", nnx.to_pure_dict(template))
    nnx.replace_by_pure_dict(template, read)
    np.testing.assert_allclose(evaluate_nnx(nnx.merge(graphdef, template)), wanted, rtol=1e-5, atol=1e-5)
