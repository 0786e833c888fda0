"""Runs that differ in their seeds alone, side by side: along a first axis of their states and of their batches."""

from collections.abc import Iterator, Mapping, Sequence

import jax
import numpy as np

from experiments.config import Config
from experiments.data import Data, batches
from experiments.training.steps import Program, TrainState


def together(states: Sequence[TrainState], program: Program) -> TrainState:
    """The states of several runs as that which a program of so many seeds takes; of one run, its state."""
    if program.seeds is None:
        return states[0]
    return jax.tree.map(lambda *t: jax.device_put(np.stack(jax.device_get(t)), t[0].sharding), *states)


def apart(state: TrainState, program: Program) -> list[TrainState]:
    """The states of the runs, each placed as that of a run alone is."""
    if program.seeds is None:
        return [state]
    host = jax.device_get(state)

    def of_run(i: int) -> TrainState:
        return jax.tree.map(lambda t, on: jax.device_put(t[i], on.sharding), host, state)

    return [of_run(i) for i in range(program.seeds)]


def training_batches(
    config: Config, data: Data, program: Program, orders: Sequence[np.ndarray]
) -> Iterator[Mapping[str, np.ndarray]]:
    """The batches of an epoch, of each run in its order."""
    in_turn = [batches(data.train, config.train.batch_size, order, program.train_share) for order in orders]
    if program.seeds is None:
        yield from in_turn[0]
        return
    for each in zip(*in_turn, strict=True):
        yield {name: np.stack([batch[name] for batch in each]) for name in each[0]}
