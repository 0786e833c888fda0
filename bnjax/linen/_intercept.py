"""One interceptor for all that overrides the norms of a model, and one stack of what is in force.

`flax.linen.intercept_methods` reaches every call of a module, inside of `jit`, `scan`, `remat` and `vmap`, too. The
values on the stack are part of the keys of JAX's caches, so that a function that was jitted before is traced again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import threading
from collections.abc import Callable, Iterator
from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from bnjax._checks import canonical_axes
from bnjax._lifecycle.context import ACTIVE
from bnjax._lifecycle.overrides import Entry, Flow, Freeze, Plan, Upgrade, plan_for, refusal
from bnjax._lifecycle.population import PREFIX
from bnjax._lifecycle.refusals import FROZEN, FROZEN_TOO, NOT_CALLED, foreign, refused, valid_too
from bnjax._lifecycle.report import Row
from bnjax._lifecycle.trees import State
from bnjax.linen._swap import swapped_call
from bnjax.linen._twins import (
    Twin,
    batch_norm_twin,
    held_twin,
    kind_of,
    owner_of,
    raw,
    restored,
    statistics,
)


@dataclasses.dataclass(eq=False)
class Record:
    """An entry that is in force, and what came of it.

    Attributes:
      entry: what is asked.
      valid: which examples count, where batches are measured.
      rows: by path, in the order of the calls.
      unreached: paths of rows that are there because no call reached the norm so far.
      unselected: norms without a state that the entry is not for, likewise by path.
      classes: of all modules that were called, by path.
    """

    entry: Entry
    valid: Any = None
    rows: dict[str, Row] = dataclasses.field(default_factory=dict)
    unreached: set[str] = dataclasses.field(default_factory=set)
    unselected: dict[str, Row] = dataclasses.field(default_factory=dict)
    classes: dict[str, str] = dataclasses.field(default_factory=dict)


class _Stack(threading.local):
    def __init__(self) -> None:
        self.records: list[Record] = []
        self.keys: list[Any] = []  # what the caches know of each record and of those before it


_stack = _Stack()


@contextlib.contextmanager
def in_force(record: Record) -> Iterator[Record]:
    """Puts an entry on the stack while the context lasts.

    Contexts that generators hold may end in another order than the reverse: each takes away its own entry.
    """
    # One interceptor does all the work, but Flax takes away the last one, so that there is one for each entry.
    with nn.intercept_methods(_interceptor):
        _enter([record])
        try:
            yield record
        finally:
            _leave(record)


def _enter(records: list[Record]) -> None:
    for record in records:
        _stack.records.append(record)
        key = ACTIVE(tuple(r.entry for r in _stack.records))
        key.__enter__()
        _stack.keys.append(key)


def _leave(record: Record) -> None:
    at = _stack.records.index(record)
    later = _stack.records[at + 1 :]
    for key in reversed(_stack.keys[at:]):
        key.__exit__(None, None, None)
    del _stack.records[at:], _stack.keys[at:]
    _enter(later)


def _interceptor(call: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
    module, function = context.module, raw(context.orig_method)
    if isinstance(module, Twin) or module.scope is None:
        return call(*args, **kwargs)
    records, path = list(_stack.records), "/".join(module.path)
    for record in records:
        record.classes.setdefault(path, type(module).__name__)
    kind = kind_of(module, function)
    y = (
        call(*args, **kwargs)
        if kind is None
        else _norm(records, call, args, kwargs, _Norm(module, function, path, kind))
    )
    if not module.path:
        for record in records:
            _complete(record, module)
    return y


@dataclasses.dataclass(frozen=True)
class _Norm:
    """A norm that is called."""

    module: nn.Module
    function: Callable[..., Any]
    path: str
    kind: str


def _norm(records: list[Record], call: Callable[..., Any], args: Any, kwargs: Any, norm: _Norm) -> Any:
    """The call of a norm, as the entries would have it."""
    plan = plan_for([r.entry for r in records], norm.path, norm.kind)
    for record in records:
        _add_row(record, plan, norm, args[0] if args else kwargs.get("x"))
    if plan.swap is not None and _refused(plan.swap, plan, norm) is None:
        return swapped_call(norm.module, plan, args, kwargs)
    if norm.kind == "batch" and plan.asks:
        return _batch_norm(records, plan, norm, args, kwargs)
    if plan.freeze is None or norm.module.is_initializing() or _refused(plan.freeze, plan, norm):
        return call(*args, **kwargs)
    return _held(plan.freeze, norm, args, kwargs)


def _add_row(record: Record, plan: Plan, norm: _Norm, x: Any) -> None:
    """Says what comes of an entry for a norm; of its first call, because all are alike."""
    unselected = refusal(record.entry, norm.path, norm.kind)
    why = unselected or _refused(record.entry, plan, norm)
    evidence = {}
    if isinstance(record.entry, Flow) and why is None:
        evidence["features"] = math.prod(jnp.shape(x)[a] for a in canonical_axes(norm.module.axis, jnp.ndim(x)))
    row = Row(norm.path, norm.kind, why is None, why or _note(record.entry, plan), evidence)
    # Norms without a state that were not asked for are nothing to report, unless nothing else is.
    rows = record.rows if unselected is None or statistics(norm.module) else record.unselected
    if norm.path in record.unreached:
        record.unreached.remove(norm.path)
        del record.rows[norm.path]
    rows.setdefault(norm.path, row)


def _refused(entry: Entry, plan: Plan, norm: _Norm) -> str | None:
    """Why an entry that selects a norm cannot do it."""
    if isinstance(entry, Upgrade | Flow) and plan.swap is not None:
        return f"it is swapped for {plan.swap.name!r}"
    if isinstance(entry, Flow) and plan.freeze is not None:
        return FROZEN
    # `init` makes the state in this call.
    stateful = bool(statistics(norm.module)) or (norm.module.is_initializing() and norm.kind == "batch")
    return refused(entry, norm.kind, stateful)


def _note(entry: Entry, plan: Plan) -> str:
    return FROZEN_TOO if isinstance(entry, Upgrade) and plan.freeze is not None else ""


def _batch_norm(records: list[Record], plan: Plan, norm: _Norm, args: Any, kwargs: Any) -> Any:
    x, average, rest = _arguments(norm, plan, args, kwargs)
    if plan.flow is not None and plan.freeze is None:
        valid = next((r.valid for r in records if r.entry is plan.flow), None)
        x, rest["mask"] = valid_too(jnp.asarray(x), rest.get("mask"), valid, norm.path)
        average = plan.flow.by == "running"
    twin = batch_norm_twin(norm.module, plan, x)
    return twin(x, use_running_average=average, **rest)


def _held(freeze: Freeze, norm: _Norm, args: Any, kwargs: Any) -> Any:
    """A norm of another kind than batch norm, held."""
    owner = owner_of(norm.module, norm.function)
    before = statistics(norm.module)
    if before and freeze.use:
        x, _, rest = _arguments(norm, None, args, kwargs)
        twin = held_twin(norm.module, owner, freeze.parameters, use_running_average=None)
        return twin(x, use_running_average=True, **rest)
    y = held_twin(norm.module, owner, freeze.parameters)(*args, **kwargs)
    if not freeze.update:
        restored(norm.module, before)
    return y


def _arguments(norm: _Norm, plan: Plan | None, args: Any, kwargs: Any) -> tuple[Any, bool | None, dict[str, Any]]:
    """The input, whether the running state normalizes, and the other arguments of a call of a norm."""
    rest = dict(kwargs)
    x = args[0] if args else rest.pop("x")
    given = args[1] if len(args) > 1 else rest.pop("use_running_average", None)
    rest.pop("use_running_average", None)
    own = getattr(norm.module, "use_running_average", None)
    options = {} if plan is None else plan.options
    if not options.get("track_running_stats", getattr(norm.module, "track_running_stats", True)):
        return x, False, rest
    if options.get("use_running_average") is not None:
        return x, None, rest
    return x, nn.merge_param("use_running_average", own, given), rest


def _complete(record: Record, root: nn.Module) -> None:
    """Adds what the state of a model has and no call reached so far: the root may have methods that call each other."""
    state = State.of(root.variables.get("batch_stats", {})).without(PREFIX)
    for path in state.pairs():
        if path not in record.rows:
            cls = record.classes.get(path)
            why = foreign(cls) if cls else NOT_CALLED
            record.rows[path] = Row(path, cls or "unknown", False, why)
            record.unreached.add(path)
    for row in state.other_rows():
        record.rows.setdefault(row.path, row)
