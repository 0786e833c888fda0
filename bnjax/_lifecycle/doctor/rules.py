"""What is wrong with one norm, each kind of fault a rule. The limits stand in `limits`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from bnjax._lifecycle.doctor import limits
from bnjax._lifecycle.doctor.facts import LOW, TINY, Norm
from bnjax._lifecycle.doctor.finding import Finding, Severity, finding
from bnjax._norms.registry import NORMS
from bnjax._norms.spec import ONES

Said = tuple[Severity, dict[str, Any]] | None


def not_finite(norm: Norm) -> Said:
    """Something is infinite or NaN."""
    own = {**norm.state, **norm.parameters}
    where = [name for name, value in own.items() if not np.isfinite(value).all()]
    where += [] if not len(norm.batches) or norm.batches.finite else ["input"]
    return ("error", {"where": ", ".join(where)}) if where else None


def never_updated(norm: Norm) -> Said:
    """The state of the beginning, of a norm that is run."""
    if not norm.state or not norm.called:
        return None
    both = zip(norm.slices(norm.state["mean"]), norm.slices(norm.state["var"]), strict=True)
    return ("error", offs(norm)) if any((m == 0).all() and (v == 1).all() for m, v in both) else None


def stale(norm: Norm) -> Said:
    """The running statistics are not those of the batches."""
    if not norm.measured or not norm.live.any():
        return None
    found, noise = offs(norm), _noise(norm)
    mean, factor = found["mean_off"], found["var_factor"]
    off = mean > max(limits.MEAN_OFF, noise[0]) or np.log(factor) > max(np.log(limits.VAR_FACTOR), noise[1])
    if not off or _explained_by_dropout(norm, mean, factor):
        return None
    far = mean > max(limits.MEAN_FAR, noise[0]) or np.log(factor) > max(np.log(limits.VAR_FAR), noise[1])
    return "error" if far else "warning", found


def offs(norm: Norm) -> dict[str, float]:
    """How far the running statistics are from those of the batches, in the feature in the middle.

    Each norm of a stack has such a feature; that of the norm that is off the furthest counts.
    """
    if not norm.measured or not norm.live.any():
        return {}
    return {"mean_off": _furthest(norm, norm.mean_off), "var_factor": float(np.exp(_furthest(norm, norm.log_ratio)))}


def _furthest(norm: Norm, off: Any) -> float:
    live = (row[~np.isnan(row)] for row in norm.slices(np.abs(off)))
    return max(float(np.median(row)) for row in live if row.size)


def _noise(norm: Norm) -> tuple[float, float]:
    """How far both may be by chance: of the batches, and of those that the running average remembers."""
    kept = norm.momentum if norm.momentum is not None else 1.0
    remembered = (1 - kept) / (1 + kept)
    error = limits.NOISE * np.sqrt(1 / len(norm.batches) + remembered)
    mean, log = norm.batches.scatter()
    return error * mean, error * log


def _explained_by_dropout(norm: Norm, mean: float, factor: float) -> bool:
    return norm.dropout is not None and mean <= limits.MEAN_OFF and factor <= limits.VAR_FACTOR / (1 - norm.dropout[1])


def dead_channels(norm: Norm) -> Said:
    """Features of the input do not vary."""
    return _part(~norm.live) if norm.measured else None


def epsilon_dominates(norm: Norm) -> Said:
    """Epsilon is a large part of variance and epsilon together."""
    if not norm.measured or not norm.live.any():
        return None
    share = norm.epsilon / (norm.batches.var[norm.live] + max(norm.epsilon, TINY))
    said = _part(share > limits.EPSILON)
    return said and (said[0], {**said[1], "epsilon_over_sum": float(share.max())})


def few_values(norm: Norm) -> Said:
    """Few values of a feature in a call."""
    if not len(norm.batches):
        return None
    values = norm.batches.values * norm.part
    evidence = {"values": values}
    if values <= limits.FEW_ERROR:
        return "error", evidence
    if values <= limits.FEW_WARNING:
        return "warning", evidence
    return ("note", evidence) if values <= limits.FEW_NOTE else None


def mean_far_from_zero(norm: Norm) -> Said:
    """The mean is large against the standard deviation."""
    if not norm.measured or not norm.live.any():
        return None
    std = np.sqrt(np.maximum(norm.batches.var, TINY))
    far = float((np.abs(norm.batches.mean) / std)[norm.live].max())
    note, warning = (limits.FAR_LOW, limits.FAR_LOW) if norm.low else (limits.FAR_NOTE, limits.FAR_WARNING)
    if far <= note:
        return None
    return "warning" if far > warning else "note", {"mean_over_std": far}


def momentum_torch(norm: Norm) -> Said:
    """A momentum in the sense of PyTorch."""
    if not norm.state or norm.momentum is None or norm.momentum > limits.MOMENTUM:
        return None
    return "warning", {"momentum": norm.momentum, **offs(norm)}


def bias_before_norm(norm: Norm) -> Said:
    """The layer before has a bias for nothing."""
    return ("note", {"layer": norm.layer}) if norm.layer else None


def scale_gone(norm: Norm) -> Said:
    """The norm multiplies by nearly zero."""
    scale, spec = norm.parameters.get("scale"), NORMS.get(norm.kind)
    if scale is None or spec is None or spec.wraps or spec.parameters.get("scale") is not ONES:
        return None
    return _part(np.abs(scale) < limits.SCALE)


def dropout_before_norm(norm: Norm) -> Said:
    """A dropout before, with no other norm between."""
    if norm.dropout is None or norm.dropout[1] <= 0:
        return None
    path, rate = norm.dropout
    return "warning" if rate >= limits.DROPOUT else "note", {"dropout": path, "rate": rate}


def low_precision_state(norm: Norm) -> Said:
    """A running state of few bits."""
    if not norm.state or not norm.dtype.startswith(LOW):
        return None
    return "warning", {"dtype": norm.dtype, **offs(norm)}


def _part(which: Any) -> Said:
    """A note where any feature is meant, a warning where many are."""
    if not which.any():
        return None
    return "warning" if which.mean() >= limits.PART else "note", {"features": int(which.sum()), "of": which.size}


RULES: dict[str, Callable[[Norm], Said]] = {
    "not-finite": not_finite,
    "never-updated": never_updated,
    "low-precision-state": low_precision_state,
    "momentum-torch": momentum_torch,
    "few-values": few_values,
    "stale": stale,
    "dead-channels": dead_channels,
    "epsilon-dominates": epsilon_dominates,
    "mean-far-from-zero": mean_far_from_zero,
    "bias-before-norm": bias_before_norm,
    "dropout-before-norm": dropout_before_norm,
    "scale-gone": scale_gone,
}
# One cause, one finding: what else of a norm follows from an error, or a warning, of this kind.
MEASURED = {"stale", "dead-channels", "epsilon-dominates", "mean-far-from-zero", "few-values"}
FOLLOWS = {
    "not-finite": {*MEASURED, "scale-gone"},
    "never-updated": {"stale"},
    "low-precision-state": {"stale"},
    "momentum-torch": {"stale"},
}


def judged(norm: Norm) -> list[Finding]:
    """The findings of one norm."""
    found: list[Finding] = []
    followed: set[str] = set()
    for code, rule in RULES.items():
        if code in followed or (said := rule(norm)) is None:
            continue
        severity, evidence = said
        found.append(finding(norm.path, code, severity, **evidence))
        followed |= FOLLOWS.get(code, set())
        if code == "few-values" and severity == "error":  # of what is measured nothing can be said
            followed |= MEASURED
    return found
