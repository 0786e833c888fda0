"""Do norms replace dropout, L1 and L2, or go together with them? A grid of all of them, on few digits."""

import itertools
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array

from experiments.lab.fitting import accuracy, digits, fit
from experiments.lab.perceptron import Perceptron
from experiments.models.norms import NormChoice
from experiments.results import charts
from experiments.results.claims import Claim, Interval, all_of, interval, paired
from experiments.results.evidence import Evidence, Measured
from experiments.results.study import Chart, Settings, Study
from experiments.results.tables import Table
from experiments.training.optimizer import decayed

NORMS = ("none", "batch", "layer")
DROPOUTS = {  # by name, the rates before norms and after the last one
    "none": (0.0, 0.0), "0.3-before": (0.3, 0.0), "0.5-before": (0.5, 0.0), "0.3-last": (0.0, 0.3),
    "0.5-last": (0.0, 0.5),
}  # fmt: skip
L1 = (0.0, 1e-4, 1e-3)
L2 = (0.0, 1e-3, 1e-2)
EXAMPLES, DEPTH, STEPS, BATCH, RATE, MOMENTUM = 200, 3, 400, 50, 0.05, 0.9


def cells(_: bool) -> list[Settings]:
    """A cell is a norm with all regularizers. A quick study has fewer seeds."""
    return [{"norm": norm} for norm in NORMS]


def grid() -> list[dict[str, Any]]:
    """All settings of the regularizers."""
    return [{"dropout": name, "l1": l1, "l2": l2} for name, l1, l2 in itertools.product(DROPOUTS, L1, L2)]


def run(settings: Settings, seeds: Sequence[int]) -> Iterable[Measured]:
    """One program: all regularizers side by side, and one seed after the other."""
    strengths = [(*DROPOUTS[one["dropout"]], one["l1"], one["l2"]) for one in grid()]
    before, last, l1, l2 = jnp.asarray(strengths).T

    @jax.jit
    def of_all(seeds: Array) -> tuple[Array, Array]:
        of_seed = jax.vmap(lambda seed, *given: trained(settings["norm"], seed, *given), (None, 0, 0, 0, 0))
        return jax.lax.map(lambda seed: of_seed(seed, before, last, l1, l2), seeds)

    accuracies, validations = jax.device_get(of_all(jnp.asarray(seeds)))
    for j, more in enumerate(grid()):
        for i, seed in enumerate(seeds):
            yield Measured(seed, "accuracy", STEPS, float(100 * accuracies[i, j]), more)
        yield Measured(seeds[0], "validation, all seeds", STEPS, float(100 * validations[:, j].mean()), more)


def trained(norm: str, seed: Array, before: Array, last: Array, l1: Array, l2: Array) -> tuple[Array, Array]:
    """The accuracy on the held-out digits, and on the training digits that the seed did not draw."""
    (x, y), held_out = digits(flat=True)
    drawn = jax.random.permutation(jax.random.key(seed), len(x))
    few, others = ((jnp.asarray(x)[part], jnp.asarray(y)[part]) for part in jnp.split(drawn, [EXAMPLES]))
    net = Perceptron(NormChoice(norm), DEPTH, before, last)
    optimizer = optax.chain(penalties(l1, l2), optax.sgd(optax.cosine_decay_schedule(RATE, STEPS), MOMENTUM))
    variables, _ = fit(net, few, jax.random.key(seed), optimizer, steps=STEPS, batch=BATCH)
    return accuracy(net, variables, held_out), accuracy(net, variables, others)


def penalties(l1: Array, l2: Array) -> optax.GradientTransformation:
    """Adds the gradient of l1 Σ|w| + l2 Σw²/2 over all parameters but those of norms; the strengths may be traced."""

    def added(gradients: Any, params: Any) -> Any:
        return jax.tree.map(
            lambda g, p, reached: g + l1 * jnp.sign(p) + l2 * p if reached else g, gradients, params, decayed(params)
        )

    return optax.stateless(added)


# Figures

DROPPED: list[dict[str, Any]] = [{"dropout": name, "l1": 0.0, "l2": 0.0} for name in DROPOUTS if name != "none"]
PENALIZED = [one for one in grid() if one["dropout"] == "none" and (one["l1"] or one["l2"])]
ALONE = {"dropout": "none", "l1": 0.0, "l2": 0.0}


def best(evidence: Evidence, norm: str, choices: Sequence[Settings]) -> Settings:
    """Of some settings, those with the best accuracy on digits that are neither trained on nor held out."""

    def validation(choice: Settings) -> float:
        return float(evidence.values("validation, all seeds", {"norm": norm, **choice})[0])

    chosen: Settings = max(choices, key=validation)
    return {"norm": norm, **chosen}


def _gain(evidence: Evidence, norm: str, choices: Sequence[Settings]) -> Interval:
    """What the best of some regularizers is worth, in points."""
    return paired(evidence, "accuracy", best(evidence, norm, choices), {"norm": norm, **ALONE})


def _gains(evidence: Evidence, choices: Sequence[Settings]) -> dict[str, Interval]:
    """What they are worth without a norm, with batch norm, and the difference."""
    gains = [
        evidence.values("accuracy", best(evidence, norm, choices))
        - evidence.values("accuracy", {"norm": norm, **ALONE})
        for norm in ("none", "batch")
    ]
    return {"none": interval(gains[0]), "batch": interval(gains[1]), "more": interval(gains[0] - gains[1])}


def _instead(evidence: Evidence) -> dict[str, Interval]:
    dropped = best(evidence, "none", DROPPED)
    alone = {"norm": "batch", **ALONE}
    return {
        "batch": interval(evidence.values("accuracy", alone)),
        "none": interval(evidence.values("accuracy", dropped)),
        "more": paired(evidence, "accuracy", alone, dropped),
    }


def _place(evidence: Evidence) -> dict[str, Interval]:
    """What dropout costs more before the norms than after the last one."""
    costs = {}
    for norm in ("batch", "layer"):
        last, before = ({"norm": norm, **ALONE, "dropout": f"0.5-{place}"} for place in ("last", "before"))
        costs[norm] = evidence.values("accuracy", last) - evidence.values("accuracy", before)
    return {**{norm: interval(cost) for norm, cost in costs.items()}, "more": interval(costs["batch"] - costs["layer"])}


def _together(evidence: Evidence) -> dict[str, Interval | str]:
    of_batch, of_none = (best(evidence, norm, grid()) for norm in ("batch", "none"))
    return {
        "dropout": of_batch["dropout"].replace("-", " "),
        "l1": f"{of_batch['l1']:g}",
        "l2": f"{of_batch['l2']:g}",
        "batch": interval(evidence.values("accuracy", of_batch)),
        "none": interval(evidence.values("accuracy", of_none)),
        "gain": _gain(evidence, "batch", grid()),
        "more": paired(evidence, "accuracy", of_batch, of_none),
    }


CLAIMS = (
    Claim(
        "dropout can go",
        "Dropout adds little with batch norm, and more without a norm. Found: the best dropout adds {batch:.1f} points "
        "of accuracy with batch norm, and {none:.1f} without; the difference is {more:.1f}.",
        lambda e: _gains(e, DROPPED),
        lambda f: all_of([f["batch"].below(1), f["more"].above(0)]),
        "dropout were worth a point or more with batch norm, or no more without a norm than with it",
        "Ioffe and Szegedy remove dropout from Inception with batch norm, and find a higher accuracy "
        "(arXiv:1502.03167, section 4.2.1).",
    ),
    Claim(
        "in the place of dropout",
        "Batch norm alone is better than the best dropout without a norm. Found: {batch:.1f} % and {none:.1f} %, "
        "{more:+.1f} points.",
        _instead,
        lambda f: f["more"].above(0),
        "batch norm alone were no better than dropout without a norm",
    ),
    Claim(
        "dropout before batch norm",
        "Dropout before the norms costs more with batch norm than with layer norm, which has no running statistics. "
        "Found, for 0.5 in two layers: {batch:.1f} points less than after the last norm with batch norm, {layer:.1f} "
        "points less with layer norm; the difference is {more:.1f}.",
        _place,
        lambda f: f["more"].above(0),
        "it cost no more with batch norm than with layer norm",
        "Li et al. explain it by the variance shift (arXiv:1801.05134).",
    ),
    Claim(
        "L1 and L2",
        "L1 and L2 add little with batch norm, and more without a norm. Found: the best of both adds {batch:.1f} "
        "points with batch norm, and {none:.1f} without; the difference is {more:.1f}.",
        lambda e: _gains(e, PENALIZED),
        lambda f: all_of([f["batch"].below(1), f["more"].above(0)]),
        "they were worth a point or more with batch norm, or no more without a norm than with it",
        "van Laarhoven argues that L2 in front of a norm regularizes nothing, and changes the learning rate alone "
        "(arXiv:1706.05350).",
    ),
    Claim(
        "all together",
        "The best of all regularizers together with batch norm (dropout {dropout}, L1 {l1}, L2 {l2}) reaches "
        "{batch:.1f} %, {gain:.1f} points more than batch norm alone. Without a norm the best of all reaches "
        "{none:.1f} %, {more:.1f} points less.",
        _together,
        lambda f: f["more"].above(0),
        "the best of all regularizers without a norm were as good as with batch norm",
    ),
)


# Pictures

KINDS = {
    "L1": [one for one in PENALIZED if not one["l2"]],
    "L2": [one for one in PENALIZED if not one["l1"]],
    "dropout before": [one for one in DROPPED if one["dropout"].endswith("before")],
    "dropout last": [one for one in DROPPED if one["dropout"].endswith("last")],
    "the best of all": grid(),
}


def pictures(evidence: Evidence) -> list[Chart]:
    norms = [norm for norm in NORMS if evidence.select({"norm": norm})]
    of_kinds = gains(evidence, norms)
    places = [_place_row(evidence, norm, one) for norm in norms for one in grid()]
    order = list(dict.fromkeys(row["norm, dropout"] for row in places))
    return [
        Chart(
            "What is a regularizer worth?",
            "Accuracy with a regularizer less that without any, in points: the mean over the seeds with its 95 % "
            "interval, of equal seeds. The strength is the one that is best on other digits.",
            charts.bars(of_kinds, x="regularizer", y="points", facet="norm", order=list(KINDS)),
            charts.table(of_kinds, x="regularizer", y="points", line="norm", title="Points, mean and 95 % interval"),
        ),
        Chart(
            "All of them",
            "Accuracy on the held-out digits in %, the mean over the seeds. In each square L2 grows to the right and "
            "L1 upwards. Above it stand the norm, and the rate and the place of dropout.",
            charts.heat(places, x="L2", y="L1", value="accuracy", facet="norm, dropout", order=order, height=110),
            _table(places),
        ),
    ]


def gains(evidence: Evidence, norms: Sequence[str]) -> list[dict[str, Any]]:
    """What each kind of regularizer is worth with each norm, in points."""
    rows = []
    for norm, (kind, choices) in itertools.product(norms, KINDS.items()):
        rows.append({"norm": norm, "regularizer": kind, **_gain(evidence, norm, choices).named("points", 2)})
    return rows


def _place_row(evidence: Evidence, norm: str, one: Settings) -> dict[str, Any]:
    found = evidence.values("accuracy", {"norm": norm, **one}).mean()
    name = f"{norm}, {one['dropout'].replace('-', ' ')}"
    return {"norm, dropout": name, "L1": one["l1"], "L2": one["l2"], "accuracy": round(float(found), 1)}


def _table(places: Sequence[dict[str, Any]]) -> Table:
    """A row for each norm and dropout, a column for each strength of L1 and L2."""
    columns = list(itertools.product(L1, L2))
    found = {(row["norm, dropout"], row["L1"], row["L2"]): f"{row['accuracy']:.1f}" for row in places}
    names = dict.fromkeys(row["norm, dropout"] for row in places)
    rows = [[name, *(found[name, l1, l2] for l1, l2 in columns)] for name in names]
    return Table("Accuracy in %", ["norm, dropout", *(f"L1 {l1:g}, L2 {l2:g}" for l1, l2 in columns)], rows)


STUDY = Study(
    name="regularizers",
    title="Norms and regularizers",
    question="Do norms replace regularizers such as dropout, L1 and L2, or do they go together?",
    protocol=(
        f"Networks of {DEPTH} dense layers of width 64, each with a norm and relu, and a head, on {EXAMPLES} of the "
        f"8 by 8 digits, which each seed draws anew: {STEPS} steps of SGD with momentum {MOMENTUM}, {BATCH} examples a "
        f"batch, a learning rate of {RATE} that falls to 0 along a cosine. Dropout is either on the input of every "
        "dense layer but the first, before norms; or on the input of the head alone, after the last norm. L1 and L2 "
        "are in the loss and reach all weights but those of norms: their strengths times the sum of absolute weights, "
        "and times half the sum of squares.\n\n"
        "Accuracy is that on the 360 held-out digits. Where the best of several settings is named, it was chosen by "
        "the mean accuracy on the training digits that a seed did not draw, and not by the held-out ones."
    ),
    cells=cells,
    run=run,
    seeds=10,
    constants={
        "dropouts": DROPOUTS, "l1": L1, "l2": L2, "examples": EXAMPLES, "depth": DEPTH, "width": 64, "steps": STEPS,
        "batch": BATCH, "rate": RATE, "momentum": MOMENTUM,
    },
    claims=CLAIMS,
    charts=pictures,
)  # fmt: skip
