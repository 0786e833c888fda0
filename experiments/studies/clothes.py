"""Damaged images once more, on other data: does what the digits say hold for pictures of clothes?"""

import functools
from collections.abc import Iterable, Sequence

import optax

from experiments.data.corruptions import KINDS
from experiments.lab import adapting, damaged
from experiments.lab.adapting import Lesson
from experiments.lab.fitting import Examples, clothes
from experiments.results.evidence import Evidence, Measured
from experiments.results.study import Chart, Settings, Study

TRAINING, HELD_OUT, STEPS = 6000, 1000, 1200


def cells(quick: bool) -> list[Settings]:
    """For each norm undamaged images and each kind of damage."""
    return damaged.cells(("batch", "group"), ("contrast",)) if quick else damaged.cells(damaged.NORMS, tuple(KINDS))


def run(settings: Settings, seeds: Sequence[int]) -> Iterable[Measured]:
    return damaged.measured(settings, seeds, LESSON)


@functools.cache
def data() -> tuple[Examples, Examples]:
    return clothes(TRAINING, HELD_OUT)


LESSON = Lesson(data, STEPS, optax.cosine_decay_schedule(adapting.RATE, STEPS))


def pictures(evidence: Evidence) -> list[Chart]:
    return damaged.by_severity(evidence, "pictures")


STUDY = Study(
    name="clothes",
    title="Damaged pictures of clothes",
    question="Adapted statistics, or group norm: is the answer the same on other data?",
    protocol=(
        f"As the study of damaged images, on Fashion-MNIST (arXiv:1708.07747) in half its size, 14 by 14: {TRAINING} "
        f"images to learn from and {HELD_OUT} held out. It is not downloaded: Debian has it as a package, "
        "`dataset-fashion-mnist`.\n\n"
        f"A network of two convolutions (16 and 32 channels, each with a norm and relu), their mean over the image, "
        f"and a head: {STEPS} steps of Adam, at a rate from {adapting.RATE:g} to zero by a cosine, {adapting.BATCH} "
        f"examples a batch. Group norm has {adapting.GROUPS} groups. Adapted: by `bnjax.linen.adapt` on all damaged "
        f"images, without labels; the old statistics count as {adapting.PRIOR} images. TENT: by `bnjax.linen.tent`, "
        f"{adapting.TENT_STEPS} steps of Adam at {adapting.TENT_RATE:g} on batches of {adapting.TENT_BATCH}; then the "
        "statistics are adapted in the same way. The error is that on the same images."
    ),
    cells=cells,
    run=run,
    seeds=5,
    constants={
        "data": (TRAINING, HELD_OUT), "training": (STEPS, adapting.BATCH, adapting.RATE, "cosine"),
        "widths": adapting.WIDTHS, "groups": adapting.GROUPS, "prior": adapting.PRIOR,
        "tent": (adapting.TENT_STEPS, adapting.TENT_BATCH, adapting.TENT_RATE),
    },
    claims=damaged.claims("pictures of clothes"),
    charts=pictures,
    label="method",
)  # fmt: skip
