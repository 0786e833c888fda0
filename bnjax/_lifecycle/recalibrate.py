"""Recalibration: the passes over the batches, and what becomes of the measurements. Frameworks hand in one function."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from bnjax import _checks as checks
from bnjax._lifecycle.population import LAWS, Law, Measured, nothing_measured, with_prior
from bnjax._lifecycle.progress import counted
from bnjax._lifecycle.report import Report, Row, raise_if_nothing_done
from bnjax._lifecycle.trees import State, like

Pairs = Mapping[str, Mapping[str, Any]]  # mean and variance, by path
Found = dict[str, dict[str, Any]]


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
        if not isinstance(batches, Iterable):
            raise ValueError(f"`batches` must be a list of batches, or another iterable, but it is {batches!r:.80}.")
        if by_layer and iter(batches) is batches:
            raise ValueError(
                "`by_layer=True` reads the batches once for each norm, but `batches` can be read once only; pass a "
                "list, or an object whose `__iter__` starts anew."
            )
        return cls(valid, 0.0 if prior is None else float(prior), law, bool(by_layer))


class Measure(Protocol):
    """One batch through the model: adds what its norms see to what was measured."""

    def __call__(self, pairs: Pairs, so_far: Found, batch: Any, valid: Any, by: str) -> Found: ...  # noqa: D102


class Reasons(Protocol):
    """What the framework knows of a path: the kind of the norm, and why it was not measured."""

    def __call__(self, path: str) -> tuple[str, str]: ...  # noqa: D102


def recalibrate(
    state: State, batches: Iterable[Any], request: Request, measure: Measure, reasons: Reasons, verb: str
) -> tuple[Found, Report]:
    """New means and variances by path, and the report.

    Args:
      state: the running state of the model.
      batches: the batches.
      request: what was asked for.
      measure: runs one batch.
      reasons: why a norm was not measured, after the first batch.
      verb: the name of the caller, for errors.
    """
    old = state.pairs()
    if not old:
        raise_if_nothing_done(verb, Report(_others(state)), "The state has no mean and variance side by side.")
    new, measured, examples = _one_pass(old, old, batches, request, measure, "batch")
    passes = 1
    while request.by_layer and passes < _slices(measured):
        before = new
        new, measured, examples = _one_pass(old, before, batches, request, measure, "running")
        passes += 1
        if _equal(before, new):
            break
    rows = [_row(path, old[path], new[path], measured[path], request, reasons) for path in old]
    report = Report([*rows, *_others(state)])
    raise_if_nothing_done(verb, report, "Check that `call` runs the norms of the model on a batch.")
    return {row.path: new[row.path] for row in rows if row.done}, report


def _one_pass(
    old: Pairs, current: Pairs, batches: Iterable[Any], request: Request, measure: Measure, by: str
) -> tuple[Found, Found, float]:
    """The statistics after all batches, what was measured, and the number of examples."""
    so_far = {path: nothing_measured(pair["mean"]) for path, pair in current.items()}
    examples, number = 0.0, 0
    for batch in counted(batches, "recalibrating"):
        valid = _valid(request.valid, batch)
        so_far = measure(current, so_far, batch, valid, by)
        if request.prior:
            examples = examples + _examples(batch, valid)
        number += 1
    if not number:
        raise ValueError("`batches` is empty; pass at least one batch.")
    examples = float(examples)
    new = {
        path: {
            name: like(old[path][name], value)
            for name, value in with_prior(old[path], so_far[path], request.prior, examples, request.law).items()
        }
        for path in old
    }
    return new, so_far, examples


def _valid(valid: Callable[[Any], Any] | None, batch: Any) -> Any:
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


def _slices(measured: Found) -> int:
    """How many norms there are at most: of a stacked state, one for each slice and feature is a bound."""
    return sum(int(np.prod(m["mean"].shape[:-1], dtype=int)) for m in measured.values())


def _equal(a: Pairs, b: Pairs) -> bool:
    return all(bool(jnp.array_equal(x, y)) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def _row(
    path: str, old: Mapping[str, Any], new: Mapping[str, Any], measured: Measured, request: Request, reasons: Reasons
) -> Row:
    """The row of a pair."""
    kind, why = reasons(path)
    calls, count = float(jnp.max(measured["calls"])), float(jnp.max(measured["count"]))
    evidence = {"count": count, "calls": int(calls)}
    if not calls:
        return Row(path, kind, False, why or "it was not called")
    if not count:
        return Row(path, kind, False, "no element was valid", evidence)
    if not all(bool(jnp.isfinite(value).all()) for value in new.values()):
        return Row(path, kind, False, "what it was given is not finite", evidence)
    return Row(path, kind, True, _said(request, calls), evidence | _change(old, new))


def _said(request: Request, calls: float) -> str:
    return ""


def _change(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, float]:
    """How far the statistics moved: the mean in standard deviations, the variance as a factor."""
    tiny = np.finfo(np.float32).tiny
    mean, var, new_mean, new_var = (
        np.asarray(t, np.float64 if not np.iscomplexobj(t) else complex)
        for t in (old["mean"], old["var"], new["mean"], new["var"])
    )
    moved = np.abs(new_mean - mean) / np.sqrt(np.maximum(new_var, tiny))
    factor = np.exp(np.abs(np.log(np.maximum(new_var, tiny) / np.maximum(var, tiny))))
    return {"mean_moved": float(moved.max(initial=0.0)), "var_factor": float(factor.max(initial=1.0))}


def _others(state: State) -> Iterator[Row]:
    for path in state.others():
        yield Row(path, "leaf", False, "no mean and no variance")


_ = math
