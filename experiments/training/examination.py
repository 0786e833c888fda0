"""What is wrong with the norms of a run, and when a run should be asked."""

import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from bnjax.linen import Diagnosis
from experiments.cli.errors import UserError
from experiments.config import Config
from experiments.models.network import Network
from experiments.results.records import Record
from experiments.tasks.task import Task
from experiments.training.recalibration import evaluated_view

FAR = 1.0  # by which the loss of the evaluation is above that of training: of ten classes, chance is at 2.3


def hint(record: Record, config: Config, workdir: Path) -> str:
    """Where to look, if the end of a run looks as it does with broken statistics; or nothing."""
    train, held_out = record["train/loss"], record["eval/loss"]
    if config.model.norm == "none" or (math.isfinite(held_out) and not held_out - train > FAR):
        return ""
    what = "far above that of training" if math.isfinite(held_out) else "not finite"
    return (
        f"The loss of the evaluation is {what}. Whether its norms are to blame: "
        f"python -m experiments.doctor --run={workdir}"
    )


def examined(
    network: Network, optimizer: Any, task: Task, state: Any, batches: Iterable[Mapping[str, Any]]
) -> Diagnosis:
    """What is wrong with the norms of a network, by batches as a task sees them.

    Raises:
      UserError: it has none.
    """

    def pairs() -> Iterator[Any]:
        for batch in batches:
            view = evaluated_view(task, jax.tree.map(jnp.asarray, batch), state.params)
            yield view.inputs, view.mask

    assert network.examine is not None
    try:
        return network.examine(state.params, state.batch_stats, pairs(), optimizer)
    except ValueError as error:
        raise UserError(f"The norms of this run cannot be examined: {error}") from error
