"""The examination: batches through a model in both flows, its norms measured and judged."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from bnjax._core.state import Path
from bnjax._lifecycle.arguments import check_batch
from bnjax._lifecycle.doctor import limits
from bnjax._lifecycle.doctor.decay import Decay, decay_of
from bnjax._lifecycle.doctor.diagnosis import Diagnosis, evidence_of, ordered
from bnjax._lifecycle.doctor.facts import Norm
from bnjax._lifecycle.doctor.finding import Finding, finding
from bnjax._lifecycle.doctor.replicas import differing, modules_of, statistics_apart
from bnjax._lifecycle.doctor.rules import judged, offs
from bnjax._lifecycle.population import nothing_measured
from bnjax._lifecycle.progress import counted
from bnjax._lifecycle.recalibrate import Found, Pairs, Seen, valid_of
from bnjax._lifecycle.refusals import NONE_VALID, NOT_CALLED
from bnjax._lifecycle.report import Report, Row
from bnjax._lifecycle.trees import State

# What explains that outputs differ: then that is no finding of its own.
EXPLAINS = {
    "not-finite", "never-updated", "stale", "momentum-torch", "low-precision-state", "few-values",
    "dropout-before-norm", "replicas-differ",
}  # fmt: skip


ROUNDING = 8  # units in the last place, by which outputs may differ


class Passes(Protocol):
    """Batches through a model of a framework, its norms measured."""

    def run(self, pairs: Pairs, so_far: Found, batch: Any, valid: Any, by: str) -> tuple[Found, Any]:
        """What was measured, with one more batch, and the outputs; norms normalize `by` the "batch" or "running"."""

    def seen(self, path: str) -> Seen:
        """What is known of a norm after the first batch."""


class Subject(NamedTuple):
    """A model of a framework.

    Attributes:
      state: the running state.
      passes: batches through it.
      look: gives the norms of the model, in the order in which it calls them with this batch.
      valid: which examples of a batch count, if the caller says so.
      beside: findings that need no batch.
    """

    state: State
    passes: Passes
    look: Callable[[Any], list[Norm]]
    valid: Callable[[Any], Any] | None
    beside: Sequence[Finding]


def examine(subject: Subject, batches: Iterable[Any]) -> Diagnosis:
    """The diagnosis of a model."""
    pairs = subject.state.pairs()
    nothing = {path: nothing_measured(pair["mean"]) for path, pair in pairs.items()}
    norms: list[Norm] | None = None
    gap = _Gap()
    for batch in counted(batches, "examining"):
        if norms is None:
            check_batch(batch)
            norms = _looked(subject, batch)
        if not pairs:
            break
        valid = valid_of(subject.valid, batch)
        found, by_batch = subject.passes.run(pairs, nothing, batch, valid, "batch")
        _, by_running = subject.passes.run(pairs, nothing, batch, valid, "running")
        gap.add(by_batch, by_running, valid)
        found = jax.device_get(found)
        for norm in norms:
            if norm.path in found:
                norm.batches.add(found[norm.path])
    if norms is None:
        raise ValueError("`batches` is empty; pass at least one batch.")
    rows = [_row(norm, subject.passes.seen(norm.path)) for norm in norms if norm.path in pairs]
    report = Report([*rows, *subject.state.other_rows()])
    findings = [*subject.beside, *_first_not_finite([f for norm in norms for f in judged(norm)])]
    findings += gap.findings(findings, norms)
    return Diagnosis(ordered(findings), report, gap.relative if pairs else None, tuple(norms))


def _looked(subject: Subject, batch: Any) -> list[Norm]:
    try:
        return subject.look(batch)
    except TypeError as error:
        if "not a valid JAX type" not in str(error):
            raise
        raise ValueError(f"`call` must return an array, or a tree of arrays: {error}") from error


def _row(norm: Norm, seen: Seen) -> Row:
    norm.features = seen.features
    if len(norm.batches):
        return Row(norm.path, norm.kind, True, "", evidence_of(norm))
    norm.why = seen.why or (NONE_VALID if norm.called else NOT_CALLED)
    return Row(norm.path, norm.kind, False, norm.why)


def _first_not_finite(findings: Sequence[Finding]) -> list[Finding]:
    """What is not finite spreads: the first norm that has it is blamed, and nothing of those behind it."""
    first = next((f for f in findings if f.code == "not-finite"), None)
    if first is None:
        return [*findings]
    others = sum(f.code == "not-finite" for f in findings) - 1
    kept = [f for f in findings if f.code != "not-finite"]
    return [first._replace(evidence={**first.evidence, "norms_behind_it": others}), *kept]


class _Gap:
    """How much the outputs in both flows differ."""

    def __init__(self) -> None:
        self._apart, self._spread, self._examples = 0.0, 0.0, 1

    def add(self, by_batch: Any, by_running: Any, valid: Any) -> None:
        """The outputs of one more batch."""
        for a, b in zip(jax.tree.leaves(by_batch), jax.tree.leaves(by_running), strict=True):
            if jnp.issubdtype(jnp.result_type(a), jnp.inexact):
                self._examples = max(self._examples, *jnp.shape(a)[:1], 1)
                apart, spread = jax.device_get(_apart(a, b, _of_outputs(valid, jnp.shape(a))))
                self._apart, self._spread = self._apart + float(apart), self._spread + float(spread)

    @property
    def relative(self) -> float:
        """In standard deviations of the outputs."""
        if not self._spread:  # such as of outputs that are all NaN
            return float(self._apart > 0) if math.isfinite(self._apart) else self._apart
        return (self._apart / self._spread) ** 0.5

    def findings(self, others: Sequence[Finding], norms: Sequence[Norm]) -> list[Finding]:
        """The finding, where nothing else explains it; with the norm whose statistics are the furthest off."""
        if not math.isfinite(self.relative) and all(f.code != "not-finite" for f in others):
            return [finding("", "not-finite", "error", where="outputs")]
        limit = max(limits.GAP, limits.GAP_CHANCE / self._examples**0.5)
        if any(map(_explains, others)) or not self.relative > limit:
            return []
        evidence: dict[str, Any] = {"outputs_differ": self.relative, "limit": limit}
        off = {norm.path: o["mean_off"] + math.log(o["var_factor"]) for norm in norms if (o := offs(norm))}
        if off:
            evidence["furthest_off"] = max(off, key=lambda path: off[path])
        if several := [norm.path for norm in norms if norm.batches.calls > len(norm.batches)]:
            evidence["called_several_times"] = ", ".join(several)
        return [finding("", "train-eval-gap", "warning", **evidence)]


def _explains(other: Finding) -> bool:
    return other.code in EXPLAINS and (other.code == "few-values" or other.severity != "note")


def _of_outputs(valid: Any, shape: tuple[int, ...]) -> Any:
    """Which outputs of that shape count: of valid examples, or of valid positions where there is one for each."""
    while valid is not None and valid.shape != shape[: valid.ndim]:
        valid = valid.any(-1) if valid.ndim > 1 else None
    return None if valid is None else valid.reshape(valid.shape + (1,) * (len(shape) - valid.ndim))


@jax.jit
def _apart(by_batch: Any, by_running: Any, valid: Any) -> tuple[Any, Any]:
    """Sums of squares: of the difference, and of the outputs about their mean over the examples."""
    a, b = (jnp.asarray(t, jnp.promote_types(t.dtype, jnp.float32)) for t in (by_batch, by_running))
    several = a.ndim > 1 and len(a) > 1
    centre = a.mean(0, keepdims=True, where=valid) if several else jnp.zeros_like(a)
    rounding = ROUNDING * jnp.finfo(by_batch.dtype).eps
    # What is masked by -inf is so in both flows, and tells nothing.
    finite = jnp.isfinite(a) if valid is None else jnp.isfinite(a) & valid
    apart = jnp.sum(jnp.abs(jnp.where(a == b, 0, a - b)) ** 2, where=valid)
    # An output that is always the same has no spread but rounding.
    spread = jnp.sum(jnp.maximum(jnp.abs(a - centre), rounding * jnp.abs(a)) ** 2, where=finite)
    return apart, spread


def of_optimizer(tx: Any, params: Any, mask: Any) -> list[Finding]:
    """What the optimizer decays of the norms, each norm a finding."""
    decay: Decay = decay_of(tx, params, mask)
    if decay.inconclusive:
        return [finding("", "decayed", "note", inconclusive="`tx` moves nothing, not even by a gradient")]
    modules: dict[str, dict[str, float]] = {}
    for (path, name), rate in decay.shrinks.items():
        modules.setdefault(path, {})[name] = rate
    return [
        finding(
            path, "decayed", "warning" if any(n != "bias" for n in rates) else "note",
            parameters=", ".join(sorted(rates)), a_step=max(rates.values()),
        )
        for path, rates in modules.items()
    ]  # fmt: skip


def of_replicas(params: Mapping[Path, Any], state: State) -> list[Finding]:
    """Where the replicas of a model differ. Parameters that differ make all else differ: they are blamed alone."""
    modules = modules_of({p: apart for p, apart in differing(params).items() if apart > limits.PARAMETERS_APART})
    if modules:
        worst = max(modules, key=lambda path: modules[path])
        return [finding(worst, "replicas-differ", "error", of="parameters", apart=modules[worst], modules=len(modules))]
    found = []
    for path, pair in state.pairs().items():
        mean, factor = statistics_apart(pair["mean"], pair["var"])
        if max(mean, factor - 1) > limits.APART:
            evidence = {"of": "statistics", "mean_apart": mean, "var_factor": factor}
            found.append(finding(path, "replicas-differ", "warning", **evidence))
    return found
