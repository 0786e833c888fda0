"""What does dropout before batch norms do to their running statistics? Dropout of several rates at two places."""

from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from jax import Array

from bnjax import linen as bnn
from experiments.lab.fitting import Examples, Variables, accuracy, digits, fit
from experiments.lab.perceptron import Perceptron
from experiments.models.norms import NormChoice
from experiments.results import charts
from experiments.results.claims import Claim, Interval, Verdict, all_of, interval, paired
from experiments.results.evidence import Evidence, Measured, Row
from experiments.results.study import Chart, Settings, Study

PLACES = ("before", "last")  # before norms; or after the last one
RATES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5)
LOW, MIDDLE, HIGH = 0.2, 0.3, 0.5  # the rates that claims are about
DEPTH, STEPS, BATCH, RATE, MOMENTUM = 8, 400, 64, 0.05, 0.9
NEAR = 0.05  # as far from 1 a ratio may be that is called the same
STATISTICS = ("running", "recalibrated")


def cells(_: bool) -> list[Settings]:
    """A cell is a place of dropout and a running variance, with all rates. A quick study has fewer seeds."""
    return [*({"place": place, "variance": "biased"} for place in PLACES), {"place": "last", "variance": "unbiased"}]


def run(settings: Settings, seeds: Sequence[int]) -> Iterable[Measured]:
    """All seeds and all rates as one program; then recalibration, of one network after the other."""
    train, held_out = digits(flat=True)

    def of_seed_and_rate(seed: Array, rate: Array) -> tuple[Variables, Array, Array]:
        net = network(rate, **settings)
        variables, _ = fit(net, train, jax.random.key(seed), optax.sgd(RATE, MOMENTUM), steps=STEPS, batch=BATCH)
        return variables, variance_ratios(net, variables, jnp.asarray(train[0])), accuracy(net, variables, held_out)

    of_all = jax.jit(jax.vmap(jax.vmap(of_seed_and_rate, (None, 0)), (0, None)))
    trained, ratios, accuracies = jax.device_get(of_all(jnp.asarray(seeds), jnp.asarray(RATES)))
    for i, seed in enumerate(seeds):
        for j, rate in enumerate(RATES):
            for norm, ratio in enumerate(ratios[i, j], 1):
                yield Measured(seed, f"ratio, norm {norm}", STEPS, float(ratio), {"rate": rate})
            again = recalibrated(jax.tree.map(lambda leaf, i=i, j=j: leaf[i, j], trained), train, held_out)
            for statistics, found in zip(STATISTICS, (accuracies[i, j], again), strict=True):
                more = {"rate": rate, "statistics": statistics}
                yield Measured(seed, "error", STEPS, float(100 * (1 - found)), more)


def network(rate: Any = 0.0, place: str = "last", variance: str = "biased") -> Perceptron:
    norm = NormChoice("batch", batch={"unbiased": variance == "unbiased"})
    return Perceptron(norm, DEPTH, **{place: rate})


def variance_ratios(net: Perceptron, variables: Variables, x: Array) -> Array:
    """For each norm, the variance of its input at evaluation by its running variance: the mean over its features."""
    _, seen = net.apply(
        variables, x, False, capture_intermediates=lambda m, _: isinstance(m, nn.Dense), mutable=["intermediates"]
    )
    at_test = [seen["intermediates"][f"dense{i + 1}"]["__call__"][0].var(0) for i in range(net.depth)]
    running = [variables["batch_stats"][f"BatchNorm_{i}"]["var"] for i in range(net.depth)]
    return jnp.stack([(new / old).mean() for new, old in zip(at_test, running, strict=True)])


def recalibrated(variables: Variables, train: Examples, held_out: Examples) -> Array:
    """The accuracy with the statistics of all training examples, measured in one batch and without dropout."""
    net = network()  # at evaluation all are alike
    batch_stats, _ = bnn.recalibrate(net, variables, [jnp.asarray(train[0])], call=evaluated)
    return accuracy(net, {**variables, "batch_stats": batch_stats}, held_out)


def evaluated(net: Any, x: Array) -> Array:
    logits: Array = net(x, False)
    return logits


# Figures


def _of(place: str, rate: float, variance: str = "biased", **more: str) -> Settings:
    return {"place": place, "rate": rate, "variance": variance, **more}


def _behind_dropout(evidence: Evidence, settings: Settings) -> np.ndarray:
    """The ratios of the seeds: the mean over the norms that have dropout before them if the place is `before`."""
    return np.mean([evidence.values(f"ratio, norm {i}", settings) for i in range(2, DEPTH + 1)], axis=0)


def _ratios(evidence: Evidence) -> dict[str, Interval]:
    before, last = (_behind_dropout(evidence, _of(place, HIGH)) for place in ("before", "last"))
    without = _behind_dropout(evidence, _of("last", 0.0))
    return {
        "before": interval(before),
        "last": interval(last),
        "without": interval(without),
        "more": interval(last - without),
    }


def _unbiased(evidence: Evidence) -> dict[str, Interval]:
    return {**_ratios(evidence), "unbiased": interval(_behind_dropout(evidence, _of("last", 0.0, "unbiased")))}


def _depths(evidence: Evidence) -> dict[str, Interval]:
    second, eighth = (evidence.values(f"ratio, norm {i}", _of("before", HIGH)) for i in (2, DEPTH))
    return {"second": interval(second), "eighth": interval(eighth), "less": interval(second - eighth)}


def _gains(evidence: Evidence) -> dict[str, Interval]:
    """Errors with both statistics, and what recalibration gains."""
    found = {}
    for name, rate in (("middle", MIDDLE), ("high", HIGH)):
        running, again = (_of("before", rate, statistics=kind) for kind in STATISTICS)
        found[name] = interval(evidence.values("error", running))
        found[f"{name}_again"] = interval(evidence.values("error", again))
        found[f"{name}_gain"] = paired(evidence, "error", running, again)
    return found


def _harms(evidence: Evidence) -> dict[str, Interval]:
    """How much more the error is with dropout before the norms than without any."""
    at = {rate: _of("before", rate, statistics="running") for rate in (0.0, LOW, HIGH)}
    more = {f"{name}_more": paired(evidence, "error", at[r], at[0.0]) for name, r in (("low", LOW), ("high", HIGH))}
    errors = {name: interval(evidence.values("error", at[rate])) for name, rate in (("without", 0.0), ("low", LOW))}
    return {**errors, **more}


def _places(evidence: Evidence) -> dict[str, Interval]:
    """The errors at both places with a high rate, and how much more they are before the norms."""
    last = _of("last", HIGH, statistics="running")
    running, again = (_of("before", HIGH, statistics=kind) for kind in STATISTICS)
    return {
        "last": interval(evidence.values("error", last)),
        "before": interval(evidence.values("error", running)),
        "again": interval(evidence.values("error", again)),
        "more": paired(evidence, "error", running, last),
        "more_again": paired(evidence, "error", again, last),
    }


def _near_one(value: Interval) -> Verdict:
    return all_of([value.above(1 - NEAR), value.below(1 + NEAR)])


CLAIMS = (
    Claim(
        "a shift of the variance",
        f"With dropout of {HIGH} before batch norms, the variance at evaluation is {{before:.2f}} of the running one, "
        "in the mean over the norms behind it. Without dropout it is {without:.2f}.",
        _ratios,
        lambda f: f["before"].below(1 - NEAR),
        "the ratio were 0.95 or more with dropout",
        "Li et al. name this the variance shift: dropout is switched off at evaluation, and the running variance is "
        "that of training (arXiv:1801.05134).",
    ),
    Claim(
        "after the last norm",
        f"With dropout of {HIGH} after the last batch norm, and nowhere else, the ratio is 1. Found: {{last:.2f}}.",
        _ratios,
        lambda f: _near_one(f["last"]),
        "it were not within 0.95 and 1.05",
        "Li et al. advise to put dropout there (arXiv:1801.05134).",
    ),
    Claim(
        "a bias of the variance",
        "What is above 1 there is not dropout, which adds {more:.2f}. It is the biased variance that Flax keeps: of "
        f"{BATCH} examples it is {BATCH - 1}/{BATCH} of the right value, and each norm passes its part on to the next. "
        "With the unbiased variance (`unbiased=True`) and no dropout the ratio is {unbiased:.2f}.",
        _unbiased,
        lambda f: all_of([f["more"].below(NEAR), _near_one(f["unbiased"])]),
        "dropout added 0.05 or more, or the ratio with the unbiased variance were not within 0.95 and 1.05",
        about="variance",
    ),
    Claim(
        "depth",
        "The shift grows with depth: the ratio is {second:.2f} at the second norm, the first that has dropout before "
        "it, and {eighth:.2f} at the eighth one.",
        _depths,
        lambda f: f["less"].above(NEAR),
        "the ratio of the eighth norm were not 0.05 below that of the second one",
    ),
    Claim(
        "recalibration",
        f"With much dropout before the norms ({HIGH}), statistics that are measured anew without dropout "
        "(`recalibrate`) lower the error. Found: from {high:.1f} to {high_again:.1f} %, {high_gain:.1f} points.",
        _gains,
        lambda f: f["high_gain"].above(0),
        "recalibration gained nothing",
        about="statistics",
    ),
    Claim(
        "recalibration with less dropout",
        f"With dropout of {MIDDLE} before the norms `recalibrate` lowers the error, too. Found: from {{middle:.1f}} to "
        "{middle_again:.1f} %, {middle_gain:.1f} points.",
        _gains,
        lambda f: f["middle_gain"].above(0),
        "recalibration gained nothing",
    ),
    Claim(
        "little dropout",
        f"Dropout of {LOW} before seven of eight norms does no harm. Found: it changes the error by {{low_more:+.1f}} "
        f"points, from {{without:.1f}} to {{low:.1f}} %; dropout of {HIGH} changes it by {{high_more:+.1f}} points.",
        _harms,
        lambda f: all_of([f["low_more"].below(1), f["high_more"].above(1)]),
        f"dropout of {LOW} cost one point or more, or dropout of {HIGH} one point or less",
        about="rate",
    ),
    Claim(
        "the place",
        f"Recalibration does not replace the right place. With dropout of {HIGH} after the last of eight norms the "
        "error is {last:.1f} %; with dropout before the norms it is {more:.1f} points larger, and after recalibration "
        "{more_again:.1f} points.",
        _places,
        lambda f: all_of([f["more"].above(0), f["more_again"].above(0)]),
        "the error were no larger with dropout before the norms, with either statistics",
        "Li et al. find the same for networks on CIFAR and ImageNet (arXiv:1801.05134).",
    ),
)


# Pictures

WORDS = {"before": "dropout before norms", "last": "dropout after the last norm"}
LINES = {
    ("before", "running"): "before norms",
    ("before", "recalibrated"): "before norms, recalibrated",
    ("last", "running"): "after the last norm",
    ("last", "recalibrated"): "after the last norm, recalibrated",
}


def pictures(evidence: Evidence) -> list[Chart]:
    found = []
    if rows := _by_depth(evidence):
        found.append(
            Chart(
                "By how much is the running variance wrong?",
                "The variance of the input of each batch norm at evaluation, by its running variance; 1 is right. A "
                "line is the mean over the seeds, with its 95 % interval. Click a rate in the legend to fade the "
                "others.",
                charts.lines(
                    rows, x="norm", y="ratio", colour="rate", order=[f"{r:g}" for r in RATES], facet="place"
                ),
                charts.table(
                    [{**row, "line": f"{row['rate']}, {row['place']}"} for row in rows],
                    x="norm", y="ratio", line="line", title="Ratio of the variances, mean and 95 % interval",
                ),
            )
        )  # fmt: skip
    if rows := _by_rate(evidence):
        found.append(
            Chart(
                "What does it cost?",
                "Error on the held-out digits, in %.",
                charts.lines(rows, x="rate", y="error", colour="dropout", order=list(LINES.values())),
                charts.table(rows, x="rate", y="error", line="dropout", title="Error in %, mean and 95 % interval"),
            )
        )
    return found


def _by_depth(evidence: Evidence) -> list[dict[str, Any]]:
    return [
        {"norm": norm, "rate": f"{rate:g}", "place": WORDS[place], **_of_rows(values).named("ratio")}
        for place in PLACES
        for rate in RATES
        for norm in range(1, DEPTH + 1)
        if (values := evidence.select(_of(place, rate), f"ratio, norm {norm}"))
    ]


def _by_rate(evidence: Evidence) -> list[dict[str, Any]]:
    return [
        {"rate": rate, "dropout": words, **_of_rows(values).named("error")}
        for (place, statistics), words in LINES.items()
        for rate in RATES
        if (values := evidence.select(_of(place, rate, statistics=statistics), "error"))
    ]


def _of_rows(rows: Sequence[Row]) -> Interval:
    return interval([row.value for row in rows])


STUDY = Study(
    name="variance_shift",
    title="Dropout before batch norm",
    question="What does dropout do to the running statistics of the batch norms behind it, and what helps?",
    protocol=(
        f"Networks of {DEPTH} dense layers of width 64, each with a batch norm and relu, and a head, on the 8 by 8 "
        f"digits: {STEPS} steps of SGD with momentum {MOMENTUM} at the learning rate {RATE}, {BATCH} examples a batch, "
        "momentum 0.9 of the running statistics. Dropout is either on the input of every dense layer that has a norm, "
        "but the first; or on the input of the head alone, after the last norm.\n\n"
        "The ratio is the variance of a norm's input over the training digits at evaluation (no dropout, and the norms "
        "before it by their running statistics), divided by its running variance: the mean over its 64 features. "
        "Recalibrated statistics are those of all training digits, by `bnjax.linen.recalibrate`."
    ),
    cells=cells,
    run=run,
    seeds=10,
    constants={
        "rates": RATES, "depth": DEPTH, "width": 64, "steps": STEPS, "batch": BATCH, "rate": RATE,
        "momentum": MOMENTUM,
    },
    claims=CLAIMS,
    charts=pictures,
    label="place",
)  # fmt: skip
