"""New running statistics for unmodified nnx models: `recalibrate` and `adapt`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
from flax import nnx

from bnjax._lifecycle.overrides import Flow, refusal
from bnjax._lifecycle.population import Law
from bnjax._lifecycle.recalibrate import Found, Pairs, Request, Seen
from bnjax._lifecycle.recalibrate import recalibrate as _recalibrate
from bnjax._lifecycle.refusals import FROZEN, NOT_CALLED, foreign
from bnjax._lifecycle.report import Report
from bnjax._lifecycle.trees import State
from bnjax.nnx._measured import add_variables, measured_variables, observe, one_trace, share_variables
from bnjax.nnx._twins import check_model, cut_off, frozen, kind_of, modules_with_paths, owner_names, tracks

Call = Callable[[Any, Any], Any]


def default_call(model: Any, batch: Any) -> Any:
    """The model on a batch."""
    return model(batch)


def recalibrate(
    model: nnx.Module,
    batches: Iterable[Any],
    *,
    call: Call = default_call,
    valid: Callable[[Any], Any] | None = None,
    prior: float | None = None,
    law: Law = "merge",
    by_layer: bool = False,
) -> tuple[nnx.State, Report]:
    """New running statistics for the batch norms of a model: those of all batches together.

    For a model whose statistics are stale: after weights were averaged or pruned, or on other data. One forward pass a
    batch measures all norms. While it does, each normalizes by the batch, so only the norms with no other before them
    get exactly the statistics that they have at evaluation; the others come near, the nearer the larger the batches
    are. `by_layer=True` makes all exact, in as many passes as there are norms.

    Args:
      model: an unmodified nnx model; its batch norms are Flax's, subclasses of it, or ours. It stays as it is;
        `nnx.update(model, state)` gives it the new statistics.
      batches: of what `call` takes, any iterable. They may have different sizes.
      call: `call(model, batch)` runs the model, a copy after `model.eval()`, such as `lambda m, b: m(b["image"])`.
      valid: `valid(batch)` is a bool array that says what counts. Its shape is that of the first axes of the input of
        every norm: (examples,), or (examples, length) for sequences.
      prior: how many examples the old statistics weigh as much as; by default none.
      law: how batches are put together: `"merge"` gives the exact variance of all examples, `"average"` averages the
        variances, and leaves out how the means differ.
      by_layer: pass over the batches again until each norm has seen what it sees at evaluation.

    Returns:
      The new `BatchStat`, an `nnx.State` with the structure, the dtypes and the sharding of the old one; and a `Report`
      with one row for each norm. What could not be measured keeps its old statistics, and its row says why.

    Raises:
      ValueError: no batch; nothing that could be measured; an iterator that can be read once, with `by_layer`.

    References:
      Wu and Johnson, Rethinking "Batch" in BatchNorm, 2021 (arXiv 2105.07576).

    >>> model = nnx.Sequential(nnx.Linear(3, 2, rngs=nnx.Rngs(0)), nnx.BatchNorm(2, rngs=nnx.Rngs(0)))
    >>> batch_stats, report = recalibrate(model, [jnp.ones((4, 3)), jnp.zeros((2, 3))])
    >>> report["layers/1"].done, report["layers/1"].evidence["count"]
    (True, 6.0)
    >>> nnx.update(model, batch_stats)
    """
    request = Request.checked(batches, valid, prior, law, by_layer)
    return _measured("recalibrate", model, batches, call, request)


def adapt(
    model: nnx.Module,
    batches: Iterable[Any],
    *,
    call: Call = default_call,
    valid: Callable[[Any], Any] | None = None,
    prior: float | None = 16,
    law: Law = "average",
) -> tuple[nnx.State, Report]:
    """Moves the running statistics of a model's batch norms to another domain: AdaBN.

    `recalibrate` with a prior: the old statistics weigh as much as `prior` examples.

    Args:
      model: as in `recalibrate`, like all arguments that are not listed.
      batches: of the other domain; no labels are needed.
      call: likewise.
      valid: likewise.
      prior: how many examples the old statistics weigh as much as.
      law: `"average"`, as in the literature, or `"merge"`, which counts the difference between the domains as variance.

    Returns:
      The new `BatchStat`, an `nnx.State`, and a `Report`.

    Raises:
      ValueError: as `recalibrate`; the number of examples in a batch cannot be told: say it by `valid`.

    References:
      Li et al., Revisiting Batch Normalization For Practical Domain Adaptation, 2016 (arXiv 1603.04779). The prior:
      Schneider et al., Improving robustness against common corruptions by covariate shift adaptation, 2020
      (arXiv 2006.16971).

    >>> model = nnx.BatchNorm(2, rngs=nnx.Rngs(0))
    >>> batch_stats, report = adapt(model, [jnp.full((16, 2), 4.0)])
    >>> print(batch_stats["mean"][...], batch_stats["var"][...])
    [2. 2.] [0.5 0.5]
    """
    request = Request.checked(batches, valid, prior, law, False)
    return _measured("adapt", model, batches, call, request)


def _measured(
    verb: str, model: nnx.Module, batches: Iterable[Any], call: Call, request: Request
) -> tuple[nnx.State, Report]:
    check_model(model)
    state = State.of(nnx.state(model, nnx.BatchStat))
    pairs, report = _recalibrate(verb, state, batches, request, Passes(model, call, request.law))
    return state.replaced(pairs), report


class Passes:
    """Batches through a model, its norms measured."""

    def __init__(self, model: nnx.Module, call: Call, law: Law):
        clone = nnx.clone(model)
        clone.eval()
        self.modules, self.names = dict(modules_with_paths(clone)), owner_names(clone)
        self.graphdef, self.state = nnx.split(clone)
        self.call, self.law = call, law
        self.features: dict[str, int] = {}  # by the path of what was called
        self._measure = jax.jit(lambda *args, by: self._run(*args, by=by)[0], static_argnames="by")
        self._both = jax.jit(self._run, static_argnames="by")

    def measure(self, pairs: Pairs, so_far: Found, batch: Any, valid: Any, by: str) -> Found:
        """What was measured, with one more batch."""
        return self._measure(self.state, pairs, so_far, batch, valid, by=by)

    def run(self, pairs: Pairs, so_far: Found, batch: Any, valid: Any, by: str) -> tuple[Found, Any]:
        """What was measured, with one more batch, and the outputs."""
        return self._both(self.state, pairs, so_far, batch, valid, by=by)

    def _run(self, state: Any, pairs: Pairs, so_far: Found, batch: Any, valid: Any, *, by: Any) -> tuple[Found, Any]:
        model = nnx.merge(self.graphdef, state)
        norms: dict[str, Any] = {}
        with one_trace(Flow(by, self.law), valid) as running_pass:
            for path, module in self._measurable(model):
                observe(module, path, running_pass)
                if path in norms:  # another norm with the same statistics
                    share_variables(module, norms[path])
                    continue
                norms[path] = module
                module.mean[...], module.var[...] = pairs[path]["mean"], pairs[path]["var"]
                add_variables(module, so_far[path])
            y = self.call(model, batch)
        self.features |= running_pass.features
        new = {path: {n: v[...] for n, v in measured_variables(m).items()} for path, m in norms.items()}
        return {**so_far, **new}, y

    def _measurable(self, model: Any) -> Iterator[tuple[str, Any]]:
        """The norms that are measured, each with the path of its statistics: of the first norm that has them."""
        owners: dict[Any, str] = {}
        modules: Iterator[tuple[str, Any]] = modules_with_paths(model)
        for path, module in modules:
            if kind_of(type(module)) == "batch" and self._why_not(path) is None:
                yield owners.setdefault((id(module.mean), id(module.var)), path), module

    def _why_not(self, path: str) -> str | None:
        """Why a module with a mean and a variance is not measured; or nothing."""
        module = self.modules.get(path)
        kind = kind_of(type(module))
        if module is None or kind is None:
            return foreign(self.names[path])
        if (why := refusal(Flow("batch", self.law), path, kind)) is not None:
            return why
        if frozen(module):
            return FROZEN
        return None if tracks(module) else "`track_running_stats=False`: it does not use its running state"

    def seen(self, path: str) -> Seen:
        """What is known of a norm after the first batch."""
        cls = type(self.modules.get(path))
        kind, why = kind_of(cls) or self.names[path], self._why_not(path)
        if why is None and path in self.features:
            why = "it was called on a copy, or where a transformation takes the module as a constant"
        elif why is None:
            why = cut_off(cls) or NOT_CALLED
        return Seen(kind, why, self.features.get(path, 0))
