"""Which learning rates are stable with norms, and how much sooner do networks learn? Rates over three decades."""

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from experiments.lab.fitting import Examples, accuracy, digits, fit
from experiments.lab.perceptron import Perceptron
from experiments.models.norms import NormChoice
from experiments.results import charts
from experiments.results.claims import Claim, Interval, all_of, interval, paired
from experiments.results.evidence import Evidence, Measured
from experiments.results.study import Chart, Settings, Study

NORMS = ("none", "batch", "layer", "group", "rms")
RATES = (
    0.0032, 0.0056, 0.01, 0.018, 0.032, 0.056, 0.1, 0.18, 0.32, 0.56, 1.0, 1.8, 3.2, 5.6, 10.0,
)  # four a decade  # fmt: skip
THIRTY = 6  # so many rates further is 30 times as large
DEPTH, STEPS, EVERY, BATCH, MOMENTUM = 6, 400, 10, 64, 0.9
REACHED = 0.9  # the accuracy that steps are counted to
STABLE = 0.9  # a rate is stable if it reaches this part of the best accuracy over all rates


def cells(_: bool) -> list[Settings]:
    """A cell is a norm with all rates. A quick study has fewer seeds."""
    return [{"norm": norm} for norm in NORMS]


def run(settings: Settings, seeds: Sequence[int]) -> Iterable[Measured]:
    """All seeds and all rates as one program."""
    of_one = partial(trained, settings["norm"], *digits(flat=True))
    of_all = jax.jit(jax.vmap(jax.vmap(of_one, (None, 0)), (0, None)))
    curves = jax.device_get(of_all(jnp.asarray(seeds), jnp.asarray(RATES)))
    for i, seed in enumerate(seeds):
        for rate, curve in zip(RATES, curves[i], strict=True):
            yield Measured(seed, "accuracy", STEPS, float(100 * curve[-1]), {"rate": rate})
            yield Measured(seed, "steps", STEPS, float(steps_to(REACHED, curve)), {"rate": rate})


def trained(norm: str, train: Examples, held_out: Examples, seed: Array, rate: Array) -> Array:
    """The accuracy on the held-out digits after 0, EVERY, ... STEPS steps."""
    net = Perceptron(NormChoice(norm, groups=8), DEPTH)
    variables, before = fit(
        net, train, jax.random.key(seed), optax.sgd(rate, MOMENTUM),
        steps=STEPS, batch=BATCH, every=EVERY, watch=lambda step: accuracy(net, step.variables, held_out),
    )  # fmt: skip
    return jnp.append(before, accuracy(net, variables, held_out))


def steps_to(accuracy: float, curve: np.ndarray) -> int:
    """After how many steps a curve first reaches an accuracy; all steps, if it never does."""
    reached = np.flatnonzero(curve >= accuracy)
    return EVERY * int(reached[0] if len(reached) else len(curve) - 1)


# Figures


def _over_rates(evidence: Evidence, metric: str, norm: str) -> np.ndarray:
    """(rates, seeds)."""
    return np.array([evidence.values(metric, {"norm": norm, "rate": rate}) for rate in RATES])


def largest_stable(accuracies: np.ndarray) -> np.ndarray:
    """For each seed the logarithm (to 10) of the largest rate that is stable, of accuracies (rates, seeds)."""
    stable = accuracies >= STABLE * accuracies.max(0)
    return np.log10([max(r for r, good in zip(RATES, column, strict=True) if good) for column in stable.T])


def fastest(evidence: Evidence, norm: str) -> float:
    """The rate with the fewest steps, in the mean over the seeds."""
    return RATES[int(_over_rates(evidence, "steps", norm).mean(1).argmin())]


def _stable(evidence: Evidence) -> dict[str, Interval]:
    """The largest stable rates, and by which factors they are larger than without a norm."""
    rates = {norm: largest_stable(_over_rates(evidence, "accuracy", norm)) for norm in NORMS}
    factors = {f"{norm}_factor": interval(rates[norm] - rates["none"]).power() for norm in NORMS[1:]}
    return {**{norm: interval(of_norm).power() for norm, of_norm in rates.items()}, **factors}


def _thirty(evidence: Evidence) -> dict[str, Any]:
    rate = fastest(evidence, "none")
    if rate not in RATES[:-THIRTY]:
        raise LookupError(f"30 times the rate {rate:g}")
    slow, large = {"norm": "none", "rate": rate}, {"norm": "batch", "rate": RATES[RATES.index(rate) + THIRTY]}
    smaller = RATES[RATES.index(rate) + THIRTY - 1]
    return {
        "smaller": f"{smaller:g}",
        "times": f"{smaller / rate:.0f}",
        "smaller_more": paired(evidence, "accuracy", {**large, "rate": smaller}, slow),
        "rate": f"{rate:g}",
        "large": f"{large['rate']:g}",
        "none": interval(evidence.values("accuracy", slow)),
        "batch": interval(evidence.values("accuracy", large)),
        "none_large": interval(evidence.values("accuracy", {**large, "norm": "none"})),
        "more": paired(evidence, "accuracy", large, slow),
    }


def _steps(evidence: Evidence) -> dict[str, Any]:
    of_norms = {n: evidence.values("steps", {"norm": n, "rate": fastest(evidence, n)}) for n in ("none", "batch")}
    return {
        **{norm: interval(steps) for norm, steps in of_norms.items()},
        **{f"{norm}_rate": f"{fastest(evidence, norm):g}" for norm in of_norms},
        "factor": interval(np.log10(of_norms["none"] / of_norms["batch"])).power(),
    }


CLAIMS = (
    Claim(
        "larger rates",
        "With batch norm larger learning rates are stable: the largest one is {batch:.2f} with batch norm and "
        "{none:.2f} without a norm, a factor of {batch_factor:.0f}.",
        _stable,
        lambda f: f["batch_factor"].above(5),
        "the factor were 5 or less",
        "Ioffe and Szegedy train Inception with batch norm at 5 and 30 times its learning rate; without batch norm 5 "
        "times were too much (arXiv:1502.03167, section 4.2.2).",
    ),
    Claim(
        "thirty times the rate",
        "At 30 times the rate that is fastest without a norm, batch norm is better than no norm at its own rate. "
        "Found: {batch:.1f} % at the rate {large} with batch norm, {none:.1f} % at {rate} without ({more:+.1f} "
        "points); at {large} a network without a norm ends at {none_large:.1f} %. At {smaller}, {times} times the "
        "rate, the difference is {smaller_more:+.1f} points.",
        _thirty,
        lambda f: f["more"].above(0),
        "batch norm at 30 times the rate were no better than the network without a norm at its own",
        "At 30 times the rate Inception with batch norm reaches 74.8 %, Inception alone 72.2 % (arXiv:1502.03167, "
        "figure 3).",
    ),
    Claim(
        "fewer steps",
        "Each at its fastest rate, batch norm ({batch_rate}) takes {batch:.0f} steps to 90 % and the network without a "
        "norm ({none_rate}) takes {none:.0f}: a factor of {factor:.1f}.",
        _steps,
        lambda f: f["factor"].above(1.5),
        "the factor were 1.5 or less",
        "Inception with batch norm takes 14 times fewer steps to its accuracy at 5 times the rate, and 2.3 times fewer "
        "at the same rate (arXiv:1502.03167, figure 3).",
    ),
    Claim(
        "norms of one example",
        "With norms that measure each example by itself more than twice the rate is stable, too. Found: {layer:.2f} "
        "with layer norm, {group:.2f} with group norm, {rms:.2f} with RMS norm; the factors are {layer_factor:.1f}, "
        "{group_factor:.1f} and {rms_factor:.1f}.",
        _stable,
        lambda f: all_of([f[f"{norm}_factor"].above(2) for norm in ("layer", "group", "rms")]),
        "one of the factors were 2 or less",
    ),
)


# Pictures


def pictures(evidence: Evidence) -> list[Chart]:
    accuracies, steps = (_by_rate(evidence, metric) for metric in ("accuracy", "steps"))
    return [
        Chart(
            "Which rates are stable?",
            f"Accuracy on the held-out digits after {STEPS} steps in %, by the learning rate. A line is the mean over "
            "the seeds, with its 95 % interval. Click a norm in the legend to fade the others.",
            charts.lines(accuracies, x="rate", y="accuracy", colour="norm", order=NORMS, log_x=True),
            charts.table(accuracies, x="rate", y="accuracy", line="norm", title="Accuracy in %, with 95 % intervals"),
        ),
        Chart(
            "Which rates are fast?",
            f"Steps to an accuracy of 90 % on the held-out digits, looked at every {EVERY} steps. What never reached "
            f"it counts as {STEPS}.",
            charts.lines(steps, x="rate", y="steps", colour="norm", order=NORMS, log_x=True),
            charts.table(steps, x="rate", y="steps", line="norm", title="Steps, mean and 95 % interval"),
        ),
    ]


def _by_rate(evidence: Evidence, metric: str) -> list[dict[str, Any]]:
    rows = []
    for norm in NORMS:
        for rate in RATES:
            if evidence.select({"norm": norm, "rate": rate}):
                value = interval(evidence.values(metric, {"norm": norm, "rate": rate}))
                rows.append({"norm": norm, "rate": rate, **value.named(metric, 2)})
    return rows


STUDY = Study(
    name="learning_rate",
    title="Learning rates",
    question="Do norms make larger learning rates possible, and learning faster?",
    protocol=(
        f"Networks of {DEPTH} dense layers of width 64, each with a norm and relu, and a head, on the 8 by 8 digits: "
        f"{STEPS} steps of SGD with momentum {MOMENTUM} at one learning rate, {BATCH} examples a batch. The weights "
        "start as He's, which fit relu without a norm. Group norm has 8 groups.\n\n"
        f"A rate is called stable if the accuracy on the held-out digits after {STEPS} steps is at least {STABLE} "
        "times the best one over all rates, of the same norm and seed. Factors are geometric means over the seeds."
    ),
    cells=cells,
    run=run,
    seeds=10,
    constants={
        "rates": RATES, "depth": DEPTH, "width": 64, "steps": STEPS, "every": EVERY, "batch": BATCH,
        "momentum": MOMENTUM, "reached": REACHED,
    },
    claims=CLAIMS,
    charts=pictures,
)  # fmt: skip
