"""What is compiled: the initial state, a training step and an evaluation step, all pure."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

import bnjax
from bnjax.linen import Diagnosis
from experiments.config import Config
from experiments.data import Kind, Share
from experiments.models import Job, make_network
from experiments.models.network import Network, Tree, dtype_of, kept_dtype
from experiments.tasks import check_fits, classification, task_of
from experiments.tasks.task import Sums, Task, View
from experiments.training import noise
from experiments.training.examination import examined
from experiments.training.layouts import Layout, make_layout
from experiments.training.optimizer import make_optimizer
from experiments.training.recalibration import Measure, cast, check, evaluated_view, measure_step


class TrainState(NamedTuple):
    """All that training changes, and a checkpoint holds."""

    step: Array
    params: Tree
    batch_stats: Tree
    opt_state: Any
    key: Array | None = None
    """What random numbers are made of, of a run that draws any: the words of a random key, from its seed."""
    average: Tree | None = None
    """The exponential average of the parameters, of a run that keeps it."""


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
    examine: Callable[[TrainState, Iterable[Mapping[str, Any]]], Diagnosis]
    """What is wrong with the norms, by batches of training."""
    lower: Callable[[TrainState, Mapping[str, Any]], jax.stages.Lowered]
    """The training step before it is compiled."""
    place: Callable[[Mapping[str, Any]], Any]
    """A batch of training on the devices, as a compiled step takes it."""
    seeds: int | None = None
    """How many runs lie side by side, along a first axis of the states and of the batches of training; None: one,
    without that axis. `init` makes the state of one."""


def make_program(
    config: Config,
    kind: Kind,
    total_steps: int,
    devices: Sequence[jax.Device] | None = None,
    seeds: int | None = None,
) -> Program:
    """The program of a config for data of a kind; `train_step` takes over the memory of the state it is given.

    With `seeds` it trains so many runs at once, which differ in their seeds alone.

    Raises:
      UserError: what does not fit: the layout the devices, the data the task, the model its inputs.
    """
    check(config)
    check_fits(config, [name for name, *_ in kind.arrays])
    layout, task = dataclasses.replace(make_layout(config, devices), seeds=seeds), task_of(config)
    train_share = layout.share(config.train.batch_size, layout.accumulate)
    network = make_network(config.model, job_of(task, kind), layout.norm(train_share.rows))
    optimizer = make_optimizer(config.optimizer, total_steps, config.regularizers)
    average = config.regularizers.average
    begin = functools.partial(init_state, random=network.random or task.random, average=bool(average))
    init = functools.partial(begin, network, optimizer, kept_dtype(config.model))
    step = functools.partial(train_step, network, optimizer, layout, task=task, average=average)
    train = layout.spread(step, donate=True)
    evaluate = layout.spread(functools.partial(eval_step, network, layout, task=task), alike=True)
    measure = layout.spread(functools.partial(measure_step, network, layout, task=task))
    return Program(
        jax.jit(init, out_shardings=layout.whole),
        lambda state, batch: train(state, layout.place(batch)),
        lambda state, batch: evaluate(state, layout.place(batch, alike=True)),
        lambda state, batch: measure(state, layout.place(batch)),
        train_share,
        layout.share(config.train.eval_batch_size),
        functools.partial(examined, network, optimizer, task),
        lambda state, batch: train.lower(state, layout.place(batch)),
        layout.place,
        seeds,
    )


def job_of(task: Task, kind: Kind) -> Job:
    """What a network is made for, by what a task makes of one example."""
    one = {name: jax.ShapeDtypeStruct((1, *shape), dtype) for name, shape, dtype in kind.arrays}
    batch = {**one, "mask": jax.ShapeDtypeStruct((1,), bool), "index": jax.ShapeDtypeStruct((1,), jnp.int32)}
    view = jax.eval_shape(task.view, batch, jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 1)))
    outputs = None if task.outputs is None else task.outputs(view, kind.classes)
    return Job(view.inputs, kind.classes, view.mask, outputs, task.options)


def init_state(
    network: Network,
    optimizer: optax.GradientTransformation,
    dtype: str,
    key: Array,
    random: bool = False,
    average: bool = False,
) -> TrainState:
    """What training begins with; `random` where it draws random numbers, `average` where it averages weights."""

    def cast(t: Array) -> Array:
        return t.astype(dtype) if jnp.issubdtype(t.dtype, jnp.inexact) else t

    params, stats = network.init(key)
    params = jax.tree.map(cast, params)
    stats = jax.tree.map(lambda t: cast(t) if t.ndim else t, stats)  # what counts steps would stop in half precision
    words = jax.random.key_data(jax.random.fold_in(key, 1)) if random else None
    return TrainState(
        jnp.zeros((), jnp.int32), params, stats, optimizer.init(params), words, params if average else None
    )


def train_step(
    network: Network,
    optimizer: optax.GradientTransformation,
    layout: Layout,
    state: TrainState,
    batch: Mapping[str, Array],
    task: Task = classification.TASK,
    average: float = 0.0,
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
    new = state._replace(step=state.step + 1, params=params, batch_stats=stats, opt_state=opt_state)
    if average:
        new = new._replace(average=optax.incremental_update(params, state.average, 1 - average))
    return new, sums


def eval_step(
    network: Network, layout: Layout, state: TrainState, batch: Mapping[str, Array], task: Task = classification.TASK
) -> Sums:
    """What `state` is worth on a batch, by its running statistics."""
    view = evaluated_view(task, batch, state.params)
    outputs, _ = network.apply(state.params, state.batch_stats, view.inputs, train=False, mask=view.mask)
    return layout.total(task.measure(outputs, view, False))
