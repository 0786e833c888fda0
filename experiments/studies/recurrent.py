"""Do norms help recurrent networks? An LSTM on digits pixel by pixel, and on long sequences."""

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from jax import Array

from bnjax import linen as bnn
from experiments.data import CLASSES
from experiments.lab.fitting import Examples, Step, accuracy, digits, fit, loss_of
from experiments.lab.rates import best, metric, of_all
from experiments.results import charts
from experiments.results.claims import Claim, Interval, all_of, interval
from experiments.results.evidence import Evidence, Measured
from experiments.results.study import Chart, Settings, Study

NORMS = ("none", "layer", "batch")
FEATURES, BATCH, STEPS, EVERY = 32, 32, 400, 100
RATES = (0.0003, 0.001, 0.003, 0.01, 0.03, 0.1)  # of Adam
SYMBOLS, TRAINING, HELD_OUT = 8, 2000, 500
LENGTHS = (20, 50, 100)
PIXELS = 64
LEARNED = 0.9  # the accuracy of a network that has learned it
FLOOR = 1e-38  # what float32 can hold: a smaller gradient is zero


class Reader(nn.Module):
    """An LSTM over a sequence (n, steps, features), and a dense layer of its last output."""

    norm: str
    classes: int

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        cells: dict[str, Any] = {
            "none": nn.LSTMCell,
            "layer": bnn.LayerNormLSTMCell,
            "batch": partial(bnn.BatchNormLSTMCell, use_running_average=not train),
        }
        read: Any = nn.RNN(cells[self.norm](FEATURES), variable_axes={"batch_stats": 0})
        return nn.Dense(self.classes)(read(x)[:, -1])


def cells(quick: bool) -> list[Settings]:
    """Each norm on the digits, and on sequences of each length."""
    tasks = [("digits", PIXELS), *(("memory", length) for length in LENGTHS)]
    tasks = [("memory", LENGTHS[0])] if quick else tasks
    return [{"task": task, "length": length, "norm": norm} for task, length in tasks for norm in NORMS]


def run(settings: Settings, seeds: Sequence[int]) -> Iterable[Measured]:
    """All seeds of a cell as one program, and all learning rates."""
    train, held_out = pixels() if settings["task"] == "digits" else sequences(settings["length"])
    net = Reader(settings["norm"], CLASSES if settings["task"] == "digits" else SYMBOLS)
    accuracies, sizes = of_all(partial(trained, net, train, held_out), seeds, RATES)
    for i, seed in enumerate(seeds):
        for j, rate in enumerate(RATES):
            yield Measured(seed, metric(rate), STEPS, float(accuracies[j, i]))
        logs = np.log10(np.maximum(sizes[0, i, 0], FLOOR))  # before the first step all rates are alike
        yield Measured(seed, "log10 of first / last", 0, float(logs[0] - logs[-1]))
        if seed == seeds[0]:
            yield from (Measured(seed, f"log10 of gradient, step {t}", 0, float(g)) for t, g in enumerate(logs, 1))


def pixels() -> tuple[Examples, Examples]:
    """The digits as sequences of 64 numbers."""
    train, held_out = digits(flat=True)
    return (train[0][..., None], train[1]), (held_out[0][..., None], held_out[1])


def sequences(length: int) -> tuple[Examples, Examples]:
    """Random symbols, one-hot (n, length, SYMBOLS); the class is the first of them."""
    random = np.random.RandomState(0)
    symbols = random.randint(SYMBOLS, size=(TRAINING + HELD_OUT, length))
    x = np.eye(SYMBOLS, dtype=np.float32)[symbols]
    return (x[:TRAINING], symbols[:TRAINING, 0]), (x[TRAINING:], symbols[TRAINING:, 0])


def trained(net: Reader, train: Examples, held_out: Examples, seed: Array, rate: Array) -> tuple[Array, Array]:
    """The accuracy on what is held out, and the gradients to each step of the input: (STEPS / EVERY, length)."""
    watch = partial(gradients_by_step, net)
    variables, sizes = fit(
        net, train, jax.random.key(seed), optax.adam(rate), steps=STEPS, batch=BATCH, every=EVERY, watch=watch
    )
    return accuracy(net, variables, held_out), sizes


def gradients_by_step(net: Reader, step: Step) -> Array:
    """The norm of the gradient of the loss to the input of each time step."""

    def loss(x: Array) -> Array:
        return loss_of(net, step.variables["params"], step.variables, x, step.y)[0]

    return jnp.sqrt((jax.grad(loss)(step.x) ** 2).sum((0, 2)))


# Figures


def _settings(norm: str, task: str = "digits", length: int = PIXELS) -> Settings:
    return {"task": task, "length": length, "norm": norm}


def _best(evidence: Evidence, settings: Settings) -> np.ndarray:
    return best(evidence, RATES, settings)


def _digits(evidence: Evidence) -> dict[str, Interval]:
    found = {norm: _best(evidence, _settings(norm)) for norm in NORMS}
    more = {f"{norm}_more": interval(found[norm] - found["none"]) for norm in ("batch", "layer")}
    return {**{norm: interval(values) for norm, values in found.items()}, **more}


def _memory(length: int, evidence: Evidence) -> dict[str, Any]:
    found = {norm: _best(evidence, _settings(norm, "memory", length)) for norm in NORMS}
    learned = f"{(found['batch'] > LEARNED).sum()} of {len(found['batch'])}"
    more = interval(found["batch"] - found["none"])
    return {**{norm: interval(values) for norm, values in found.items()}, "learned": learned, "more": more}


def _gradients(evidence: Evidence) -> dict[str, Interval]:
    own = "log10 of first / last"
    found = {norm: evidence.values(own, _settings(norm, "memory", LENGTHS[-1])) for norm in NORMS}
    learned = interval(_best(evidence, _settings("layer", "memory", LENGTHS[-1])))
    return {**{n: interval(v) for n, v in found.items()}, "learned": learned}


CLAIMS = (
    Claim(
        "digits, pixel by pixel",
        "An LSTM that reads a digit pixel by pixel learns more with a norm in its cell. Found: accuracy {none:.2f} "
        "without a norm, {batch:.2f} with batch norm ({batch_more:+.2f}), {layer:.2f} with layer norm "
        "({layer_more:+.2f}).",
        _digits,
        lambda f: all_of([f["batch_more"].above(0.0), f["layer_more"].above(0.0)]),
        "one of the two were no better than none",
        "Cooijmans et al.: 98.9 % without and 99.0 % with batch norm on MNIST, 90.2 % and 95.4 % where the pixels are "
        "in mixed order (arXiv:1603.09025, table 1). Ba et al. found faster training of recurrent networks with layer "
        "norm, above all on long sequences (arXiv:1607.06450).",
    ),
    Claim(
        "memory",
        f"An LSTM learns to name the first of {LENGTHS[-1]} symbols with batch norm in its cell, and not without a "
        f"norm. Found: with batch norm {{learned}} seeds learn it (accuracy {{batch:.2f}}); the accuracy is "
        f"{{none:.2f}} without a norm, and {{layer:.2f}} with layer norm. Chance is 1 in {SYMBOLS}.",
        partial(_memory, LENGTHS[-1]),
        lambda f: all_of([f["batch"].above(LEARNED), f["none"].below(0.5)]),
        "batch norm stayed below 0.9, or the network without a norm came above 0.5",
    ),
    Claim(
        "a shorter memory",
        f"Of {LENGTHS[1]} symbols it names the first more often with batch norm than without a norm. Found: accuracy "
        "{batch:.2f} with batch norm, {none:.2f} without a norm ({more:+.2f}), {layer:.2f} with layer norm.",
        partial(_memory, LENGTHS[1]),
        lambda f: f["more"].above(0),
        "it did so no more often",
    ),
    Claim(
        "gradients through time",
        f"Without a norm the gradient vanishes over {LENGTHS[-1]} steps, before any training; with a norm it does not. "
        "This alone is not enough: with layer norm the network does not learn to remember, either. Found: the gradient "
        "to the first symbol is 10 to the power of {none:.1f} times that to the last one without a norm, {layer:.1f} "
        "with layer norm, and {batch:.1f} with batch norm; with layer norm the accuracy is {learned:.2f}.",
        _gradients,
        lambda f: all_of(
            [f["none"].below(-5), *(f[norm].above(-5) for norm in ("batch", "layer")), f["learned"].below(0.5)]
        ),
        "the power were above -5 without a norm, or below it with one of the norms, or the accuracy with layer norm "
        "were above 0.5",
    ),
)


# Pictures


def pictures(evidence: Evidence) -> list[Chart]:
    found = []
    if rows := _by_length(evidence):
        found.append(
            Chart(
                "How long can it remember?",
                "Accuracy in naming the first symbol of a sequence. A line is the mean over the seeds, with its 95 % "
                "interval. Click a norm in the legend to fade the others.",
                charts.lines(rows, x="symbols", y="accuracy", colour="norm", order=NORMS),
                charts.table(rows, x="symbols", y="accuracy", line="norm", title="Accuracy, mean and 95 % interval"),
            )
        )
    if rows := _by_step(evidence):
        found.append(
            Chart(
                "Where do gradients come to?",
                "Before training: the gradient of the loss to each step of the input, as a power of ten. The loss "
                "stands behind the last step.",
                charts.lines(rows, x="time step", y="log10 of gradient", colour="norm", order=NORMS),
            )
        )
    return found


def _by_length(evidence: Evidence) -> list[dict[str, Any]]:
    found = []
    for norm in NORMS:
        for length in LENGTHS:
            settings = _settings(norm, "memory", length)
            if evidence.select(settings):
                value = interval(_best(evidence, settings))
                found.append({"norm": norm, "symbols": length, **value.named("accuracy")})
    return found


def _by_step(evidence: Evidence) -> list[dict[str, Any]]:
    prefix = "log10 of gradient, step "
    return [
        {"norm": norm, "time step": int(row.metric.removeprefix(prefix)), "log10 of gradient": round(row.value, 2)}
        for norm in NORMS
        for row in evidence.select(_settings(norm, "memory", LENGTHS[-1]))
        if row.metric.startswith(prefix) and int(row.metric.removeprefix(prefix)) % 10 == 1
    ]


STUDY = Study(
    name="recurrent",
    title="Recurrent networks",
    question="Do norms help recurrent networks to learn, and to remember for long?",
    protocol=(
        f"An LSTM of {FEATURES} features and a dense layer of its last output, {STEPS} steps of Adam with {BATCH} "
        f"examples a batch. Of the learning rates {', '.join(f'{r:g}' for r in RATES)} each setting has the one with "
        "the best mean accuracy on what is held out. Batch norm in the cell has statistics for each time step, and is "
        "evaluated with its running ones (arXiv:1603.09025); layer norm is that of arXiv:1607.06450.\n\n"
        f"Two tasks: the 8 by 8 digits, read as {PIXELS} numbers; and random sequences of {SYMBOLS} symbols, where the "
        "class is the first symbol, and all others must be ignored."
    ),
    cells=cells,
    run=run,
    seeds=5,
    constants={
        "features": FEATURES,
        "batch": BATCH,
        "steps": STEPS,
        "rates": RATES,
        "symbols": SYMBOLS,
        "training": TRAINING,
        "held out": HELD_OUT,
    },
    claims=CLAIMS,
    charts=pictures,
)
