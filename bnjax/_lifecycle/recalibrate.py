"""Recalibration: the passes over the batches, and what becomes of the measurements. Frameworks hand in one function."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from bnjax import _checks as checks
from bnjax._lifecycle.population import LAWS, Law, Measured, nothing_measured, with_prior
from bnjax._lifecycle.progress import counted
from bnjax._lifecycle.refusals import NONE_VALID, NOT_CALLED
from bnjax._lifecycle.report import Report, Row, raise_if_nothing_done
from bnjax._lifecycle.trees import State, like

Pairs = Mapping[str, Mapping[str, Any]]  # mean and variance, by path
Found = dict[str, dict[str, Any]]
EPS = float(np.finfo(np.float32).eps)


class Seen(NamedTuple):
    """What a framework knows of a norm.

    Attributes:
      kind: what it is.
      why: it was not measured.
      features: how many numbers one of its means has; with more in the state, it is a stack.
    """

    kind: str
    why: str = ""
    features: int = 0


class Request(NamedTuple):
    """What the caller of `recalibrate` asked for."""

    valid: Callable[[Any], Any] | None
    prior: float
    law: Law
    by_layer: bool

    @classmethod
    def checked(cls, batches: Any, valid: Any, prior: Any, law: Any, by_layer: Any) -> Request:
        """The request.

        Raises:
          ValueError: an argument that does not fit.
        """
        checks.choice(law, "law", LAWS)
        checks.flag(by_layer, "by_layer")
        if prior is not None:
            checks.non_negative(prior, "prior")
        if valid is not None and not callable(valid):
            raise ValueError(
                f"`valid` must be a function of a batch that says which examples count, but it is {valid!r:.80}."
            )
        if not isinstance(batches, Iterable) or isinstance(batches, Mapping | str):
            raise ValueError(f"`batches` must be a list of batches, or another iterable, but it is {batches!r:.80}.")
        if by_layer and iter(batches) is batches:
            raise ValueError(
                "`by_layer=True` reads the batches once for each norm, but `batches` can be read once only; pass a "
                "list, or an object whose `__iter__` starts anew."
            )
        return cls(valid, 0.0 if prior is None else float(prior), law, bool(by_layer))


class Passes(Protocol):
    """Batches through a model of a framework, its norms measured."""

    def measure(self, pairs: Pairs, so_far: Found, batch: Any, valid: Any, by: str) -> Found:
        """What was measured, with one more batch; norms normalize `by` the "batch" or by `pairs`, "running"."""

    def seen(self, path: str) -> Seen:
        """What is known of a norm after the first batch."""


def recalibrate(
    verb: str, state: State, batches: Iterable[Any], request: Request, passes: Passes
) -> tuple[Found, Report]:
    """New means and variances by path, and the report.

    In the first pass every norm normalizes by the batch (as in PreciseBN, arXiv 2105.07576). That is exact for norms
    with no other before them. In each further pass norms normalize by the statistics of the pass before, which makes
    those exact whose predecessors were: whatever the order in which a model calls them, a chain of n norms is exact
    after n passes. The passes end where nothing moves any more.

    Args:
      verb: the name of the caller, for errors.
      state: the running state of the model.
      batches: the batches.
      request: what was asked for.
      passes: runs them.
    """
    old = state.pairs()
    if not old:
        raise_if_nothing_done(verb, Report(state.other_rows()), "The state has no mean and variance side by side.")
    one_pass = _OnePass(old, request, passes)
    new, measured = one_pass(old, batches, "batch")
    for _ in range(1, _slices(measured, passes) if request.by_layer else 1):
        before = new
        new, measured = one_pass(before, batches, "running")
        if not _moved(before, new):
            break
    rows = [_row(path, old[path], new[path], measured[path], one_pass, passes.seen(path)) for path in old]
    report = Report([*rows, *state.other_rows()])
    raise_if_nothing_done(verb, report, "Check that `call` runs the norms of the model on a batch.")
    return {row.path: new[row.path] for row in rows if row.done}, report


class _OnePass:
    """One pass over the batches."""

    def __init__(self, old: Pairs, request: Request, passes: Passes):
        self.old, self.request, self.passes = old, request, passes
        self.batches = 0

    def __call__(self, current: Pairs, batches: Iterable[Any], by: str) -> tuple[Found, Found]:
        """The statistics after all batches, and what was measured."""
        so_far = {path: nothing_measured(pair["mean"]) for path, pair in current.items()}
        examples, self.batches = 0.0, 0
        for batch in counted(batches, "recalibrating"):
            valid = valid_of(self.request.valid, batch)
            so_far = self.passes.measure(current, so_far, batch, valid, by)
            if self.request.prior:
                examples = examples + _examples(batch, valid)
            self.batches += 1
        if not self.batches:
            raise ValueError("`batches` is empty; pass at least one batch.")
        return {path: self._with_prior(self.old[path], so_far[path], float(examples)) for path in so_far}, so_far

    def _with_prior(self, old: Mapping[str, Any], measured: Measured, examples: float) -> dict[str, Any]:
        new = with_prior(old, measured, self.request.prior, examples, self.request.law)
        return {name: like(old[name], value) for name, value in new.items()}


def valid_of(valid: Callable[[Any], Any] | None, batch: Any) -> Any:
    """Which examples of a batch count; nothing where all do."""
    if valid is None:
        return None
    mask = jnp.asarray(valid(batch))
    if mask.ndim < 1 or mask.dtype != jnp.bool_:
        raise ValueError(
            "`valid` must give a bool array with an axis of examples, but it gave one of dtype "
            f"{mask.dtype} and shape {mask.shape}; write `valid=lambda batch: batch['mask'] > 0` or the like."
        )
    return mask


def _examples(batch: Any, valid: Any) -> Any:
    """How many examples of a batch are valid."""
    if valid is not None:
        return valid.any(tuple(range(1, valid.ndim))).sum()
    lengths = {np.shape(leaf)[0] for leaf in jax.tree.leaves(batch) if np.ndim(leaf)}
    if len(lengths) != 1:
        raise ValueError(
            f"`prior` is weighed against the number of examples, but the arrays of a batch have {sorted(lengths)} "
            "entries along axis 0; say by `valid` which examples there are, such as "
            "`valid=lambda batch: jnp.ones(len(batch['image']), bool)`."
        )
    return lengths.pop()


def _slices(measured: Found, passes: Passes) -> int:
    """How many norms there are, each slice of a stack one of its own."""
    sizes = {path: passes.seen(path).features for path in measured}
    return sum(measured[path]["mean"].size // size for path, size in sizes.items() if size)


def _moved(before: Pairs, new: Pairs) -> bool:
    """Whether a pass changed more than the last bit; on a CPU what is exact stays as it is, bit for bit."""
    changes = [_change(before[path], new[path]) for path in new]
    return any(not (c["mean_moved"] <= EPS and c["var_factor"] - 1 <= EPS) for c in changes)


def _row(
    path: str, old: Mapping[str, Any], new: Mapping[str, Any], measured: Measured, one_pass: _OnePass, seen: Seen
) -> Row:
    """The row of a pair."""
    calls, count = int(jnp.max(measured["calls"])), float(jnp.max(measured["count"]))
    if not calls:
        return Row(path, seen.kind, False, seen.why or NOT_CALLED)
    evidence: dict[str, Any] = {"count": count, "calls": calls}
    if not count:
        return Row(path, seen.kind, False, NONE_VALID, evidence)
    if not all(bool(jnp.isfinite(value).all()) for value in new.values()):
        return Row(path, seen.kind, False, "its input is not finite", evidence)
    said = ""
    if calls > one_pass.batches:
        said = "called several times a batch, its calls are pooled"
        said += "; `by_layer` promises nothing there" if one_pass.request.by_layer else ""
    return Row(path, seen.kind, True, said, evidence | _change(old, new))


def _change(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, float]:
    """How far the statistics moved: the mean in standard deviations, the variance as a factor."""
    tiny = np.finfo(np.float32).tiny
    var, new_var = (np.maximum(np.asarray(t["var"]).real.astype(np.float64), tiny) for t in (old, new))
    mean, new_mean = (np.asarray(t["mean"]).astype(complex) for t in (old, new))
    moved = np.abs(new_mean - mean) / np.sqrt(new_var)
    factor = np.exp(np.abs(np.log(new_var / var)))
    return {"mean_moved": float(moved.max(initial=0.0)), "var_factor": float(factor.max(initial=1.0))}
