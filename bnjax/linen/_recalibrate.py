"""New running statistics for unmodified linen models: `recalibrate` and `adapt`."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
from flax import linen as nn

from bnjax._lifecycle.overrides import Flow
from bnjax._lifecycle.population import MEASURED, PREFIX, Law
from bnjax._lifecycle.recalibrate import Found, Pairs, Request, Seen
from bnjax._lifecycle.recalibrate import recalibrate as _recalibrate
from bnjax._lifecycle.report import Report
from bnjax._lifecycle.trees import State
from bnjax.linen._intercept import Record, in_force

Call = Callable[[Any, Any], Any]
_traces = itertools.count(1)


def default_call(model: Any, batch: Any) -> Any:
    """The model on a batch."""
    return model(batch)


def recalibrate(
    model: nn.Module,
    variables: Mapping[str, Any],
    batches: Iterable[Any],
    *,
    call: Call = default_call,
    valid: Callable[[Any], Any] | None = None,
    prior: float | None = None,
    law: Law = "merge",
    by_layer: bool = False,
) -> tuple[Any, Report]:
    """The running statistics of a model's batch norms, measured anew over batches."""
    request = Request.checked(batches, valid, prior, law, by_layer)
    return _measured("recalibrate", model, variables, batches, call, request)


def adapt(
    model: nn.Module,
    variables: Mapping[str, Any],
    batches: Iterable[Any],
    *,
    call: Call = default_call,
    valid: Callable[[Any], Any] | None = None,
    prior: float | None = 16,
    law: Law = "average",
) -> tuple[Any, Report]:
    """The running statistics of a model's batch norms, moved to another domain."""
    request = Request.checked(batches, valid, prior, law, False)
    return _measured("adapt", model, variables, batches, call, request)


def _measured(
    verb: str, model: nn.Module, variables: Mapping[str, Any], batches: Iterable[Any], call: Call, request: Request
) -> tuple[Any, Report]:
    if "batch_stats" not in variables:
        raise ValueError(
            f"`variables` must have the collection `batch_stats`, but it has {', '.join(variables) or 'nothing'}; "
            "pass all that `model.init` returned."
        )
    state = State.of(variables["batch_stats"])
    rest = {name: value for name, value in variables.items() if name != "batch_stats"}
    passes = _Passes(model, rest, state, call, request.law)
    pairs, report = _recalibrate(verb, state, batches, request, passes)
    return state.replaced(pairs), report


class _Passes:
    """Batches through a model, its norms measured."""

    def __init__(self, model: nn.Module, rest: Any, state: State, call: Call, law: Law):
        self.model, self.rest, self.state, self.call, self.law = model, rest, state, call, law
        self.record: Record | None = None
        self._jitted = jax.jit(self._run, static_argnames="by")

    def measure(self, pairs: Pairs, so_far: Found, batch: Any, valid: Any, by: str) -> Found:
        """What was measured, with one more batch."""
        return self._jitted(self.rest, pairs, so_far, batch, valid, by=by)

    def _run(self, rest: Any, pairs: Pairs, so_far: Found, batch: Any, valid: Any, *, by: Any) -> Found:
        stats = plain(self.state.replaced(pairs))
        for path, measured in so_far.items():
            node(stats, path).update({PREFIX + name: measured[name] for name in MEASURED})
        record = Record(Flow(by, self.law, next(_traces)), valid)
        with in_force(record):
            _, new = nn.apply(self.call, self.model, mutable=["batch_stats"])({**rest, "batch_stats": stats}, batch)
        self.record = self.record or record
        return {path: {name: node(new["batch_stats"], path)[PREFIX + name] for name in MEASURED} for path in so_far}

    def seen(self, path: str) -> Seen:
        """What is known of a norm after the first batch."""
        row = self.record.rows.get(path) if self.record else None
        return Seen(row.kind, row.reason, row.evidence.get("features", 0)) if row else Seen("unknown")


def plain(tree: Any) -> Any:
    """Nested mappings as dicts."""
    return {name: plain(child) for name, child in tree.items()} if isinstance(tree, Mapping) else tree


def node(tree: Any, path: str) -> Any:
    """The mapping at a path."""
    for name in path.split("/") if path else ():
        tree = tree[name]
    return tree
