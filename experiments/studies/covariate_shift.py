"""Does batch norm help because inputs of layers move less, or because the loss is smoother?"""

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
from experiments.lab.deep import Deep
from experiments.lab.fitting import Examples, Step, accuracy, digits, fit
from experiments.lab.landscape import ABSOLUTE, RELATIVE, along_gradient
from experiments.results import charts
from experiments.results.claims import Claim, Interval, all_of, interval, paired
from experiments.results.evidence import Evidence, Measured
from experiments.results.study import Chart, Settings, Study

# Inputs of a layer
VERSIONS = ("none", "batch", "batch_noisy")
LAYERS, WIDTH, BATCH, MOMENTUM = 3, 100, 60, 0.9
STEPS, EVERY = 1000, 20
RATES = (0.02, 0.1, 0.5)
RATE = 0.1  # of the claims that compare with one rate
QUANTILES = (0.15, 0.5, 0.85)
MEANS, DEVIATIONS = (-0.5, 0.5), (1.0, 1.25)  # between which those of the noise lie
ENOUGH = 0.9  # accuracy

# The loss along the gradient
NORMS = ("none", "batch", "layer")
DEPTH, WALK, LOOK = 10, 300, 10
KINDS = {"absolute": "a learning rate", "relative": "a part of the weights' length"}
METRICS = {"range": "range of the loss", "change": "change of the gradient", "smoothness": "change by length"}


class Sigmoid(nn.Module):
    """Layers of sigmoids, the norm in front of each; `batch_noisy` adds noise behind the norm, while it is trained."""

    version: str

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        for i in range(1, LAYERS + 1):
            x = nn.Dense(WIDTH, name=f"dense{i}")(x)
            if self.version != "none":
                x = bnn.BatchNorm(use_running_average=not train, momentum=0.9, name=f"norm{i}")(x)
            if self.version == "batch_noisy" and train:
                x = noisy(x, self.make_rng("dropout"))
            if i == LAYERS:
                self.sow("intermediates", "last", x)
            x = nn.sigmoid(x)
        return nn.Dense(CLASSES, name="head")(x)


def noisy(x: Array, key: Array) -> Array:
    """Every unit with another mean and deviation than that of the norm, drawn anew in every step."""
    keys = jax.random.split(key)
    mean = jax.random.uniform(keys[0], x.shape[-1:], minval=MEANS[0], maxval=MEANS[1])
    deviation = jax.random.uniform(keys[1], x.shape[-1:], minval=DEVIATIONS[0], maxval=DEVIATIONS[1])
    return x * deviation[None] + mean[None]


def cells(quick: bool) -> list[Settings]:
    """Inputs of a layer, of each version; and the loss along the gradient, of each norm."""
    inputs: list[Settings] = [{"part": "inputs", "norm": version} for version in VERSIONS]
    landscapes: list[Settings] = [{"part": "landscape", "norm": norm} for norm in NORMS]
    return inputs[:2] + landscapes[:2] if quick else inputs + landscapes


def run(settings: Settings, seeds: Sequence[int]) -> Iterable[Measured]:
    """All seeds of a cell as one program, and all learning rates."""
    if settings["part"] == "inputs":
        over = jax.vmap(jax.vmap(partial(watched, settings["norm"], *digits(flat=True)), (0, None)), (None, 0))
        quantiles, accuracies = jax.device_get(jax.jit(over)(jnp.asarray(seeds), jnp.asarray(RATES)))
        return _inputs(quantiles, accuracies, seeds)
    walk = jax.jit(jax.vmap(partial(walked, settings["norm"], digits(flat=True)[0])))
    return _landscape(jax.device_get(walk(jnp.asarray(seeds))), seeds)


def watched(version: str, train: Examples, held_out: Examples, seed: Array, rate: Array) -> tuple[Array, Array]:
    """Every `EVERY` steps: the quantiles of the inputs of the last sigmoids (looks, 3, units), and the accuracy."""
    net = Sigmoid(version)
    x = jnp.asarray(held_out[0])

    def look(step: Step) -> tuple[Array, Array]:
        _, new = net.apply(step.variables, x, True, mutable=["batch_stats", "intermediates"], rngs=step.rngs)
        inputs = new["intermediates"]["last"][0]  # type: ignore[index]
        return jnp.quantile(inputs, jnp.asarray(QUANTILES), axis=0), accuracy(net, step.variables, held_out)

    sgd = optax.sgd(rate, MOMENTUM)
    return fit(net, train, jax.random.key(seed), sgd, steps=STEPS, batch=BATCH, every=EVERY, watch=look)[1]


def walked(norm: str, train: Examples, seed: Array) -> dict[str, dict[str, Array]]:
    """What is met along the gradient, every `LOOK` steps: (looks,)."""
    net, sgd = Deep(norm, DEPTH, "relu", "he"), optax.sgd(RATE)
    look = partial(along_gradient, net)
    return fit(net, train, jax.random.key(seed), sgd, steps=WALK, batch=BATCH, every=LOOK, watch=look)[1]


def drift(quantiles: np.ndarray) -> tuple[float, float]:
    """How far the quantiles of a unit move from one look to the next: in its spread at the earlier one, and as it is.

    The spread is the distance of the outer quantiles. Both are means over the quantiles, the looks and the units.
    """
    moved = np.abs(np.diff(quantiles, axis=0)).mean(1)
    spread = quantiles[:-1, -1] - quantiles[:-1, 0]
    return float((moved / spread).mean()), float(moved.mean())


def _inputs(quantiles: np.ndarray, accuracies: np.ndarray, seeds: Sequence[int]) -> Iterable[Measured]:
    """Of (rates, seeds, looks, ...): drift and speed of all, quantiles of one unit, and accuracies at one rate."""
    steps = range(0, STEPS, EVERY)
    for i, seed in enumerate(seeds):
        for j, rate in enumerate(RATES):
            relative, absolute = drift(quantiles[j, i])
            reached = accuracies[j, i] >= ENOUGH
            needed = steps[int(reached.argmax())] if reached.any() else STEPS
            of_rate = {"drift": relative, "absolute drift": absolute, "steps": float(needed)}
            yield from (Measured(seed, name, STEPS, value, {"rate": rate}) for name, value in of_rate.items())
        for k in range(0, len(steps), 5):
            yield Measured(seed, "accuracy", steps[k], float(accuracies[RATES.index(RATE), i, k]), {"rate": RATE})
    for k, step in enumerate(steps):
        for q, value in zip(QUANTILES, quantiles[RATES.index(RATE), 0, k, :, 0], strict=True):
            yield Measured(seeds[0], f"quantile {q:g}", step, float(value), {"rate": RATE})


def _landscape(found: dict[str, dict[str, np.ndarray]], seeds: Sequence[int]) -> Iterable[Measured]:
    """Of (seeds, looks): the mean of the logarithms over the looks, and the looks of one seed."""
    for kind, own in found.items():
        more = {"kind": kind}
        for metric in METRICS:
            means = np.log10(own[metric]).mean(1)
            yield from (
                Measured(seed, f"log10 {metric}", WALK, float(m), more) for seed, m in zip(seeds, means, strict=True)
            )
        for metric in ("low", "high", *list(METRICS)[1:]):
            for step, value in zip(range(0, WALK, LOOK), own[metric][0], strict=True):
                yield Measured(seeds[0], metric, step, float(value), more)


# Figures


def _drifts(evidence: Evidence) -> dict[str, Interval]:
    none, batch = ({"part": "inputs", "norm": norm, "rate": RATE} for norm in ("none", "batch"))
    return {
        "none": interval(evidence.values("drift", none)),
        "batch": interval(evidence.values("drift", batch)),
        "none_absolute": interval(evidence.values("absolute drift", none)),
        "batch_absolute": interval(evidence.values("absolute drift", batch)),
        "less": paired(evidence, "drift", none, batch),
    }


def _best(evidence: Evidence, version: str) -> np.ndarray:
    """The steps to an accuracy, with the rate that needs the fewest in the mean."""
    return min((evidence.values("steps", {"part": "inputs", "norm": version, "rate": r}) for r in RATES), key=np.mean)


def _noise(evidence: Evidence) -> dict[str, Interval]:
    steps = {version: _best(evidence, version) for version in VERSIONS}
    settings = {version: {"part": "inputs", "norm": version, "rate": RATE} for version in VERSIONS}
    return {version: interval(values) for version, values in steps.items()} | {
        "faster": interval(steps["none"] - steps["batch_noisy"]),
        "drift": interval(evidence.values("drift", settings["batch_noisy"])),
        "drift_none": interval(evidence.values("drift", settings["none"])),
        "absolute": interval(evidence.values("absolute drift", settings["batch_noisy"])),
        "absolute_none": interval(evidence.values("absolute drift", settings["none"])),
        "more": paired(evidence, "drift", settings["batch_noisy"], settings["none"]),
    }


def _times(evidence: Evidence, kind: str) -> dict[str, Interval]:
    """How many times as large the figures are without a norm."""
    found = {}
    for metric in METRICS:
        none, other = ({"part": "landscape", "norm": n, "kind": kind} for n in ("none", "batch"))
        found[metric] = paired(evidence, f"log10 {metric}", none, other).power()
    return found


def _smoother(kind: str, text: str, paper: str = "") -> Claim:
    return Claim(
        f"a smoother loss, {kind} steps",
        f"{text} the loss is smoother with batch norm. Found, without a norm: the loss varies {{range:.1f}} times as "
        "much, the gradient changes {change:.1f} times as much, and over the same distance in the weights "
        "{smoothness:.1f} times as much.",
        lambda e: _times(e, kind),
        lambda f: all_of([value.above(1) for value in f.values()]),
        "one of the three were no larger without a norm",
        paper,
    )


CLAIMS = (
    Claim(
        "inputs that move",
        "The quantiles of a unit's inputs move less with batch norm. Found: between two measurements by {batch:.2f} "
        "times their spread, without a norm by {none:.2f} times ({less:.2f} more; not divided by the spread: "
        "{batch_absolute:.2f} and {none_absolute:.2f}).",
        _drifts,
        lambda f: f["less"].above(0),
        "they moved no less with batch norm",
        "Ioffe and Szegedy show it for one unit of such a network (arXiv:1502.03167, figure 1).",
    ),
    Claim(
        "noise behind the norm",
        "A network with batch norm still learns faster where noise behind every norm makes the inputs move. Found: "
        f"{{batch_noisy:.0f}} steps to an accuracy of {ENOUGH:g} with the noise, {{batch:.0f}} without it, and "
        "{none:.0f} without a norm, {faster:.0f} more than with the noise.",
        _noise,
        lambda f: f["faster"].above(0),
        "it was as slow as without a norm, or slower",
        "Santurkar et al. find so for VGG on CIFAR-10 (arXiv:1805.11604, section 2).",
    ),
    Claim(
        "inputs that are made to move",
        "This noise makes the inputs move more than they do without a norm. Found: by {drift:.2f} times their spread "
        "with it, and by {drift_none:.2f} times without a norm (not divided by the spread: {absolute:.2f} and "
        "{absolute_none:.2f}).",
        _noise,
        lambda f: f["more"].above(0),
        "they moved no more than without a norm",
    ),
    _smoother(
        "absolute",
        f"Along the gradient, on steps with learning rates from {ABSOLUTE[0]:g} to {ABSOLUTE[-1]:g},",
        "Santurkar et al. find all three smaller with batch norm, for VGG on CIFAR-10 (arXiv:1805.11604, figure 4).",
    ),
    _smoother(
        "relative",
        f"On steps of {100 * RELATIVE[0]:g} % to {100 * RELATIVE[-1]:g} % of the length of all weights, with changes "
        "of the gradient relative to its length,",
    ),
)


# Pictures


def pictures(evidence: Evidence) -> list[Chart]:
    found = []
    if rows := _quantiles(evidence):
        text = (
            "What goes into one sigmoid of the last layer, by steps of training: 15 %, half and 85 % of the held-out "
            "digits give less than the lines. It is the first unit, of the first seed."
        )
        spec = charts.lines(rows, x="step", y="input", colour="quantile", order=_names(rows, "quantile"), facet="norm")
        found.append(Chart("The inputs of one unit", text, spec))
    if rows := _speeds(evidence):
        text = f"Accuracy on the held-out digits by steps, with rate {RATE:g}: mean over the seeds, 95 % interval."
        found.append(
            Chart(
                "Learning with and without noise",
                text,
                charts.lines(rows, x="step", y="accuracy", colour="norm", order=VERSIONS),
                charts.table(rows, x="step", y="accuracy", line="norm", title="Accuracy, mean and 95 % interval"),
            )
        )
    for kind, unit in KINDS.items():
        if rows := _looks(evidence, kind):
            text = (
                f"Where training stands, steps along the gradient are tried whose length is {unit}. The lines are the "
                "least and the largest loss that is met, the change of the gradient, and the change by length of the "
                "way, as powers of ten; of the first seed. Where the loss itself is smaller, its range is, too."
            )
            spec = charts.lines(rows, x="step", y="log10", colour="norm", order=NORMS, facet="figure")
            found.append(Chart(f"Along the gradient, {kind} steps", text, spec))
    return found


def _names(rows: Sequence[dict[str, Any]], name: str) -> list[str]:
    return list(dict.fromkeys(row[name] for row in rows))


def _quantiles(evidence: Evidence) -> list[dict[str, Any]]:
    return [
        {"norm": version, "quantile": f"{100 * q:g} %", "step": row.step, "input": round(row.value, 3)}
        for version in VERSIONS
        for q in QUANTILES
        for row in evidence.select({"part": "inputs", "norm": version, "rate": RATE}, f"quantile {q:g}")
    ]


def _speeds(evidence: Evidence) -> list[dict[str, Any]]:
    found = []
    for version in VERSIONS:
        settings = {"part": "inputs", "norm": version, "rate": RATE}
        for step in sorted({row.step for row in evidence.select(settings, "accuracy")}):
            value = interval(evidence.values("accuracy", settings, step))
            found.append({"norm": version, "step": step, **value.named("accuracy")})
    return found


def _looks(evidence: Evidence, kind: str) -> list[dict[str, Any]]:
    figures = {"low": "least loss", "high": "largest loss", **{m: METRICS[m] for m in ("change", "smoothness")}}
    return [
        {"norm": norm, "figure": figure, "step": row.step, "log10": round(float(np.log10(max(row.value, 1e-6))), 3)}
        for metric, figure in figures.items()
        for norm in NORMS
        for row in evidence.select({"part": "landscape", "norm": norm, "kind": kind}, metric)
    ]


STUDY = Study(
    name="covariate_shift",
    title="Moving inputs, or a smooth loss",
    question="Does batch norm help because it reduces internal covariate shift?",
    protocol=(
        f"The inputs: a network of {LAYERS} layers of {WIDTH} sigmoids on the 8 by 8 digits, as in figure 1 of "
        f"arXiv:1502.03167: {STEPS} steps of SGD with momentum {MOMENTUM}, {BATCH} examples a batch. Every {EVERY} "
        "steps the held-out digits go through the network, normalized by their own statistics, and the quantiles (15, "
        "50, 85 %) of what goes into each sigmoid of the last layer are measured. The drift is the mean distance "
        "between the quantiles of two looks, divided by the distance of the outer quantiles, at the rate "
        f"{RATE:g}. Speed is compared at the best of the rates {', '.join(f'{r:g}' for r in RATES)}; what does not "
        f"come to an accuracy of {ENOUGH:g} counts as {STEPS} steps.\n\n"
        "The noise: in `batch_noisy` every unit behind every norm gets a mean between "
        f"{MEANS[0]:g} and {MEANS[1]:g} and a deviation between {DEVIATIONS[0]:g} and {DEVIATIONS[1]:g}, drawn anew in "
        "each step, while it is trained.\n\n"
        f"The loss along the gradient: {DEPTH} layers of 64 relus (He's start), {WALK} steps of SGD at {RATE:g}. "
        f"Every {LOOK} steps, steps of four lengths along the gradient are tried on the same batch, with learning "
        f"rates of {', '.join(f'{r:g}' for r in ABSOLUTE)}; and relative ones. With batch norm the size of the weights "
        "has no meaning, which is why both are measured. Figures are geometric means over the looks."
    ),
    cells=cells,
    run=run,
    seeds=5,
    constants={
        "inputs": (LAYERS, WIDTH, BATCH, MOMENTUM, STEPS, EVERY),
        "rates": RATES,
        "noise": (MEANS, DEVIATIONS),
        "enough": ENOUGH,
        "landscape": (DEPTH, WALK, LOOK, RATE),
        "lengths": (ABSOLUTE, RELATIVE),
    },
    claims=CLAIMS,
    charts=pictures,
)
