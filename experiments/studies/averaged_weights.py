"""What recalibration is worth for averaged weights, and how far one pass is off: the tables of the guide.

    python -m experiments.studies.averaged_weights [--write]

Trains the network of `configs/digits_cnn.py` with a constant learning rate, and averages its weights and its running
statistics on the way. `--write` puts the tables into docs/guide/averaged_weights.md.
"""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from bnjax import linen as bnn
from experiments.cli.flags import parse_flags
from experiments.cli.program import run_main
from experiments.cli.report import Report, reporting
from experiments.cli.schema import Range
from experiments.config import Config, ModelConfig, OptimizerConfig, TrainConfig
from experiments.data import CLASSES, Data, batches, count, epoch_order, load_data, steps_per_epoch
from experiments.models.article_cnn import LinenCNN
from experiments.results.markers import Markers, write_between
from experiments.results.summary import mean_and_deviation
from experiments.results.tables import Table
from experiments.training import run
from experiments.training.steps import Program, TrainState

PAGE = Path(__file__).resolve().parents[2] / "docs" / "guide" / "averaged_weights.md"
ACCURACY = Markers("<!-- averaged -->\n", "<!-- /averaged -->\n")
ONE_PASS = Markers("<!-- one pass -->\n", "<!-- /one pass -->\n")

STEPS, SWA_FROM, EMA_DECAY = 160, 80, 0.95
MOMENTA = (0.9, 0.99)
SIZES = (4, 16, 128, 1024)  # of batches, of the same 1024 examples


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Train, average, recalibrate, and print the tables."""

    seeds: Annotated[int, Range(low=1, high=100)] = 3
    """How many runs, counted from seed 0."""
    write: bool = False
    """Put the tables into docs/guide/averaged_weights.md."""


# Averaged weights


class Weights(NamedTuple):
    """Parameters and running statistics, at the end or averaged over steps."""

    params: Any
    batch_stats: Any


def config_of(momentum: float) -> Config:
    """That of `configs/digits_cnn.py`, with a constant learning rate."""
    return Config(
        model=ModelConfig(momentum=momentum),
        optimizer=OptimizerConfig(schedule="constant"),
        train=TrainConfig(epochs=7),
    )


def trained(config: Config, data: Data, program: Program) -> tuple[TrainState, dict[str, Weights]]:
    """The last state, and by name: the weights of the last step, their EMA, and the mean of the second half (SWA)."""
    state = program.init(jax.random.key(config.seed))
    ema = swa = jax.tree.map(jnp.copy, Weights(state.params, state.batch_stats))
    for i, batch in enumerate(itertools.islice(all_batches(config, data, program), STEPS)):
        state, _ = program.train_step(state, batch)
        new = Weights(state.params, state.batch_stats)
        ema = optax.incremental_update(new, ema, 1 - EMA_DECAY)
        if i >= SWA_FROM:
            swa = optax.incremental_update(new, swa, 1 / (i - SWA_FROM + 1))
    last = Weights(state.params, state.batch_stats)
    return state, {"last step": last, f"EMA, {EMA_DECAY}": ema, f"SWA, last {STEPS - SWA_FROM} steps": swa}


def all_batches(config: Config, data: Data, program: Program) -> Iterator[Any]:
    """The batches of one epoch after the other."""
    for epoch in itertools.count():
        order = epoch_order(config.seed, epoch, count(data.train))
        yield from batches(data.train, config.train.batch_size, order, program.train_share)


def accuracies(config: Config, data: Data, program: Program) -> dict[str, list[float]]:
    """By weights, the accuracies: with the last running statistics, with their average, and recalibrated."""
    model = LinenCNN(config.model, data.train["image"].shape[1:], CLASSES, {})
    state, of_weights = trained(config, data, program)
    training = list(itertools.islice(all_batches(config, data, program), steps_per_epoch(config, data)))
    found = {}
    for name, weights in of_weights.items():
        recalibrated, _ = bnn.recalibrate(
            model, weights._asdict(), training, call=lambda m, b: m(b["image"], train=False, mask=b["mask"])
        )
        kinds = (state.batch_stats, weights.batch_stats, recalibrated)
        found[name] = [accuracy(program, state._replace(params=weights.params, batch_stats=s), data) for s in kinds]
    return found


def accuracy(program: Program, state: TrainState, data: Data) -> float:
    sums = jax.device_get(run.evaluate(program, state, data.held_out, count(data.held_out)))
    return float(sum(s["correct"] for s in sums) / sum(s["count"] for s in sums))


def accuracy_table(seeds: int, report: Report) -> str:
    """The accuracies of all weights, with a momentum that fits so few steps and with one that does not."""
    rows = []
    for momentum in MOMENTA:
        config = config_of(momentum)
        data = load_data(config.data)
        program = run.program_of(config, data)
        runs = []
        for seed in range(seeds):
            report.title(f"momentum {momentum:g}, seed {seed}")
            runs.append(accuracies(dataclasses.replace(config, seed=seed), data, program))
            report.advance()
        for name in runs[0]:
            of_kinds = zip(*(r[name] for r in runs), strict=True)
            cells = [mean_and_deviation([100 * a for a in of_kind], digits=1) for of_kind in of_kinds]
            cells[1] = "the same" if name == "last step" else cells[1]
            rows.append([name, f"{momentum:g}", *cells])
    head = ("weights", "momentum", "last statistics", "averaged statistics", "recalibrated")
    title = f"Accuracy on the held-out digits, %, {STEPS} steps, {seeds} seeds"
    return f"{Table(title, head, rows).markdown()}\n"


# One pass, or a pass for each norm


class FiveNorms(nn.Module):
    """Five blocks of a dense layer, Flax's batch norm and relu."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for i in range(5):
            x = nn.relu(nn.BatchNorm(use_running_average=True, name=f"norm{i + 1}")(nn.Dense(32)(x)))
        return x


def one_pass_errors(size: int) -> list[float]:
    """By how much one pass misses the variance of each norm: the mean over the features, of batches of `size`."""
    x = load_data(Config().data).train["image"][:1024].reshape(1024, -1)
    model = FiveNorms()
    variables = model.init(jax.random.key(0), x[:1])
    batches = np.split(x, 1024 // size)
    one_pass, _ = bnn.recalibrate(model, variables, batches)
    exact, _ = bnn.recalibrate(model, variables, batches, by_layer=True)
    return [float(jnp.abs(one_pass[norm]["var"] / exact[norm]["var"] - 1).mean()) for norm in sorted(exact)]


def one_pass_table(sizes: Sequence[int] = SIZES) -> str:
    """The errors of the five norms, by the size of the batches."""
    head = ("batch size", *(f"norm {i}" for i in range(1, 6)))
    rows = [[str(size), *map(percent, one_pass_errors(size))] for size in sizes]
    return f"{Table('Error of the variance after one pass, %, the mean over the features', head, rows).markdown()}\n"


def percent(error: float) -> str:
    """Two digits; what may be rounding is not told apart.

    >>> percent(0.0123), percent(1e-8)
    ('1.2', '< 0.001')
    """
    return f"{100 * error:.2g}" if error > 1e-5 else "< 0.001"


def main(argv: Sequence[str]) -> None:
    arguments = parse_flags(Arguments, argv, "python -m experiments.studies.averaged_weights", __doc__)
    with reporting(len(MOMENTA) * arguments.seeds) as report:
        blocks = {ONE_PASS: one_pass_table(), ACCURACY: accuracy_table(arguments.seeds, report)}
    print("\n".join(blocks.values()), end="")
    if arguments.write:
        write_between(PAGE, blocks)


if __name__ == "__main__":
    run_main(main)
