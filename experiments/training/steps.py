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
from experiments.data import Kind, Share
from experiments.models import Job, make_network
from experiments.models.network import Network, Tree, dtype_of
from experiments.tasks import check_fits, classification, task_of
from experiments.tasks.task import Sums, Task, View
from experiments.training import noise
from experiments.training.layouts import Layout, make_layout
from experiments.training.recalibration import Measure, cast, check, evaluated_view, measure_step


class TrainState(NamedTuple):
    """All that training changes, and a checkpoint holds."""

    step: Array
    params: Tree
    batch_stats: Tree
    opt_state: Any
    key: Array | None = None
    """What random numbers are made of, of a run that draws any: the words of a random key, from its seed."""


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


def make_program(config: Config, kind: Kind, total_steps: int, devices: Sequence[jax.Device] | None = None) -> Program:
    """The program of a config for data of a kind; `train_step` takes over the memory of the state it is given.

    Raises:
      UserError: what does not fit: the layout the devices, the data the task, the model its inputs.
    """
    check(config)
    check_fits(config, [name for name, *_ in kind.arrays])
    layout, task = make_layout(config, devices), task_of(config)
    train_share = layout.share(config.train.batch_size, layout.accumulate)
    network = make_network(config.model, job_of(task, kind), layout.norm(train_share.rows))
    optimizer = make_optimizer(config.optimizer, total_steps)
    init = functools.partial(init_state, network, optimizer, config.model.dtype, random=network.random or task.random)
    train = layout.spread(functools.partial(train_step, network, optimizer, layout, task=task), donate=True)
    evaluate = layout.spread(functools.partial(eval_step, network, layout, task=task))
    measure = layout.spread(functools.partial(measure_step, network, layout, task=task))
    return Program(
        jax.jit(init, out_shardings=layout.whole),
        lambda state, batch: train(state, layout.place(batch)),
        lambda state, batch: evaluate(state, layout.place(batch)),
        lambda state, batch: measure(state, layout.place(batch)),
        train_share,
        layout.share(config.train.eval_batch_size),
    )


def job_of(task: Task, kind: Kind) -> Job:
    """What a network is made for, by what a task makes of one example."""
    one = {name: jax.ShapeDtypeStruct((1, *shape), dtype) for name, shape, dtype in kind.arrays}
    batch = {**one, "mask": jax.ShapeDtypeStruct((1,), bool), "index": jax.ShapeDtypeStruct((1,), jnp.int32)}
    view = jax.eval_shape(task.view, batch, jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 1)))
    outputs = None if task.outputs is None else task.outputs(view, kind.classes)
    return Job(view.inputs, kind.classes, view.mask, outputs, task.options)


def make_optimizer(config: OptimizerConfig, total_steps: int) -> optax.GradientTransformation:
    """The optimizer of a config, with its schedule over `total_steps`."""
    peak, warmup = config.learning_rate, min(config.warmup_steps, total_steps)
    after = optax.constant_schedule(peak)
    if config.schedule == "cosine" and warmup < total_steps:
        after = optax.cosine_decay_schedule(peak, total_steps - warmup)
    schedule = optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), after], [warmup]) if warmup else after
    return optax.adam(schedule) if config.name == "adam" else optax.sgd(schedule, momentum=0.9, nesterov=True)


def init_state(
    network: Network, optimizer: optax.GradientTransformation, dtype: str, key: Array, random: bool = False
) -> TrainState:
    """What training begins with; `random` where it draws random numbers."""

    def cast(t: Array) -> Array:
        return t.astype(dtype) if jnp.issubdtype(t.dtype, jnp.inexact) else t

    params, stats = network.init(key)
    params = jax.tree.map(cast, params)
    stats = jax.tree.map(lambda t: cast(t) if t.ndim else t, stats)  # what counts steps would stop in half precision
    noise = jax.random.key_data(jax.random.fold_in(key, 1)) if random else None
    return TrainState(jnp.zeros((), jnp.int32), params, stats, optimizer.init(params), noise)


def train_step(
    network: Network,
    optimizer: optax.GradientTransformation,
    layout: Layout,
    state: TrainState,
    batch: Mapping[str, Array],
    task: Task = classification.TASK,
) -> tuple[TrainState, Sums]:
    """One step down the mean loss of what counts; written for one part of the batch, see `Layout`."""
    drawn = noise.of_step(state, batch)
    view = task.view(cast(batch, state.params), noise.keys(drawn) if task.random else None)
    total = jnp.maximum(layout.total(view.weight.sum(dtype=dtype_of(state.params))), 1)

    def share_of_loss(params: Tree, given: tuple[View, Any]) -> tuple[Array, tuple[Sums, Tree]]:
        part, example = given
        with_noise = {"noise": drawn._replace(example=example)} if network.random and drawn else {}
        outputs, moments = network.measure(params, state.batch_stats, part.inputs, mask=part.mask, **with_noise)
        sums = task.measure(outputs, part, True)
        return sums["loss"] / total, (sums, moments)

    gradient = functools.partial(jax.grad(share_of_loss, has_aux=True), layout.own(state.params))
    grads, (sums, moments) = layout.accumulated(gradient, (view, drawn.example if drawn else None))
    grads, sums = layout.total((grads, sums))
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    stats = moments  # as the norms stepped them
    if network.hands_out:
        stats = bnjax.update_batch_stats(state.batch_stats, layout.pooled(moments))
    return state._replace(step=state.step + 1, params=params, batch_stats=stats, opt_state=opt_state), sums


def eval_step(
    network: Network, layout: Layout, state: TrainState, batch: Mapping[str, Array], task: Task = classification.TASK
) -> Sums:
    """What `state` is worth on a batch, by its running statistics."""
    view = evaluated_view(task, batch, state.params)
    outputs, _ = network.apply(state.params, state.batch_stats, view.inputs, train=False, mask=view.mask)
    return layout.total(task.measure(outputs, view, False))
