"""New running statistics for unmodified linen models: `recalibrate` and `adapt`."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
from flax import linen as nn

from bnjax._lifecycle.context import ACTIVE
from bnjax._lifecycle.overrides import Flow
from bnjax._lifecycle.population import MEASURED, PREFIX, Law
from bnjax._lifecycle.recalibrate import Found, Pairs, Request, Seen
from bnjax._lifecycle.recalibrate import recalibrate as _recalibrate
from bnjax._lifecycle.report import Report, Row
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
    """New running statistics for the batch norms of a model: those of all batches together.

    For a model whose statistics are stale: after weights were averaged or pruned, or on other data. One forward pass a
    batch measures all norms. While it does, each normalizes by the batch, so only the norms with no other before them
    get exactly the statistics that they have at evaluation; the others come near, the nearer the larger the batches
    are. `by_layer=True` makes all exact, in as many passes as there are norms.

    A second time the same model and the same `call` are not compiled again: give it a function that has a name, and not
    a new `lambda` each time.

    Args:
      model: an unmodified linen model; its batch norms are Flax's, subclasses of it, or ours.
      variables: all its variables, `batch_stats` among them. They stay as they are.
      batches: of what `call` takes, any iterable. They may have different sizes.
      call: `call(model, batch)` runs the model as for evaluation, such as `lambda m, b: m(b["image"], train=False)`.
      valid: `valid(batch)` is a bool array that says what counts. Its shape is that of the first axes of the input of
        every norm: (examples,), or (examples, length) for sequences.
      prior: how many examples the old statistics weigh as much as; by default none.
      law: how batches are put together: `"merge"` gives the exact variance of all examples, `"average"` averages the
        variances, and leaves out how the means differ.
      by_layer: pass over the batches again until each norm has seen what it sees at evaluation.

    Returns:
      The new `batch_stats`, with the structure, the dtypes and the sharding of the old ones; and a `Report` with one
      row for each norm. What could not be measured keeps its old statistics, and its row says why.

    Raises:
      ValueError: no batch; nothing that could be measured; an iterator that can be read once, with `by_layer`.

    References:
      Wu and Johnson, Rethinking "Batch" in BatchNorm, 2021 (arXiv 2105.07576).

    >>> model = nn.Sequential([nn.Dense(2), nn.BatchNorm(use_running_average=True)])
    >>> batches = [jnp.ones((4, 3)), jnp.zeros((2, 3))]
    >>> variables = model.init(jax.random.key(0), batches[0])
    >>> batch_stats, report = recalibrate(model, variables, batches)
    >>> report["layers_1"].done, report["layers_1"].evidence["count"]
    (True, 6.0)
    """
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
    """Moves the running statistics of a model's batch norms to another domain: AdaBN.

    `recalibrate` with a prior: the old statistics weigh as much as `prior` examples.

    Args:
      model: as in `recalibrate`, like all arguments that are not listed.
      variables: likewise.
      batches: of the other domain; no labels are needed.
      call: likewise.
      valid: likewise.
      prior: how many examples the old statistics weigh as much as.
      law: `"average"`, as in the literature, or `"merge"`, which counts the difference between the domains as variance.

    Returns:
      The new `batch_stats` and a `Report`.

    Raises:
      ValueError: as `recalibrate`; the number of examples in a batch cannot be told: say it by `valid`.

    References:
      Li et al., Revisiting Batch Normalization For Practical Domain Adaptation, 2016 (arXiv 1603.04779). The prior:
      Schneider et al., Improving robustness against common corruptions by covariate shift adaptation, 2020
      (arXiv 2006.16971).

    >>> model = nn.BatchNorm(use_running_average=True)
    >>> variables = model.init(jax.random.key(0), jnp.ones((1, 2)))
    >>> batch_stats, report = adapt(model, variables, [jnp.full((16, 2), 4.0)])
    >>> print(batch_stats["mean"], batch_stats["var"])
    [2. 2.] [0.5 0.5]
    """
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
    passes = Passes(model, variables, state, call, request.law)
    pairs, report = _recalibrate(verb, state, batches, request, passes)
    return state.replaced(pairs), report


class Passes:
    """Batches through a model, its norms measured."""

    def __init__(self, model: nn.Module, variables: Mapping[str, Any], state: State, call: Call, law: Law):
        self._program, self._state = _program(model, call, law, state), state
        self._rest = {name: value for name, value in variables.items() if name != "batch_stats"}

    def measure(self, pairs: Pairs, so_far: Found, batch: Any, valid: Any, by: str) -> Found:
        """What was measured, with one more batch."""
        return self._run(self._program.measure, pairs, so_far, batch, valid, by)

    def run(self, pairs: Pairs, so_far: Found, batch: Any, valid: Any, by: str) -> tuple[Found, Any]:
        """What was measured, with one more batch, and the outputs."""
        return self._run(self._program.run, pairs, so_far, batch, valid, by)

    def _run(self, program: Any, pairs: Pairs, so_far: Found, batch: Any, valid: Any, by: str) -> Any:
        try:
            return program(self._rest, self._state.replaced(pairs), so_far, batch, valid, by=by)
        except ValueError as error:
            if "broadcasted variable" not in str(error):
                raise
            raise ValueError(
                "`call` runs a batch norm whose `batch_stats` are broadcast through `nn.scan`, so that no batch can be "
                "measured; give the scan `variable_carry='batch_stats'` in the place of `variable_broadcast`."
            ) from error

    def seen(self, path: str) -> Seen:
        """What is known of a norm after the first batch."""
        row = self._program.rows.get(path)
        return Seen(row.kind, row.reason, row.evidence.get("features", 0)) if row else Seen("unknown")


class _Program:
    """A model, its norms measured, that is traced and compiled once.

    Attributes:
      measure: one batch through the model: what was measured.
      run: likewise, and the outputs.
      rows: of the norms that were called, by path.
    """

    def __init__(self, model: nn.Module, call: Call, law: Law):
        self._model, self._call, self._law = model, call, law
        self.rows: dict[str, Row] = {}
        self.measure = jax.jit(lambda *args, by: self._run(*args, by=by)[0], static_argnames="by")
        self.run = jax.jit(self._run, static_argnames="by")

    def _run(self, rest: Any, stats: Any, so_far: Found, batch: Any, valid: Any, *, by: Any) -> tuple[Found, Any]:
        stats = plain(stats)
        for path, measured in so_far.items():
            node(stats, path).update({PREFIX + name: measured[name] for name in MEASURED})
        record = Record(Flow(by, self._law, next(_traces)), valid)
        with in_force(record):
            y, new = nn.apply(self._call, self._model, mutable=["batch_stats"])({**rest, "batch_stats": stats}, batch)
        self.rows = record.rows
        new = new["batch_stats"]
        return {path: {name: node(new, path)[PREFIX + name] for name in MEASURED} for path in so_far}, y


_PROGRAMS = functools.lru_cache(maxsize=8)(lambda model, call, law, *_: _Program(model, call, law))


def _program(model: nn.Module, call: Call, law: Law, state: State) -> _Program:
    """The program of a model; that of the last time, where it is the same, and what is in force around it."""
    try:
        return _PROGRAMS(model, call, law, ACTIVE.value, state.structure)
    except TypeError:  # a model or a call that cannot be hashed
        return _Program(model, call, law)


def plain(tree: Any) -> Any:
    """Nested mappings as dicts."""
    return {name: plain(child) for name, child in tree.items()} if isinstance(tree, Mapping) else tree


def node(tree: Any, path: str) -> Any:
    """The mapping at a path."""
    for name in path.split("/") if path else ():
        tree = tree[name]
    return tree
