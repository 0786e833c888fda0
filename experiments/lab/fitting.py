"""A training loop that is one program, so that all seeds and all rates of a cell can be trained side by side."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from experiments.config import Config, DataConfig
from experiments.data import load_data

Examples = tuple[Any, Any]  # inputs and classes
Variables = dict[str, Any]  # of a linen module


class Step(NamedTuple):
    """What a step of training has in hand before it changes the weights."""

    step: Array
    variables: Variables
    x: Array
    y: Array
    loss: Array
    gradients: Any
    rngs: dict[str, Array]
    """Of dropout."""


def digits(flat: bool = False) -> tuple[Examples, Examples]:
    """The handwritten digits, to learn from and held out: images (n, 8, 8, 1), or vectors (n, 64) if `flat`."""
    data = load_data(Config().data)
    return _examples(data.train, flat), _examples(data.held_out, flat)


def clothes(train_examples: int, held_out: int) -> tuple[Examples, Examples]:
    """Fashion-MNIST in half its size, to learn from and held out: images (n, 14, 14, 1).

    Raises:
      UserError: it is not on this machine.
    """
    data = load_data(DataConfig(name="fashion_mnist", train_examples=train_examples, eval_examples=held_out))
    parts = [_examples(part, flat=False) for part in (data.train, data.held_out)]
    return _halved(parts[0]), _halved(parts[1])


def _halved(examples: Examples) -> Examples:
    """Each two by two points are their mean."""
    images, labels = np.asarray(examples[0]), examples[1]
    n, height, width, channels = images.shape
    return images.reshape(n, height // 2, 2, width // 2, 2, channels).mean((2, 4)), labels


def _examples(part: Any, flat: bool) -> Examples:
    images = part["image"]
    return (images.reshape(len(images), -1) if flat else images), part["label"]


def nothing(_: Step) -> None:
    """Watches nothing."""


def fit(
    net: Any,
    train: Examples,
    key: Array,
    optimizer: optax.GradientTransformation,
    *,
    steps: int,
    batch: int,
    every: int | None = None,
    watch: Callable[[Step], Any] = nothing,
) -> tuple[Variables, Any]:
    """Trains `net` on batches that are drawn anew in each step; returns its variables, and what was watched.

    `jax.vmap` trains many seeds, or many learning rates, at once; the number of steps and the batch size are fixed.

    Args:
      net: a linen module, called as `net(x, train)`.
      train: inputs (n, ...) and classes (n,).
      key: of the initial weights, of the batches, and of dropout.
      optimizer: an Optax transformation. Its learning rate may be traced.
      steps: a multiple of `every`.
      batch: examples in a batch.
      every: steps between two calls of `watch`, the first one in the first step. By default it is called once.
      watch: its results are stacked, (steps / every, ...).
    """
    x, y = map(jnp.asarray, train)
    variables = dict(net.init({"params": key, "dropout": key}, x[:1], True))
    every = every or steps
    if steps % every:
        raise ValueError(f"`steps` must be a multiple of `every`={every}, but it is {steps}.")

    def taken(state: Any, i: Array) -> tuple[Any, Step]:
        variables, optimized = state
        own = jax.random.fold_in(key, i)
        rows, rngs = jax.random.randint(own, (batch,), 0, len(x)), {"dropout": jax.random.fold_in(own, 1)}
        value_and_gradient = jax.value_and_grad(partial(loss_of, net), has_aux=True)
        (loss, rest), gradients = value_and_gradient(variables["params"], variables, x[rows], y[rows], rngs)
        updates, optimized = optimizer.update(gradients, optimized, variables["params"])
        new = {**variables, **rest, "params": optax.apply_updates(variables["params"], updates)}
        return (new, optimized), Step(i, variables, x[rows], y[rows], loss, gradients, rngs)

    def lap(state: Any, first: Array) -> tuple[Any, Any]:
        state, step = taken(state, first)
        state, _ = jax.lax.scan(lambda s, i: (taken(s, i)[0], None), state, first + 1 + jnp.arange(every - 1))
        return state, watch(step)

    begin = (variables, optimizer.init(variables["params"]))
    if watch is nothing:  # no step stands by itself, so that one less is compiled
        (variables, _), _ = jax.lax.scan(lambda s, i: (taken(s, i)[0], None), begin, jnp.arange(steps))
        return variables, None
    (variables, _), watched = jax.lax.scan(lap, begin, jnp.arange(0, steps, every))
    return variables, watched


def loss_of(
    net: Any, params: Any, variables: Variables, x: Array, y: Array, rngs: dict[str, Array] | None = None
) -> tuple[Array, Variables]:
    """The mean cross entropy in training, and the state after it."""
    logits, new = net.apply({**variables, "params": params}, x, True, mutable=["batch_stats"], rngs=rngs)
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean(), dict(new)


def accuracy(net: Any, variables: Variables, examples: Examples) -> Array:
    """The part of the examples whose class is found, by the running statistics."""
    logits: Any = net.apply(variables, jnp.asarray(examples[0]), False)
    return (logits.argmax(-1) == examples[1]).mean()
