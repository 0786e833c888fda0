"""What do norms do to images that are damaged as no image of the training was, and what does adaptation gain?"""

import itertools
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from experiments.data.corruptions import KINDS, corrupted
from experiments.lab import adapting, damaged
from experiments.lab.adapting import CLASSES, FEW, PRIOR, SIZES, STEPS, trained
from experiments.lab.damaged import METRIC, MOST, NORMS, OWN, errors, intervals
from experiments.lab.fitting import digits
from experiments.results import charts
from experiments.results.claims import Claim, Interval, all_of, interval
from experiments.results.evidence import Evidence, Measured
from experiments.results.study import Chart, Settings, Study


def cells(quick: bool) -> list[Settings]:
    """For each norm undamaged digits and each kind of damage; for batch norm also few images, and few classes."""
    norms, kinds = (("batch", "group"), ("gaussian", "contrast")) if quick else (NORMS, tuple(KINDS))
    few: list[Settings] = [{"part": part, "corruption": kinds[0] if quick else "all"} for part in FEW]
    return damaged.cells(norms, kinds) + few


def run(settings: Settings, seeds: Sequence[int]) -> Iterable[Measured]:
    if settings["part"] not in FEW:
        yield from damaged.measured(settings, seeds)
        return
    _, (images, labels) = digits()
    kinds = tuple(KINDS) if settings["corruption"] == "all" else (settings["corruption"],)
    of_kinds = [corrupted(images, kind, MOST) for kind in kinds]
    for seed, variables in zip(seeds, trained("batch", seeds), strict=True):
        found = [FEW[settings["part"]](variables, own, labels, seed) for own in of_kinds]
        for same in zip(*found, strict=True):
            yield Measured(seed, METRIC, STEPS, float(np.mean([error for _, error in same])), same[0][0])


# Figures


def _most(evidence: Evidence) -> dict[str, Interval]:
    before, after = (errors(evidence, **OWN[name], severity=MOST) for name in ("as_is", "adapted"))
    return intervals(source=before, adapted=after, left=100 * after / before)


def _images(evidence: Evidence) -> dict[str, Interval]:
    source = errors(evidence, "images", method="as_is")
    alone, few, many = (errors(evidence, "images", method="adapted", images=n, prior=0) for n in (1, 20, 200))
    one, twenty, all_of_them = (
        errors(evidence, "images", method="adapted", images=n, prior=PRIOR) for n in (1, 20, 200)
    )
    found = intervals(source=source, alone=alone, prior=one, twenty=few, many=many, many_prior=all_of_them)
    part = 100 * (source - twenty) / (source - all_of_them)
    found |= intervals(part_alone=100 * (source - few) / (source - many))
    return found | intervals(alone_loses=alone - source, prior_loses=one - source, part=part, cost=all_of_them - many)


def _classes(evidence: Evidence) -> dict[str, Interval]:
    source = errors(evidence, "classes", method="as_is")
    found = {"source": source}
    for name, prior in (("", 0), ("_prior", PRIOR)):
        one, ten = (errors(evidence, "classes", method="adapted", classes=n, prior=prior) for n in (1, 10))
        found |= {f"one{name}": one, f"ten{name}": ten, f"loses{name}": one - source, f"gains{name}": source - ten}
    return intervals(**found)


def _contrast(evidence: Evidence) -> dict[str, Interval]:
    at = {name: errors(evidence, **own, corruption="contrast", severity=MOST) for name, own in OWN.items()}
    return intervals(**at, loses=at["tent"] - at["adapted"], gains=at["as_is"] - at["tent"])


def _tent_elsewhere(evidence: Evidence) -> dict[str, Interval]:
    found: dict[str, Interval] = {}
    for norm in ("group", "layer"):
        before, after = (errors(evidence, norm=norm, method=m, severity=MOST) for m in ("as_is", "tent"))
        found |= intervals(**{norm: before, f"{norm}_tent": after, f"{norm}_gain": before - after})
    return found


CLAIMS = (
    *damaged.claims("digits"),
    Claim(
        "how much",
        "At the highest severity adaptation takes away half of the error or more. Found: {left:.0f} % of it is left, "
        "{adapted:.1f} % in the place of {source:.1f} %.",
        _most,
        lambda f: f["left"].below(50),
        "more than half of the error were left",
        "on CIFAR-10-C at severity 5 adapted statistics take the error from 43.5 % to 20.4 % (Wang et al., "
        "arXiv:2006.10726); on ImageNet-C the mean corruption error from 76.7 to 62.2 (Schneider et al., "
        "arXiv:2006.16971).",
    ),
    Claim(
        "a single image",
        "The statistics of one image alone do harm; beside old statistics that count as "
        f"{PRIOR} images they help. Found, at the highest severity: {{source:.1f}} % without adaptation, "
        "{alone:.1f} % with one image alone, {prior:.1f} % beside the old statistics.",
        _images,
        lambda f: all_of([f["alone_loses"].above(0), f["prior_loses"].below(0)]),
        "one image alone did no harm, or the old statistics beside it gave no gain",
        "Schneider et al. mix old and new statistics, as if the old ones were of some images (arXiv:2006.16971).",
    ),
    Claim(
        "twenty images",
        f"Beside old statistics that count as {PRIOR} images, twenty images without labels are enough for half of what "
        "200 gain. Found: {part:.0f} % of it.",
        _images,
        lambda f: f["part"].above(50),
        "they gave less than half of it",
    ),
    Claim(
        "twenty images, and nothing old",
        "Without the old statistics twenty images are enough for 90 % of what 200 gain. Found, at the highest "
        "severity: {part_alone:.0f} % of it; an error of {alone:.1f} % with one image, {twenty:.1f} % with twenty, "
        "{many:.1f} % with 200, {source:.1f} % without adaptation.",
        _images,
        lambda f: f["part_alone"].above(90),
        "they gave less than that",
        about="images",
    ),
    Claim(
        "a prior can be too strong",
        f"Even beside 200 images, old statistics that count as {PRIOR} do harm. Found, at the highest severity: "
        "{many_prior:.1f} % with them and {many:.1f} % without, {cost:.1f} points less.",
        _images,
        lambda f: f["cost"].above(0),
        "they cost nothing",
        about="prior",
    ),
    Claim(
        "batches of one class",
        "Where all images of a batch are of one class, its statistics do harm; where all classes are in it, they help. "
        "Found, with about 36 images a batch: an error of {source:.1f} % without adaptation, {one:.1f} % with one "
        f"class, {{ten:.1f}} % with all ten. With old statistics that count as {PRIOR} images it is {{one_prior:.1f}} "
        "% and {ten_prior:.1f} %.",
        _classes,
        lambda f: all_of([f[name].above(0) for name in ("loses", "loses_prior", "gains", "gains_prior")]),
        "batches of one class did no harm, or batches of ten classes gave no gain",
        about="classes",
    ),
    Claim(
        "where TENT does harm",
        "With the least contrast TENT loses a part of what adaptation gains. Found: {as_is:.1f} % as it is, "
        "{adapted:.1f} % adapted, {tent:.1f} % after TENT.",
        _contrast,
        lambda f: all_of([f["loses"].above(0), f["gains"].above(0)]),
        "TENT lost nothing there, or more than all",
    ),
    Claim(
        "TENT without running statistics",
        "At the highest severity TENT helps networks with group norm and layer norm, too. Found: from {group:.1f} to "
        "{group_tent:.1f} % with group norm, from {layer:.1f} to {layer_tent:.1f} % with layer norm.",
        _tent_elsewhere,
        lambda f: all_of([f["group_gain"].above(0), f["layer_gain"].above(0)]),
        "one of them had no smaller error",
    ),
)


# Pictures


TITLES = {"images": "How many images are enough?", "classes": "Batches with few classes"}
STATISTICS: dict[str, Settings] = {
    "not adapted": {"method": "as_is"},
    "no prior": {"method": "adapted", "prior": 0},
    f"prior of {PRIOR}": {"method": "adapted", "prior": PRIOR},
}


def pictures(evidence: Evidence) -> list[Chart]:
    found = damaged.by_severity(evidence, "digits")
    texts = {
        "images": "The error on all held-out digits with nine kinds of damage at the highest severity, in %. The "
        "statistics are those of a few of them; a prior is how many images the old statistics count as. The mean over "
        "the seeds with its 95 % interval.",
        "classes": "The same error, if every batch of about 36 digits has its own statistics, and has digits of so "
        "many classes. With all ten it is like a random batch.",
    }
    for part, text in texts.items():
        if rows := _by_statistics(evidence, part):
            spec = charts.lines(rows, x=part, y="error", colour="statistics", order=list(STATISTICS), log_x=True)
            table = charts.table(rows, x=part, y="error", line="statistics", title="Error in %, and 95 % interval")
            found.append(Chart(TITLES[part], text, spec, table))
    return found


def _by_statistics(evidence: Evidence, part: str) -> list[dict[str, Any]]:
    found = []
    for (line, settings), n in itertools.product(STATISTICS.items(), SIZES if part == "images" else CLASSES):
        own = {**settings, part: n} if "prior" in settings else settings
        if evidence.select({"part": part, **own}):
            value = interval(errors(evidence, part, **own))
            found.append({"statistics": line, part: n, **value.named("error", 2)})
    return found


CONSTANTS = {
    "training": (STEPS, adapting.BATCH, adapting.RATE), "widths": adapting.WIDTHS, "groups": adapting.GROUPS,
    "tent": (adapting.TENT_STEPS, adapting.TENT_BATCH, adapting.TENT_RATE), "prior": PRIOR, "sizes": SIZES,
    "classes": CLASSES,
}  # fmt: skip

STUDY = Study(
    name="shift",
    title="Damaged images",
    question="Does a network generalize to images that are damaged as none of the training, and which norm helps?",
    protocol=(
        f"A network of two convolutions (16 and 32 channels, each with a norm and relu), their mean over the image, "
        f"and a head, on the 8 by 8 digits: {STEPS} steps of Adam at {adapting.RATE:g}, {adapting.BATCH} "
        f"examples a batch. Group norm has {adapting.GROUPS} groups. It learns undamaged digits only. The 360 held-out "
        "digits are damaged in nine ways at five severities, as in ImageNet-C (arXiv:1903.12261).\n\n"
        f"Adapted: by `bnjax.linen.adapt` (AdaBN, arXiv:1603.04779) on all damaged digits, without labels; the old "
        f"statistics count as {PRIOR} images. TENT: by `bnjax.linen.tent` (arXiv:2006.10726): {adapting.TENT_STEPS} "
        f"steps of Adam at {adapting.TENT_RATE:g} on batches of {adapting.TENT_BATCH} of them; then the statistics are "
        "adapted in the same way. Norms without running statistics have TENT at the highest severity alone. The error "
        "is that on the same images, as in these papers.\n\n"
        "For few images the statistics are those of some damaged digits, and the error that on all. For few classes "
        "the held-out digits are put in ten batches: each has digits of a part of the classes, and is classified with "
        "its own statistics. Both are measured at the highest severity."
    ),
    cells=cells,
    run=run,
    seeds=5,
    constants=CONSTANTS,
    claims=CLAIMS,
    charts=pictures,
    label="method",
)
