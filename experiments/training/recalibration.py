"""Running statistics in the place of which an evaluation puts those of some batches (arXiv 2105.07576)."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

import bnjax
from experiments.cli.errors import UserError
from experiments.config import Config
from experiments.models.network import Network, Tree, dtype_of
from experiments.models.norms import hands_out_moments, takes_state
from experiments.tasks import classification
from experiments.tasks.task import Task, View
from experiments.training import noise
from experiments.training.layouts import Layout, is_moments

Measure = Callable[[Any, Mapping[str, Any]], Any]  # of a state and a batch: the moments of every norm


def check(config: Config) -> None:
    """Refuses a recalibration where there is nothing to recalibrate, and averaged weights without one where there is.

    Raises:
      UserError: the norm is no batch norm; or averaged weights would have the statistics of others.
    """
    if config.regularizers.average and takes_state(config.model) and not config.eval.recalibrate:
        way = (
            "write `--config.eval.recalibrate=10`, for example"
            if hands_out_moments(config.model)
            else ("no other ones can be measured; write another norm, `--config.model.norm=batch` for example")
        )
        raise UserError(
            f"`config.regularizers.average={config.regularizers.average}` averages weights, for which the running "
            f"statistics of `config.model.norm={config.model.norm}` are not right: {way}."
        )
    if config.eval.recalibrate and not (takes_state(config.model) and hands_out_moments(config.model)):
        raise UserError(
            f"`config.eval.recalibrate` must be 0 for `config.model.norm={config.model.norm}`, which has no running "
            f"statistics of a batch norm, but it is {config.eval.recalibrate}; leave it out, or write "
            "`--config.model.norm=batch`."
        )


def measure_step(
    network: Network, layout: Layout, state: Any, batch: Mapping[str, Array], task: Task = classification.TASK
) -> Tree:
    """The moments of every norm over a batch, each norm normalizing as in training; for one part of the batch."""

    def measured(part: View) -> Tree:
        return network.measure(state.params, state.batch_stats, part.inputs, mask=part.mask)[1]

    return layout.pooled(layout.accumulated(measured, evaluated_view(task, batch, state.params)))


def evaluated_view(task: Task, batch: Mapping[str, Array], params: Tree) -> View:
    """A batch as a task sees it where nothing is learned: every time alike."""
    return task.view(cast(batch, params), noise.keys(noise.of_evaluation(batch)) if task.random else None)


def cast(batch: Mapping[str, Array], params: Tree) -> dict[str, Array]:
    """A batch whose numbers with a point have the dtype of the parameters."""
    dtype = dtype_of(params)
    return {name: t.astype(dtype) if jnp.issubdtype(t.dtype, jnp.floating) else t for name, t in batch.items()}


def recalibrated(measure: Measure, state: Any, batches: Iterable[Mapping[str, Any]], many: bool = False) -> Any:
    """`state` with the statistics of all examples of the batches together; `state` itself stays as it is.

    `many`: it is the state of many runs, along a first axis.
    """
    merged, taken = (jax.vmap(_merged), jax.vmap(_taken)) if many else (_merged, _taken)
    found = functools.reduce(merged, (measure(state, batch) for batch in batches))
    return state._replace(batch_stats=taken(state.batch_stats, found))


@jax.jit
def _merged(a: Tree, b: Tree) -> Tree:
    """The moments of two batches as those of one."""
    return jax.tree.map(lambda m, n: dataclasses.replace(m, **vars(bnjax.merge(m, n))), a, b, is_leaf=is_moments)


@jax.jit
def _taken(batch_stats: Tree, moments: Tree) -> Tree:
    """The statistics after a step that keeps nothing of the old ones."""
    steps = jax.tree.map(lambda m: dataclasses.replace(m, momentum=0.0), moments, is_leaf=is_moments)
    return bnjax.update_batch_stats(batch_stats, steps)
