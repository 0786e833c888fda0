"""Which norm for small and for large batches? Batches of 2 to 1024 examples, and ghost batches of 8 to 256."""

import itertools
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array

from experiments.lab.fitting import Examples, accuracy, digits, fit
from experiments.lab.patches import PatchCNN
from experiments.models.norms import NormChoice
from experiments.results import charts
from experiments.results.claims import Claim, Interval, all_of, interval, paired
from experiments.results.evidence import Evidence, Measured
from experiments.results.study import Chart, Settings, Study

NORMS = ("none", "batch", "ghost", "renorm", "group", "layer")
SIZES = (2, 8, 32, 1024)
SMALL, MIDDLE, LARGE = 2, 32, 1024
WARM = 0.25  # of all steps, for the learning rate to rise
WARMED = (1024,)  # the sizes that are tried with warm-up, too
GHOSTS = (8, 32, 128, 256)  # examples in a ghost batch, of batches of 256
WHOLE, FEW = 256, 500
SEEN, GHOST = 16_384, 16  # examples that are trained with in all; and in a ghost batch where sizes are compared
RATE, MOMENTUM = 0.05, 0.9  # of batches of 32 examples
WINDOW = 1280  # examples that the running statistics average over
SHORT = 0.9  # a momentum that averages over 10 batches, whatever their size


def cells(quick: bool) -> list[Settings]:
    """Norms by batch size; and sizes of ghost batches. Where a ghost batch would be the whole, it is batch norm."""
    sizes, norms = ((SMALL, MIDDLE), ("batch", "group")) if quick else (SIZES, NORMS)
    found = [{"part": "size", "norm": n, "size": s} for s in sizes for n in norms if n != "ghost" or s > GHOST]
    found += [] if quick else [{"part": "momentum", "norm": n, "size": SMALL} for n in ("batch", "renorm")]
    ghosts = GHOSTS[::3] if quick else GHOSTS
    return [*found, *({"part": "ghost", "norm": "ghost", "size": WHOLE, "ghost": g} for g in ghosts)]


def run(settings: Settings, seeds: Sequence[int]) -> Iterable[Measured]:
    """All seeds of a cell as one program, with and without warm-up."""
    size, steps = settings["size"], SEEN // settings["size"]
    momentum = SHORT if settings["part"] == "momentum" else max(0.2, 1 - size / WINDOW)
    norm = NormChoice(settings["norm"], momentum, groups=4, ghost_size=settings.get("ghost", GHOST))
    if settings["part"] == "ghost":
        gaps = jax.jit(jax.vmap(partial(gap, norm)))(jnp.asarray(seeds))
        for metric, values in zip(("train error", "error"), jax.device_get(gaps), strict=True):
            yield from (Measured(seed, metric, steps, float(v)) for seed, v in zip(seeds, values, strict=True))
        return
    warm_ups = (0.0, WARM) if size in WARMED else (0.0,)
    of_all = jax.jit(jax.vmap(jax.vmap(partial(held_out_error, norm, size), (None, 0)), (0, None)))
    errors = jax.device_get(of_all(jnp.asarray(seeds), jnp.asarray(warm_ups)))
    for seed, of_seed in zip(seeds, errors, strict=True):
        for warm, value in zip(warm_ups, of_seed, strict=True):
            yield Measured(seed, "error", steps, float(value), {"warm": warm})


def held_out_error(norm: NormChoice, size: int, seed: Array, warm: Array) -> Array:
    """The error on the held-out digits in %."""
    train, held_out = digits()
    net, variables = trained(norm, train, size, seed, warm)
    return 100 * (1 - accuracy(net, variables, held_out))


def gap(norm: NormChoice, seed: Array) -> tuple[Array, Array]:
    """The errors in % on the few digits that the seed draws to learn from, and on the held-out ones."""
    (x, y), held_out = digits()
    drawn = jax.random.permutation(jax.random.key(seed), len(x))[:FEW]
    few = jnp.asarray(x)[drawn], jnp.asarray(y)[drawn]
    net, variables = trained(norm, few, WHOLE, seed, jnp.asarray(0.0))
    on_few, on_others = (100 * (1 - accuracy(net, variables, part)) for part in (few, held_out))
    return on_few, on_others


def trained(norm: NormChoice, train: Examples, size: int, seed: Array, warm: Array) -> tuple[PatchCNN, Any]:
    net, steps = PatchCNN(norm), SEEN // size
    optimizer = optax.sgd(partial(rate_at, RATE * size / 32, steps, warm), MOMENTUM)
    variables, _ = fit(net, train, jax.random.key(seed), optimizer, steps=steps, batch=size)
    return net, variables


def rate_at(peak: float, steps: int, warm: Array, step: Array) -> Array:
    """The learning rate of a step: a cosine from `peak` to 0, times a line from 0 to 1 over a part of the steps."""
    risen = jnp.minimum(1, (step + 1) / jnp.maximum(warm * steps, 1))
    return peak * risen * 0.5 * (1 + jnp.cos(jnp.pi * step / steps))


# Figures


def _of(norm: str, size: int, warm: float = 0.0) -> Settings:
    """A cell of batch size. A ghost batch that would be larger than the batch is the batch."""
    return {"part": "size", "norm": "batch" if norm == "ghost" and size <= GHOST else norm, "size": size, "warm": warm}


def _small(evidence: Evidence) -> dict[str, Interval]:
    small = {norm: _of(norm, SMALL) for norm in ("batch", "renorm", "group")}
    worse = {f"{norm}_less": paired(evidence, "error", small["batch"], small[norm]) for norm in ("renorm", "group")}
    return {**{norm: interval(evidence.values("error", cell)) for norm, cell in small.items()}, **worse}


def _short(evidence: Evidence) -> dict[str, Interval]:
    """Errors with two examples and a short average, and by how much that is more for batch norm."""
    short = {norm: {**_of(norm, SMALL), "part": "momentum"} for norm in ("batch", "renorm")}
    found = {norm: interval(evidence.values("error", cell)) for norm, cell in short.items()}
    return {**found, "more": paired(evidence, "error", short["batch"], _of("batch", SMALL))}


def _grown(evidence: Evidence) -> dict[str, Interval]:
    """By how many points the error of two examples is above that of 32."""
    return {norm: paired(evidence, "error", _of(norm, SMALL), _of(norm, MIDDLE)) for norm in ("batch", "group")}


def _large(evidence: Evidence) -> dict[str, Interval]:
    """By how many points the error of large batches is above that of 32 examples, with warm-up and without."""
    found = {}
    for norm in NORMS:
        found[norm] = paired(evidence, "error", _of(norm, LARGE, WARM), _of(norm, MIDDLE))
        found[f"{norm}_cold"] = paired(evidence, "error", _of(norm, LARGE), _of(norm, MIDDLE))
    return found


def _gaps(evidence: Evidence) -> dict[str, Interval]:
    """The gap of each size of ghost batches, and by how much it is larger than that of the size before."""
    gaps = {}
    for size in GHOSTS:
        cell = {"part": "ghost", "norm": "ghost", "ghost": size}
        gaps[size] = evidence.values("error", cell) - evidence.values("train error", cell)
    more = {f"more{b}": interval(gaps[b] - gaps[a]) for a, b in itertools.pairwise(GHOSTS)}
    named = {f"gap{size}": interval(value) for size, value in gaps.items()}
    return {**named, **more, "more": interval(gaps[GHOSTS[-1]] - gaps[GHOSTS[0]])}


CLAIMS = (
    Claim(
        "two examples",
        "With two images a batch, batch norm of convolutions fails, and batch renormalization and group norm do not. "
        "Found: errors of {batch:.1f} % with batch norm, {renorm:.1f} % with renormalization and {group:.1f} % with "
        "group norm.",
        _small,
        lambda f: all_of([f["renorm_less"].above(5), f["group_less"].above(5)]),
        "one of the two were not 5 points better than batch norm",
        "With two examples a device, group norm has an error 10.6 points below that of batch norm on ImageNet "
        "(arXiv:1803.08494). Batch renormalization is made for small batches (arXiv:1702.03275).",
    ),
    Claim(
        "small and middle",
        "From 32 images a batch to two, the error of batch norm grows, and that of group norm does not. Found: it "
        "changes by {batch:+.1f} points with batch norm and {group:+.1f} points with group norm.",
        _grown,
        lambda f: all_of([f["batch"].above(5), f["group"].below(1)]),
        "that of batch norm grew by 5 points or less, or that of group norm by 1 or more",
        "On ImageNet the error of group norm hardly depends on the batch size, and that of batch norm grows as batches "
        "shrink (arXiv:1803.08494).",
    ),
    Claim(
        "a short average",
        f"A short average harms batch norm with two images: with momentum {SHORT} the running statistics are those of "
        "about 20 images. Found: an error of {batch:.1f} %, {more:+.1f} points beside an average over 1,280; "
        "{renorm:.1f} % with batch renormalization.",
        _short,
        lambda f: f["more"].above(5),
        "the error grew by 5 points or less",
    ),
    Claim(
        "large batches",
        f"With {LARGE} images a batch, a rate in proportion and warm-up, norms of the batch lose nothing, and a "
        "network without a norm does. Found: the error is {batch:.1f} points larger than with 32 images with batch "
        "norm, {ghost:.1f} with ghost batches, {renorm:.1f} with renormalization, {none:.1f} without a norm; without "
        "warm-up {batch_cold:.1f} with batch norm, {none_cold:.1f} without a norm. The batches are large, and so the "
        f"steps are few: {SEEN // LARGE} in the place of {SEEN // MIDDLE}.",
        _large,
        lambda f: all_of([*(f[norm].below(1) for norm in ("batch", "ghost", "renorm")), f["none"].above(1)]),
        "one of the three norms of the batch lost 1 point or more, or the network without a norm 1 or less",
        "Goyal et al. train ResNet-50 with 8192 examples a batch, a rate in proportion and warm-up, to 23.74 % instead "
        "of 23.60 % with 256 (arXiv:1706.02677).",
    ),
    Claim(
        "ghost batches",
        f"In batches of {WHOLE}, the gap between the errors on held-out digits and on those that were trained with "
        "grows with each size of the ghost batches. Found: {gap8:.2f}, {gap32:.2f}, {gap128:.2f}, {gap256:.2f} points "
        "for 8, 32, 128 and 256 images.",
        _gaps,
        lambda f: all_of([f[f"more{size}"].above(0) for size in GHOSTS[1:]]),
        "the gap did not grow with each size",
        "Hoffer et al. find that ghost batches narrow the gap of large batches (arXiv:1705.08741).",
    ),
    Claim(
        "the smallest and the largest ghosts",
        f"The gap of ghost batches of 8 is {{more:.2f}} points narrower than that of whole batches of {WHOLE}.",
        _gaps,
        lambda f: f["more"].above(0),
        "it were not narrower",
        about="ghost",
    ),
)


# Pictures


def pictures(evidence: Evidence) -> list[Chart]:
    found = []
    if sizes := _by_size(evidence):
        found.append(
            Chart(
                "Which norm at which batch size?",
                "Error on the held-out digits in %, by the examples in a batch; large batches without and with "
                "warm-up. A line is the mean over the seeds, with its 95 % interval. Click a norm in the legend to "
                "fade the others.",
                charts.lines(
                    sizes, x="examples", y="error", colour="norm", order=NORMS, log_x=True, log_y=True, facet="rate"
                ),
                charts.table(
                    [{**row, "line": f"{row['norm']}, {row['rate']}"} for row in sizes],
                    x="examples", y="error", line="line", title="Error in %, mean and 95 % interval",
                ),
            )
        )  # fmt: skip
    if ghosts := _by_ghost(evidence):
        found.append(
            Chart(
                "How large should a ghost batch be?",
                f"Errors in % of networks that learned from {FEW} digits in batches of {WHOLE}, by the examples in a "
                "ghost batch. The gap is what the error on held-out digits is above that on those digits.",
                charts.lines(ghosts, x="ghost", y="points", colour="digits", order=KINDS, log_x=True),
                charts.table(ghosts, x="ghost", y="points", line="digits", title="Points, mean and 95 % interval"),
            )
        )
    return found


KINDS = ("gap", "held out", "trained with")


def _by_size(evidence: Evidence) -> list[dict[str, Any]]:
    """A point for each norm and size, once with the rate as it is and once with warm-up where that was tried."""
    rows = []
    for words, warm in (("no warm-up", 0.0), ("warm-up of large batches", WARM)):
        for norm in NORMS:
            for size in SIZES:
                cell = _of(norm, size, warm if size in WARMED else 0.0)
                if evidence.select(cell, "error"):
                    own = {"norm": norm, "examples": size, "rate": words}
                    rows.append({**own, **interval(evidence.values("error", cell)).named("error", 3)})
    return rows


def _by_ghost(evidence: Evidence) -> list[dict[str, Any]]:
    rows = []
    for size in GHOSTS:
        cell = {"part": "ghost", "ghost": size}
        if evidence.select(cell):
            on_few, on_others = evidence.values("train error", cell), evidence.values("error", cell)
            for name, values in zip(KINDS, (on_others - on_few, on_others, on_few), strict=True):
                rows.append({"digits": name, "ghost": size, **interval(values).named("points", 3)})
    return rows


STUDY = Study(
    name="batch_size",
    title="Batch sizes",
    question="Which norms work with small batches, and which with large ones?",
    protocol=(
        "A network of three convolutions (8, 16 and 32 channels), each with a norm and relu, and a head, on the 8 by 8 "
        f"digits: SGD with momentum {MOMENTUM} on {SEEN:,} examples, whatever the batch size, so that large batches "
        f"make few steps. The learning rate is {RATE} for 32 examples and in proportion to the batch size; it falls to "
        f"0 along a cosine. With warm-up it rises over the first {WARM:.0%} of the steps (with {LARGE} examples "
        f"{WARM * SEEN // LARGE:.0f} of {SEEN // LARGE}). Running statistics average over about {WINDOW:,} examples, "
        f"if nothing else is said. Ghost batches have {GHOST} examples, group norm has 4 groups.\n\n"
        "The norms see 64, 16 and 4 places of each example, so that two examples are at least 8 numbers a channel. The "
        "network of `configs/digits_cnn.py` has a norm behind a dense layer, too, which sees only two numbers then: "
        "its errors are in `docs/results/batch_sizes.md`, with more norms.\n\n"
        f"For the sizes of ghost batches the networks learn from {FEW} digits, which each seed draws anew, in batches "
        f"of {WHOLE}; of ghost batches of {WHOLE} there is one, so that this is batch norm."
    ),
    cells=cells,
    run=run,
    seeds=5,
    constants={
        "seen": SEEN, "rate": RATE, "momentum": MOMENTUM, "warm": WARM, "window": WINDOW, "ghost": GHOST, "few": FEW,
        "widths": (8, 16, 32), "groups": 4,
    },
    claims=CLAIMS,
    charts=pictures,
)  # fmt: skip
