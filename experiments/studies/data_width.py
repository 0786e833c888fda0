"""What is worth more for data that was not seen: a norm, more examples, or a wider network?"""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from experiments.lab.fitting import Examples, accuracy, digits, fit
from experiments.lab.perceptron import Perceptron
from experiments.lab.rates import best, metric, of_all
from experiments.models.norms import NormChoice
from experiments.results import charts
from experiments.results.claims import Claim, Interval, all_of, interval
from experiments.results.evidence import Evidence, Measured
from experiments.results.study import Chart, Settings, Study

NORMS = ("none", "batch", "layer")
EXAMPLES = (90, 360, 1437)  # each four times as many; the last are all there are
WIDTHS = (16, 64, 256)
RATES = (0.01, 0.03, 0.1)
DEPTH, STEPS, BATCH, MOMENTUM = 3, 300, 64, 0.9


def cells(quick: bool) -> list[Settings]:
    """Every norm with every width; a cell has all numbers of examples."""
    return [{"norm": norm, "width": width} for width in (WIDTHS[:1] if quick else WIDTHS) for norm in NORMS]


def run(settings: Settings, seeds: Sequence[int]) -> Iterable[Measured]:
    """All seeds and rates of a number of examples as one program."""
    net = Perceptron(NormChoice(settings["norm"]), DEPTH, width=settings["width"])
    train, held_out = digits(flat=True)
    for n in EXAMPLES:
        found = of_all(partial(trained, net, train, held_out, n), seeds, RATES)
        for i, seed in enumerate(seeds):
            for rate, accuracies in zip(RATES, found, strict=True):
                yield Measured(seed, metric(rate), STEPS, float(100 * accuracies[i]), {"examples": n})


def trained(net: Perceptron, train: Examples, held_out: Examples, n: int, seed: Array, rate: Array) -> Array:
    """The accuracy on the held-out digits after training with `n` examples, which each seed draws for itself."""
    key = jax.random.key(seed)
    rows = jax.random.permutation(jax.random.fold_in(key, STEPS), len(train[0]))[:n]  # no step has this number
    x, y = (jnp.asarray(part)[rows] for part in train)
    variables, _ = fit(net, (x, y), key, optax.sgd(rate, MOMENTUM), steps=STEPS, batch=BATCH)
    return accuracy(net, variables, held_out)


# Figures


def _best(evidence: Evidence, norm: str, width: int, examples: int) -> np.ndarray:
    settings = {"norm": norm, "width": width, "examples": examples}
    return best(evidence, RATES, settings)


def _data(evidence: Evidence) -> Mapping[str, Interval]:
    few, many = (_best(evidence, "none", WIDTHS[1], n) for n in EXAMPLES[:2])
    norm = _best(evidence, "batch", WIDTHS[1], EXAMPLES[0])
    return {"data": interval(many - few), "norm": interval(norm - few), "more": interval(many - norm)}


def _width(evidence: Evidence) -> Mapping[str, Interval]:
    few = EXAMPLES[0]
    wider = {norm: _best(evidence, norm, WIDTHS[-1], few) - _best(evidence, norm, WIDTHS[0], few) for norm in NORMS}
    return {**{norm: interval(gain) for norm, gain in wider.items()}, "less": interval(wider["none"] - wider["batch"])}


def _gains(evidence: Evidence) -> Mapping[str, Interval]:
    few, many = (
        _best(evidence, "batch", WIDTHS[0], n) - _best(evidence, "none", WIDTHS[0], n)
        for n in (EXAMPLES[0], EXAMPLES[-1])
    )
    return {"few": interval(few), "many": interval(many), "less": interval(few - many)}


CLAIMS = (
    Claim(
        "more examples",
        f"More examples are worth more than a norm, and batch norm is worth something. Found, at width {WIDTHS[1]}: "
        f"from {EXAMPLES[0]} to {EXAMPLES[1]} examples {{data:.1f}} points without a norm; batch norm with "
        f"{EXAMPLES[0]} examples {{norm:.1f}} points, {{more:.1f}} less.",
        _data,
        lambda f: all_of([f["more"].above(0), f["norm"].above(0)]),
        "batch norm was worth as much as four times the examples, or nothing",
    ),
    Claim(
        "a wider network",
        f"A wider network gains more without a norm than with batch norm. Found, with {EXAMPLES[0]} examples, from "
        f"width {WIDTHS[0]} to {WIDTHS[-1]}: {{none:.1f}} points without a norm, {{batch:.1f}} with batch norm, "
        "{layer:.1f} with layer norm; {less:.1f} points less with batch norm.",
        _width,
        lambda f: f["less"].above(0),
        "with batch norm it gained as much",
    ),
    Claim(
        "few examples",
        f"Batch norm is worth more where there are few examples. Found, at width {WIDTHS[0]}: {{few:.1f}} points with "
        f"{EXAMPLES[0]} examples, {{many:.1f}} with {EXAMPLES[-1]}.",
        _gains,
        lambda f: all_of([f["less"].above(0), f["few"].above(0)]),
        "it was worth as much with all examples, or nothing with few",
    ),
)


# Pictures


def pictures(evidence: Evidence) -> list[Chart]:
    rows = _rows(evidence)
    if not rows:
        return []
    shown = charts.lines(rows, x="examples", y="accuracy", colour="norm", order=NORMS, log_x=True, facet="layers")
    text = (
        "Accuracy on the held-out digits by the number of training examples, for layers of three widths. A line is the "
        "mean over the seeds, with its 95 % interval. Click a norm in the legend to fade the others."
    )
    at_one = [{**row, "network": f"{row['norm']}, {row['layers']}"} for row in rows]
    table = charts.table(at_one, x="examples", y="accuracy", line="network", title="Accuracy, mean and 95 % interval")
    return [Chart("Examples, width and norm", text, shown, table)]


def _rows(evidence: Evidence) -> list[dict[str, Any]]:
    found = []
    for width in WIDTHS:
        for norm in NORMS:
            for n in EXAMPLES:
                if evidence.select({"norm": norm, "width": width, "examples": n}):
                    value = interval(_best(evidence, norm, width, n)).named("accuracy", 2)
                    found.append({"norm": norm, "layers": f"width {width}", "examples": n, **value})
    return found


STUDY = Study(
    name="data_width",
    title="More data, wider networks",
    question="Is a norm worth as much as more examples, or as a wider network?",
    protocol=(
        f"Networks of {DEPTH} dense layers, each with a norm and relu, and a head, on the 8 by 8 digits: {STEPS} steps "
        f"of SGD with momentum {MOMENTUM}, {BATCH} examples a batch, drawn from {', '.join(map(str, EXAMPLES))} "
        "training examples, which each seed chooses for itself. Each setting has, of the learning rates "
        f"{', '.join(f'{r:g}' for r in RATES)}, the one with the best mean accuracy on the held-out digits."
    ),
    cells=cells,
    run=run,
    seeds=10,
    constants={
        "examples": EXAMPLES,
        "rates": RATES,
        "depth": DEPTH,
        "steps": STEPS,
        "batch": BATCH,
        "momentum": MOMENTUM,
    },
    claims=CLAIMS,
    charts=pictures,
)
