"""What is compiled: the initial state, a training step and an evaluation step, all pure."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

import bnjax
from experiments.config import Config, OptimizerConfig
from experiments.data import Share
from experiments.models import make_network
from experiments.models.network import Network, Shape, Tree
from experiments.tasks import classification, task_of
from experiments.tasks.task import Sums, Task
from experiments.training.layouts import Layout, make_layout
from experiments.training.recalibration import Measure, check, measure_step


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
    measure_step: Measure
    """The moments of every norm over a batch of training."""
    train_share: Share
    eval_share: Share
    """The share of this process of the batches of training and of evaluation."""


def make_program(
    config: Config, shape: Shape, classes: int, total_steps: int, devices: Sequence[jax.Device] | None = None
) -> Program:
    """The program of a config for images of `shape`; `train_step` takes over the memory of the state it is given."""
    check(config)
    layout, task = make_layout(config, devices), task_of(config.task)
    train_share = layout.share(config.train.batch_size, layout.accumulate)
    network = make_network(config.model, shape, classes, layout.norm(train_share.rows))
    optimizer = make_optimizer(config.optimizer, total_steps)
    init = functools.partial(init_state, network, optimizer, config.model.dtype)
    train = layout.spread(functools.partial(train_step, network, optimizer, layout, task=task), donate=True)
    evaluate = layout.spread(functools.partial(eval_step, network, layout, task=task))
    measure = layout.spread(functools.partial(measure_step, network, layout))
    return Program(
        jax.jit(init, out_shardings=layout.whole),
        lambda state, batch: train(state, layout.place(batch)),
        lambda state, batch: evaluate(state, layout.place(batch)),
        lambda state, batch: measure(state, layout.place(batch)),
        train_share,
        layout.share(config.train.eval_batch_size),
    )


def make_optimizer(config: OptimizerConfig, total_steps: int) -> optax.GradientTransformation:
    """The optimizer of a config, with its schedule over `total_steps`."""
    peak, warmup = config.learning_rate, min(config.warmup_steps, total_steps)
    after = optax.constant_schedule(peak)
    if config.schedule == "cosine" and warmup < total_steps:
        after = optax.cosine_decay_schedule(peak, total_steps - warmup)
    schedule = optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), after], [warmup]) if warmup else after
    return optax.adam(schedule) if config.name == "adam" else optax.sgd(schedule, momentum=0.9, nesterov=True)


def init_state(network: Network, optimizer: optax.GradientTransformation, dtype: str, key: Array) -> TrainState:
    def cast(t: Array) -> Array:
        return t.astype(dtype) if jnp.issubdtype(t.dtype, jnp.inexact) else t

    params, stats = network.init(key)
    params = jax.tree.map(cast, params)
    stats = jax.tree.map(lambda t: cast(t) if t.ndim else t, stats)  # what counts steps would stop in half precision
    return TrainState(jnp.zeros((), jnp.int32), params, stats, optimizer.init(params))


def train_step(
    network: Network,
    optimizer: optax.GradientTransformation,
    layout: Layout,
    state: TrainState,
    batch: Mapping[str, Array],
    task: Task = classification.TASK,
) -> tuple[TrainState, Sums]:
    """One step down the mean loss of the examples that count; written for one part of the batch, see `Layout`."""
    batch = _cast(batch, state.params)
    total = jnp.maximum(layout.total(batch["mask"].sum(dtype=batch["image"].dtype)), 1)

    def share_of_loss(params: Tree, part: Mapping[str, Array]) -> tuple[Array, tuple[Sums, Tree]]:
        logits, moments = network.measure(params, state.batch_stats, part["image"], mask=part["mask"])
        sums = task.measure(logits, part)
        return sums["loss"] / total, (sums, moments)

    gradient = functools.partial(jax.grad(share_of_loss, has_aux=True), layout.own(state.params))
    grads, (sums, moments) = layout.accumulated(gradient, batch)
    grads, sums = layout.total((grads, sums))
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    stats = moments  # as the norms stepped them
    if network.hands_out:
        stats = bnjax.update_batch_stats(state.batch_stats, layout.pooled(moments))
    return TrainState(state.step + 1, params, stats, opt_state), sums


def eval_step(
    network: Network, layout: Layout, state: TrainState, batch: Mapping[str, Array], task: Task = classification.TASK
) -> Sums:
    """What `state` is worth on a batch, by its running statistics."""
    batch = _cast(batch, state.params)
    logits, _ = network.apply(state.params, state.batch_stats, batch["image"], train=False, mask=batch["mask"])
    return layout.total(task.measure(logits, batch))


def _cast(batch: Mapping[str, Array], params: Tree) -> dict[str, Array]:
    return {**batch, "image": batch["image"].astype(jax.tree.leaves(params)[0].dtype)}
