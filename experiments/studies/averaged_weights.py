"""What is recalibration worth for averaged weights, and how far is one pass off?

Trains the network of `configs/digits_cnn.py` with a constant learning rate, and averages its weights and its running
statistics on the way. The tables of docs/guide/averaged_weights.md are made of its numbers.
"""

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from bnjax import linen as bnn
from experiments.config import Config, ModelConfig, OptimizerConfig, TrainConfig
from experiments.data import CLASSES, Data, batches, count, epoch_order, load_data, steps_per_epoch
from experiments.models.article_cnn import LinenCNN
from experiments.results import charts
from experiments.results.claims import Claim, Interval, all_of, interval, paired
from experiments.results.evidence import Evidence, Measured
from experiments.results.markers import Markers
from experiments.results.study import Chart, Settings, Study
from experiments.results.summary import mean_and_deviation
from experiments.results.tables import Table
from experiments.training import run as training
from experiments.training.steps import Program, TrainState

ACCURACY = Markers("<!-- averaged -->\n", "<!-- /averaged -->\n")  # places in the guide
ONE_PASS = Markers("<!-- one pass -->\n", "<!-- /one pass -->\n")

STEPS, SWA_FROM, EMA_DECAY = 160, 80, 0.95
MOMENTA = (0.9, 0.99)
SIZES = (4, 16, 128, 1024)  # of batches, of the same 1024 examples
WEIGHTS = {"last": "last step", "ema": f"EMA, {EMA_DECAY}", "swa": f"SWA, last {STEPS - SWA_FROM} steps"}
STATISTICS = ("last", "averaged", "recalibrated")


def cells(quick: bool) -> list[Settings]:
    """Training with each momentum; and one pass over batches of each size."""
    averaged: list[Settings] = [{"part": "averaged", "momentum": momentum} for momentum in MOMENTA]
    sizes: list[Settings] = [{"part": "one_pass", "size": size} for size in SIZES]
    return averaged[-1:] + sizes[-1:] if quick else averaged + sizes


def run(settings: Settings, seeds: Sequence[int]) -> Iterable[Measured]:
    """The accuracies of all weights with all statistics; or the errors of one pass, which has no seed."""
    if settings["part"] == "one_pass":
        for i, error in enumerate(one_pass_errors(settings["size"]), 1):
            yield Measured(0, f"error of the variance, norm {i}", 0, error)
        return
    config = config_of(settings["momentum"])
    data = load_data(config.data)
    program = training.program_of(config, data)
    for seed in seeds:
        found = accuracies(dataclasses.replace(config, seed=seed), data, program)
        for weights, values in found.items():
            for statistics, value in zip(STATISTICS, values, strict=True):
                yield Measured(seed, "accuracy", STEPS, value, {"weights": weights, "statistics": statistics})


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
    return state, {"last": last, "ema": ema, "swa": swa}


def all_batches(config: Config, data: Data, program: Program) -> Iterator[Any]:
    """The batches of one epoch after the other."""
    for epoch in itertools.count():
        order = epoch_order(config.seed, epoch, count(data.train))
        yield from batches(data.train, config.train.batch_size, order, program.train_share)


def accuracies(config: Config, data: Data, program: Program) -> dict[str, list[float]]:
    """By weights, the accuracies: with the last running statistics, with their average, and recalibrated."""
    model = LinenCNN(config.model, data.train["image"].shape[1:], CLASSES, {})
    state, of_weights = trained(config, data, program)
    examples = list(itertools.islice(all_batches(config, data, program), steps_per_epoch(config, data)))
    found = {}
    for name, weights in of_weights.items():
        recalibrated, _ = bnn.recalibrate(
            model, weights._asdict(), examples, call=lambda m, b: m(b["image"], train=False, mask=b["mask"])
        )
        kinds = (state.batch_stats, weights.batch_stats, recalibrated)
        found[name] = [accuracy(program, state._replace(params=weights.params, batch_stats=s), data) for s in kinds]
    return found


def accuracy(program: Program, state: TrainState, data: Data) -> float:
    sums = jax.device_get(training.evaluate(program, state, data.held_out, count(data.held_out)))
    return float(sum(s["correct"] for s in sums) / sum(s["count"] for s in sums))


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


# Figures


def _of(momentum: float, weights: str, statistics: str) -> Settings:
    return {"part": "averaged", "momentum": momentum, "weights": weights, "statistics": statistics}


def _gains(evidence: Evidence, momentum: float, before: str = "last") -> dict[str, Interval]:
    """What recalibration gains over other statistics, in points of accuracy, for each kind of weights."""
    return {
        weights: _points(
            paired(evidence, "accuracy", _of(momentum, weights, "recalibrated"), _of(momentum, weights, before))
        )
        for weights in WEIGHTS
    }


def _points(value: Interval) -> Interval:
    return Interval(*(100 * v for v in value))


def _accuracies(evidence: Evidence) -> dict[str, Interval]:
    of = {"ema": ("ema", "recalibrated"), "swa": ("swa", "recalibrated"), "last": ("last", "last")}
    return {n: _points(interval(evidence.values("accuracy", _of(0.99, *kinds)))) for n, kinds in of.items()}


CLAIMS = (
    Claim(
        "statistics that lag behind",
        "With momentum 0.99, after 160 steps, recalibrated statistics are worth {last:.1f} points of accuracy for the "
        "last weights, {ema:.1f} for their moving average, and {swa:.1f} for the mean of the second half (SWA). It is "
        "the lag of the running statistics that costs, with averages or without.",
        lambda e: _gains(e, 0.99),
        lambda f: all_of([f[weights].above(1) for weights in WEIGHTS]),
        "one of them gained less than 1 point",
    ),
    Claim(
        "statistics that do not lag",
        "With momentum 0.9, which fits so few steps, recalibrated statistics are worth less than half a point: "
        "{last:.1f} for the last weights, {ema:.1f} for their moving average, {swa:.1f} for SWA.",
        lambda e: _gains(e, 0.9),
        lambda f: all_of([f[weights].below(0.5) for weights in WEIGHTS]),
        "one of them gained half a point or more",
        about="momentum",
    ),
    Claim(
        "averaged statistics",
        "To average the statistics as the weights is not enough: recalibration is worth {ema:.1f} points more for the "
        "moving average, and {swa:.1f} for SWA.",
        lambda e: _gains(e, 0.99, "averaged"),
        lambda f: all_of([f["ema"].above(1), f["swa"].above(1)]),
        "one of them gained less than 1 point",
        "Izmailov et al. compute the statistics of SWA anew by a pass over the data (arXiv:1803.05407, section 3.2).",
    ),
)


# Pictures and tables


def pictures(evidence: Evidence) -> list[Chart]:
    rows = []
    for weights, name in WEIGHTS.items():
        for statistics in STATISTICS:
            if evidence.select(_of(0.99, weights, statistics)):
                value = interval(evidence.values("accuracy", _of(0.99, weights, statistics)))
                rows.append({"weights": name, "statistics": statistics, **value.named("accuracy")})
    if not rows:
        return []
    text = "Accuracy on the held-out digits with momentum 0.99, the mean over the seeds with its 95 % interval."
    spec = charts.bars(rows, y="accuracy", facet="weights", x="statistics", order=STATISTICS)
    table = charts.table(rows, x="statistics", y="accuracy", line="weights", title="Accuracy, mean and 95 % interval")
    return [Chart("Which statistics?", text, spec, table)]


def put_tables(page: str, evidence: Evidence) -> str:
    """The page of the guide with the tables of these numbers."""
    return ONE_PASS.put(ACCURACY.put(page, accuracy_table(evidence)), one_pass_table(evidence))


def accuracy_table(evidence: Evidence) -> str:
    """The accuracies of all weights, with a momentum that fits so few steps and with one that does not."""
    rows, seeds = [], 0
    for momentum, (weights, name) in itertools.product(MOMENTA, WEIGHTS.items()):
        of_kinds = [100 * evidence.values("accuracy", _of(momentum, weights, kind)) for kind in STATISTICS]
        cells = [mean_and_deviation(list(of_kind), digits=1) for of_kind in of_kinds]
        cells[1] = "the same" if weights == "last" else cells[1]
        rows.append([name, f"{momentum:g}", *cells])
        seeds = len(of_kinds[0])
    head = ("weights", "momentum", "last statistics", "averaged statistics", "recalibrated")
    title = f"Accuracy on the held-out digits, %, {STEPS} steps, {seeds} seeds"
    return f"{Table(title, head, rows).markdown()}\n"


def one_pass_table(evidence: Evidence) -> str:
    """The errors of the five norms, by the size of the batches."""
    head = ("batch size", *(f"norm {i}" for i in range(1, 6)))
    rows = [[str(size), *(percent(error) for error in _one_pass(evidence, size))] for size in SIZES]
    return f"{Table('Error of the variance after one pass, %, the mean over the features', head, rows).markdown()}\n"


def _one_pass(evidence: Evidence, size: int) -> list[float]:
    settings = {"part": "one_pass", "size": size}
    return [float(evidence.values(f"error of the variance, norm {i}", settings)[0]) for i in range(1, 6)]


def percent(error: float) -> str:
    """Two digits; what may be rounding is not told apart.

    >>> percent(0.0123), percent(1e-8)
    ('1.2', '< 0.001')
    """
    return f"{100 * error:.2g}" if error > 1e-5 else "< 0.001"


STUDY = Study(
    name="averaged_weights",
    title="Statistics of averaged weights",
    question="Averaged weights have no running statistics of their own. Which do they need?",
    protocol=(
        f"The network of `configs/digits_cnn.py` (batch norm) on the digits, {STEPS} steps of SGD at one rate. "
        f"The moving average (EMA) decays by {EMA_DECAY}; the mean (SWA) is over the last {STEPS - SWA_FROM} steps. "
        "Recalibrated statistics are those of all training examples, by `bnjax.linen.recalibrate`."
    ),
    cells=cells,
    run=run,
    seeds=5,
    constants={"steps": STEPS, "swa from": SWA_FROM, "ema decay": EMA_DECAY},
    claims=CLAIMS,
    charts=pictures,
    label="statistics",
)
