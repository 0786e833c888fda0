"""What is wrong with the norms of an unmodified nnx model: `doctor`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import jax
from flax import nnx

from bnjax._core.state import named_leaves
from bnjax._lifecycle.arguments import check_call
from bnjax._lifecycle.doctor.diagnosis import Diagnosis
from bnjax._lifecycle.doctor.examine import Subject, examine, of_optimizer, of_replicas
from bnjax._lifecycle.doctor.facts import Norm, known
from bnjax._lifecycle.doctor.replicas import check_replicated
from bnjax._lifecycle.doctor.surroundings import look_around
from bnjax._lifecycle.recalibrate import Request
from bnjax._lifecycle.report import Report, raise_if_nothing_done
from bnjax._lifecycle.trees import State
from bnjax.nnx._masks import norm_params_mask
from bnjax.nnx._recalibrate import Call, Passes, default_call
from bnjax.nnx._summary import norms_of
from bnjax.nnx._tagging import Parts
from bnjax.nnx._twins import check_model

LEARNED = (nnx.Param, nnx.BatchStat)


def doctor(
    model: nnx.Module,
    batches: Iterable[Any],
    *,
    call: Call = default_call,
    valid: Callable[[Any], Any] | None = None,
    tx: Any = None,
    replicated: bool = False,
) -> Diagnosis:
    """What is wrong with the norms of a model, how it is known, and what to do about it.

    Each batch goes through a copy of the model twice. Once all batch norms normalize by the batch, as in training: what
    they are given then is compared with their running statistics, so that a norm whose statistics are stale is blamed,
    and not what follows it. Once they normalize by the running statistics: how much the outputs differ is what
    evaluation is off by. Dropouts and biases before a norm are found in the traced program.

    Args:
      model: an unmodified nnx model; its norms are Flax's, subclasses of them, or ours. It stays as it is.
      batches: of what `call` takes, as large as in training; some ten are enough.
      call: `call(model, batch)` runs the model, a copy after `model.eval()`, such as `lambda m, b: m(b["image"])`.
      valid: `valid(batch)` is a bool array that says what counts, as in `recalibrate`.
      tx: the optax optimizer; with it, norms that it decays are found.
      replicated: each parameter and each statistic has an axis of devices in front, as `pmap` returns them. They are
        compared, and the first is examined. Batches have no such axis.

    Returns:
      A `Diagnosis`. `findings` are tuples `(path, code, severity, evidence, remedy)`, the worst first; `table()`,
      `to_json()` and `plot(path)` show them.

    Raises:
      ValueError: no batch; a model without norms; an argument that does not fit.

    >>> model = nnx.Sequential(nnx.Linear(3, 2, rngs=nnx.Rngs(0)), nnx.BatchNorm(2, rngs=nnx.Rngs(0)))
    >>> batches = [jax.random.normal(jax.random.key(n), (32, 3)) for n in range(4)]
    >>> [(found.path, found.code, found.severity) for found in doctor(model, batches).findings]
    [('layers/1', 'never-updated', 'error'), ('layers/1', 'bias-before-norm', 'note')]
    """
    check_model(model)
    check_call(call)
    Request.checked(batches, valid, None, "average", False)
    beside = []
    if replicated:
        check_replicated(named_leaves(nnx.state(model, LEARNED))[0])
        beside += of_replicas(named_leaves(nnx.state(model, nnx.Param))[0], State.of(nnx.state(model, nnx.BatchStat)))
        model = _first(model)
    if tx is not None:
        beside += of_optimizer(tx, nnx.state(model, nnx.Param), norm_params_mask(model))
    passes = Passes(model, call, "average")

    def look(batch: Any) -> list[Norm]:
        norms = [known(*norm) for norm in norms_of(model, batch, call)]
        if not norms:
            raise_if_nothing_done("doctor", Report(), "The model has no norm of Flax or bnjax.")
        graph, _ = Parts(model, call).traced(batch)
        look_around(graph, norms)
        return norms

    return examine(Subject(State.of(nnx.state(model, nnx.BatchStat)), passes, look, valid, beside), batches)


def _first(model: nnx.Module) -> Any:
    """The first of the replicas."""
    graphdef, own, rest = nnx.split(model, LEARNED, ...)  # type: ignore[misc]
    return nnx.merge(graphdef, jax.tree.map(lambda leaf: leaf[0], own), rest, copy=True)
