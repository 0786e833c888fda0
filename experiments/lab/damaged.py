"""Networks on damaged images: cells, their errors by method, and the claims and the picture of all such studies."""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from experiments.data.corruptions import KINDS, corrupted
from experiments.lab.adapting import DIGITS, Lesson, errors_by_method, trained
from experiments.results import charts
from experiments.results.claims import Claim, Interval, all_of, interval
from experiments.results.evidence import Evidence, Measured
from experiments.results.study import Chart, Settings
from experiments.results.tables import Table

NORMS = ("batch", "group", "layer", "none")
SEVERITIES = (1, 2, 3, 4, 5)
MOST = SEVERITIES[-1]
METRIC = "error"
OWN = {name: {"norm": "batch", "method": name} for name in ("as_is", "adapted", "tent")}
LINES: dict[str, Settings] = {  # the norm, and what is done
    "batch": OWN["as_is"],
    "group": {"norm": "group", "method": "as_is"},
    "layer": {"norm": "layer", "method": "as_is"},
    "batch, adapted": OWN["adapted"],
    "none": {"norm": "none", "method": "as_is"},
    "batch, TENT": OWN["tent"],
}


def cells(norms: Sequence[str], kinds: Sequence[str]) -> list[Settings]:
    """For each norm undamaged images and each kind of damage."""
    found: list[Settings] = []
    for norm in norms:
        found.append({"part": "clean", "norm": norm})
        found += [{"part": "damage", "norm": norm, "corruption": kind} for kind in kinds]
    return found


def measured(settings: Settings, seeds: Sequence[int], lesson: Lesson = DIGITS) -> Iterator[Measured]:
    """The errors of one of these cells by every method; the networks of a norm are trained once for all of them."""
    norm, (_, (images, labels)) = settings["norm"], lesson.data()
    of_seeds = trained(norm, seeds, lesson)
    for severity in SEVERITIES if settings["part"] == "damage" else [0]:
        shown = corrupted(images, settings["corruption"], severity) if severity else images
        with_tent = norm == "batch" or (norm != "none" and severity == MOST)
        for seed, method, error in errors_by_method(norm, of_seeds, shown, labels, seeds, with_tent):
            yield Measured(seed, METRIC, lesson.steps, error, {"method": method, "severity": severity})


# Figures


def errors(evidence: Evidence, part: str = "damage", **settings: object) -> np.ndarray:
    """The error in %, of each seed: the mean over all that was measured with these settings."""
    rows = evidence.select({"part": part, **settings}, METRIC)
    if not rows:
        raise LookupError(f"the error with {', '.join(f'{k} {v}' for k, v in settings.items())}")
    of_seeds: dict[int, list[float]] = {}
    for row in rows:
        of_seeds.setdefault(row.seed, []).append(100 * row.value)
    return np.array([np.mean(of_seeds[seed]) for seed in sorted(of_seeds)])


def kinds(evidence: Evidence) -> dict[str, Any]:
    """For how many kinds of damage adaptation lowers the error, and the mean of it."""
    gains = {k: interval(gain(evidence, corruption=k)) for k in KINDS}
    return {
        "better": sum(gain.low > 0 for gain in gains.values()),
        "above": sum(gain.mean > 0 for gain in gains.values()),
        "source": interval(errors(evidence, **OWN["as_is"])),
        "adapted": interval(errors(evidence, **OWN["adapted"])),
    }


def gain(evidence: Evidence, part: str = "damage", **more: object) -> np.ndarray:
    """How much less the error is with adapted statistics."""
    return errors(evidence, part, **OWN["as_is"], **more) - errors(evidence, part, **OWN["adapted"], **more)


def norms(evidence: Evidence) -> dict[str, Interval]:
    """The errors of norms that are not adapted, beside that of adapted batch norm."""
    found = {norm: errors(evidence, norm=norm, method="as_is") for norm in NORMS}
    found["adapted"] = errors(evidence, **OWN["adapted"])
    found |= {f"{norm}_gain": found["batch"] - found[norm] for norm in ("group", "layer")}
    return intervals(**found, more=found["group"] - found["adapted"])


def intervals(**values: np.ndarray) -> dict[str, Interval]:
    """Of the values of the seeds, by name."""
    return {name: interval(of_seeds) for name, of_seeds in values.items()}


def clean(evidence: Evidence) -> dict[str, Interval]:
    """What adaptation costs where nothing is damaged, and what it gains elsewhere."""
    return {"cost": interval(-gain(evidence, "clean")), "gain": interval(gain(evidence))}


def undamaged(evidence: Evidence) -> dict[str, Interval]:
    """The errors of all norms where nothing is damaged, and by how much they are larger than that of batch norm."""
    found = {norm: errors(evidence, "clean", norm=norm, method="as_is") for norm in NORMS}
    return intervals(**found, **{f"{norm}_more": found[norm] - found["batch"] for norm in NORMS[1:]})


def tent(evidence: Evidence) -> dict[str, Interval]:
    """What TENT changes."""
    before, after = errors(evidence, **OWN["adapted"]), errors(evidence, **OWN["tent"])
    return intervals(adapted=before, tent=after, change=after - before)


def claims(images: str) -> tuple[Claim, ...]:
    """What is asked of damaged images of any kind."""
    return (
        Claim(
            "adapted statistics",
            f"The running statistics are those of the undamaged {images}. With statistics of the damaged {images} "
            "batch norm has a smaller error for most of the nine kinds of damage. Found: for {better} of them; in the "
            "mean {adapted:.1f} % in the place of {source:.1f} %.",
            kinds,
            lambda f: "confirmed" if f["better"] >= 7 else "refuted" if f["above"] < 7 else "within noise",
            "the error were smaller for fewer than seven kinds",
        ),
        Claim(
            "what it costs",
            f"On undamaged {images} adaptation costs almost nothing. Found: it changes the error by {{cost:+.1f}} "
            "points; on damaged ones it takes away {gain:.1f} points.",
            clean,
            lambda f: all_of([f["cost"].below(1), f["gain"].above(5)]),
            "it added more than one point, or took away less than five",
        ),
        Claim(
            "undamaged",
            f"On undamaged {images} batch norm has a smaller error than norms of one example, and than no norm. Found: "
            "{batch:.1f} % with batch norm, {group:.1f} % with group norm ({group_more:+.1f} points), {layer:.1f} % "
            "with layer norm ({layer_more:+.1f}), {none:.1f} % without a norm ({none_more:+.1f}).",
            undamaged,
            lambda f: all_of([f[f"{norm}_more"].above(0) for norm in NORMS[1:]]),
            "one of the others had no larger error",
            about="norm",
        ),
        Claim(
            "norms of one example",
            "Group norm ({group:.1f} %) and layer norm ({layer:.1f} %) have no statistics that can be out of date. "
            f"Without adaptation their error on damaged {images} is smaller than that of batch norm ({{batch:.1f}} %), "
            "by {group_gain:.1f} and {layer_gain:.1f} points. Without any norm it is {none:.1f} %.",
            norms,
            lambda f: all_of([f["group_gain"].above(0), f["layer_gain"].above(0)]),
            "one of them had no smaller error",
        ),
        Claim(
            "group norm, or adaptation",
            "Adapted batch norm ({adapted:.1f} %) has a smaller error than group norm as it is, by {more:.1f} points.",
            norms,
            lambda f: f["more"].above(0),
            "group norm had no larger error",
        ),
        Claim(
            "TENT",
            "To train scale and bias for certain predictions, without labels (TENT), lowers the error further. Found: "
            "{adapted:.1f} % before it and {tent:.1f} % after it; it changes the error by {change:+.1f} points.",
            tent,
            lambda f: f["change"].below(0),
            "the error were no smaller than with adapted statistics alone",
            "on CIFAR-10-C at severity 5 the error is 18.6 %, with adapted statistics 20.4 % (Wang et al., "
            "arXiv:2006.10726).",
        ),
    )


def by_severity(evidence: Evidence, images: str) -> list[Chart]:
    """A picture of the errors of all methods, if any was measured."""
    rows = _by_severity(evidence)
    if not rows:
        return []
    text = (
        f"The error on the held-out {images} in %, the mean over the seeds; severity 0 is no damage. Click a line "
        "in the legend to fade the others. The table has the means over all severities."
    )
    spec = charts.lines(rows, x="severity", y="error", colour="line", facet="damage", order=list(LINES))
    return [Chart("Error by kind of damage and severity", text, spec, _by_kind(evidence))]


def _by_severity(evidence: Evidence) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    kinds = [kind for kind in KINDS if evidence.select({"part": "damage", "corruption": kind})]
    for kind, (line, settings), severity in itertools.product(kinds, LINES.items(), (0, *SEVERITIES)):
        where = {"part": "damage", "severity": severity, "corruption": kind} if severity else {"part": "clean"}
        if evidence.select({**settings, **where}):
            mean = errors(evidence, **settings, **where).mean()
            found.append({"damage": kind, "line": line, "severity": severity, "error": round(mean, 1)})
    return found


def _by_kind(evidence: Evidence) -> Table:
    """The mean errors over the severities, a row for each line."""
    rows = []
    for line, settings in LINES.items():
        measured = [k for k in KINDS if evidence.select({"part": "damage", **settings, "corruption": k})]
        if measured:
            means = {k: f"{errors(evidence, **settings, corruption=k).mean():.1f}" for k in measured}
            rows.append([line, f"{interval(errors(evidence, **settings)):.1f}", *(means.get(k, "") for k in KINDS)])
    return Table("Error in %, the mean over the severities", ["", "all", *KINDS], rows)
