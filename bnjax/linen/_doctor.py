"""What is wrong with the norms of an unmodified linen model: `doctor`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
from flax import linen as nn
from flax.errors import ScopeParamShapeError

from bnjax._core.state import named_leaves
from bnjax._lifecycle.doctor.diagnosis import Diagnosis
from bnjax._lifecycle.doctor.examine import Subject, examine, of_optimizer, of_replicas
from bnjax._lifecycle.doctor.facts import Norm, known
from bnjax._lifecycle.doctor.replicas import check_replicated
from bnjax._lifecycle.doctor.surroundings import look_around
from bnjax._lifecycle.recalibrate import Request
from bnjax._lifecycle.report import Report, raise_if_nothing_done
from bnjax._lifecycle.trees import State, shown
from bnjax.linen._arguments import check_arguments
from bnjax.linen._masks import norm_params_mask
from bnjax.linen._recalibrate import Call, Passes, default_call
from bnjax.linen._summary import norms_of
from bnjax.linen._tagging import traced


def doctor(
    model: nn.Module,
    variables: Mapping[str, Any],
    batches: Iterable[Any],
    *,
    call: Call = default_call,
    valid: Callable[[Any], Any] | None = None,
    tx: Any = None,
    replicated: bool = False,
) -> Diagnosis:
    """What is wrong with the norms of a model, how it is known, and what to do about it.

    Each batch goes through the model twice. Once all batch norms normalize by the batch, as in training: what they are
    given then is compared with their running statistics, so that a norm whose statistics are stale is blamed, and not
    what follows it. Once they normalize by the running statistics: how much the outputs differ is what evaluation is
    off by. Dropouts and biases before a norm are found in the traced program.

    Args:
      model: an unmodified linen model; its norms are Flax's, subclasses of them, or ours.
      variables: all its variables. They stay as they are.
      batches: of what `call` takes, as large as in training; some ten are enough.
      call: `call(model, batch)` runs the model as for evaluation, such as `lambda m, b: m(b["image"], train=False)`.
      valid: `valid(batch)` is a bool array that says what counts, as in `recalibrate`.
      tx: the optax optimizer; with it, norms that it decays are found.
      replicated: each leaf of `variables` has an axis of devices in front, as `pmap` returns them. They are compared,
        and the first is examined. Batches have no such axis.

    Returns:
      A `Diagnosis`. `findings` are tuples `(path, code, severity, evidence, remedy)`, the worst first; `table()`,
      `to_json()` and `plot(path)` show them.

    Raises:
      ValueError: no batch; a model without norms; an argument that does not fit.

    >>> model = nn.Sequential([nn.Dense(2), nn.BatchNorm(use_running_average=True)])
    >>> batches = [jax.random.normal(jax.random.key(n), (32, 3)) for n in range(4)]
    >>> diagnosis = doctor(model, model.init(jax.random.key(0), batches[0]), batches)
    >>> [(found.path, found.code, found.severity) for found in diagnosis.findings]
    [('layers_1', 'never-updated', 'error'), ('layers_1', 'bias-before-norm', 'note')]
    """
    check_arguments(model, variables, call)
    Request.checked(batches, valid, None, "average", False)
    beside = []
    if replicated:
        check_replicated(named_leaves(variables)[0])
        params = named_leaves(variables.get("params", {}))[0]
        beside += of_replicas(params, State.of(variables.get("batch_stats", {})))
        variables = jax.tree.map(lambda leaf: leaf[0], variables)
    params = variables.get("params", {})
    if tx is not None:
        beside += of_optimizer(tx, params, norm_params_mask(params))
    state = State.of(variables.get("batch_stats", {}))

    def look(batch: Any) -> list[Norm]:
        found = [*_norms_of(model, variables, batch, call)]
        stateless = [path for path, kind, module, _, stats, _ in found if kind == "batch" and _lacks(module, stats)]
        if stateless:
            raise ValueError(
                f"`variables` has no running mean and variance for {stateless[0]!r}; give all variables, "
                "`{'params': ..., 'batch_stats': ...}`."
            )
        norms = [known(*norm) for norm in found]
        if not norms:
            raise_if_nothing_done("doctor", Report(), "The model has no norm of Flax or bnjax.")
        leaves, structure = named_leaves(variables)
        run = nn.apply(call, model, mutable=["batch_stats"])
        graph, _ = traced(run, {shown(path): leaf for path, leaf in leaves.items()}, structure, batch)
        look_around(graph, norms)
        return norms

    return examine(Subject(state, Passes(model, variables, state, call, "average"), look, valid, beside), batches)


def _lacks(module: Any, stats: Mapping[str, Any]) -> bool:
    """Whether a batch norm has no running state, but wants one: ours may want none."""
    return not stats and bool(getattr(module, "track_running_stats", True))


def _norms_of(model: nn.Module, variables: Mapping[str, Any], batch: Any, call: Call) -> Any:
    try:
        yield from norms_of(model, variables, batch, call)
    except ScopeParamShapeError as error:
        raise ValueError(
            "`variables` and a batch do not fit together. If the variables have an axis of devices in front, give "
            f"`replicated=True`. {error}"
        ) from error
