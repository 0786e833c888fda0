"""What is compiled: the initial state, a training step and an evaluation step, all pure."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from experiments.config import Config, OptimizerConfig
from experiments.models import Network, Shape, Tree, make_network

Sums = dict[str, Array]  # over the examples that count: "loss", "correct", and "count", how many they are


class TrainState(NamedTuple):
    """All that training changes, and a checkpoint holds."""

    step: Array
    params: Tree
    batch_stats: Tree
    opt_state: Any


class Program(NamedTuple):
    """The compiled functions of an experiment; they serve every seed."""

    init: Callable[[Array], TrainState]
    train_step: Callable[[TrainState, Mapping[str, Any]], tuple[TrainState, Sums]]
    eval_step: Callable[[TrainState, Mapping[str, Any]], Sums]


def make_program(config: Config, shape: Shape, classes: int, total_steps: int) -> Program:
    """The program of a config for images of `shape`; `train_step` takes over the memory of the state it is given."""
    network = make_network(config.model, shape, classes)
    optimizer = make_optimizer(config.optimizer, total_steps)
    return Program(
        jax.jit(functools.partial(init_state, network, optimizer)),
        jax.jit(functools.partial(train_step, network, optimizer), donate_argnums=0),
        jax.jit(functools.partial(eval_step, network)),
    )


def make_optimizer(config: OptimizerConfig, total_steps: int) -> optax.GradientTransformation:
    """The optimizer of a config, with its schedule over `total_steps`."""
    peak, warmup = config.learning_rate, min(config.warmup_steps, total_steps)
    after = optax.constant_schedule(peak)
    if config.schedule == "cosine" and warmup < total_steps:
        after = optax.cosine_decay_schedule(peak, total_steps - warmup)
    schedule = optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), after], [warmup]) if warmup else after
    return optax.adam(schedule) if config.name == "adam" else optax.sgd(schedule, momentum=0.9, nesterov=True)


def init_state(network: Network, optimizer: optax.GradientTransformation, key: Array) -> TrainState:
    params, stats = network.init(key)
    return TrainState(jnp.zeros((), jnp.int32), params, stats, optimizer.init(params))


def train_step(
    network: Network, optimizer: optax.GradientTransformation, state: TrainState, batch: Mapping[str, Array]
) -> tuple[TrainState, Sums]:
    """One step down the mean loss of the examples that count."""

    def mean_loss(params: Tree) -> tuple[Array, tuple[Sums, Tree]]:
        logits, stats = network.apply(params, state.batch_stats, batch["image"], train=True, mask=batch["mask"])
        sums = measure(logits, batch)
        return sums["loss"] / jnp.maximum(sums["count"], 1), (sums, stats)

    grads, (sums, stats) = jax.grad(mean_loss, has_aux=True)(state.params)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    return TrainState(state.step + 1, params, stats, opt_state), sums


def eval_step(network: Network, state: TrainState, batch: Mapping[str, Array]) -> Sums:
    """What `state` is worth on a batch, by its running statistics."""
    logits, _ = network.apply(state.params, state.batch_stats, batch["image"], train=False, mask=batch["mask"])
    return measure(logits, batch)


def measure(logits: Array, batch: Mapping[str, Array]) -> Sums:
    """Sums over the examples of a batch that count: sums can be added over batches, and over devices."""
    weight = batch["mask"].astype(logits.dtype)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
    correct = logits.argmax(-1) == batch["label"]
    return {"loss": (weight * losses).sum(), "correct": (weight * correct).sum(), "count": weight.sum()}
