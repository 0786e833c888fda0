"""Batch norms folded into the layers before them, for nnx."""

from __future__ import annotations

from typing import Any

import jax
from flax import nnx

from bnjax._lifecycle.compare import compared, is_exact
from bnjax._lifecycle.fold import folded
from bnjax._lifecycle.pairs import Pairs
from bnjax._lifecycle.refusals import NOT_CALLED, NOT_FOLDED, foreign
from bnjax._lifecycle.report import Report, Row, raise_if_nothing_done
from bnjax._lifecycle.trees import State
from bnjax.nnx._recalibrate import Call, default_call
from bnjax.nnx._tagging import Parts
from bnjax.nnx._twins import check_model, class_of, cut_off, kind_of, modules_with_paths


def fold(model: nnx.Module, example: Any, *, call: Call = default_call) -> tuple[Any, Report]:
    """Folds the batch norms of a model, as they are at evaluation, into the layers before them.

    For export, quantization and other runtimes. On a CPU under XLA it makes nothing faster: there the norm is fused
    into what follows. The copy has the modules of the model; its folded norms change nothing, or add what no bias can.

    A norm is folded if nothing but reshapes, transposes and casts stands between it and a layer (`nnx.Conv`,
    `nnx.ConvTranspose`, `nnx.Linear`, `nnx.LinearGeneral`), if nothing else uses a value between the two, and if the
    kernel takes part in nothing but that layer's products. This is judged on the traced program, so that uses count
    which no module shows.

    Args:
      model: an unmodified nnx model. It stays as it is.
      example: a batch. The outputs before and after are compared on it.
      call: `call(model, example)` runs the model, a copy after `model.eval()`.

    Returns:
      A copy of the model with other values, and a `Report`: what was folded into what, and why not. Its rows have the
      largest difference of the outputs, relative to the largest output, as `error`.

    Raises:
      ValueError: no norm could be folded; the outputs differ.

    >>> rngs = nnx.Rngs(0)
    >>> model = nnx.Sequential(nnx.Linear(3, 2, rngs=rngs), nnx.BatchNorm(2, rngs=rngs))
    >>> copy, report = fold(model, jnp.ones((1, 3)))
    >>> report["layers/1"].done, report["layers/1"].evidence["into"]
    (True, 'layers/0')
    """
    check_model(model)
    parts = Parts(model, call)
    graph, values = parts.traced(example)
    new, rows = folded(Pairs(graph, values), parts.leaves)
    report = Report([*rows, *_not_called(model, {row.path for row in rows})])
    raise_if_nothing_done("fold", report, "Check that `call` reaches the norms.")
    copy = nnx.clone(model)
    nnx.update(copy, parts.state(new))
    with jax.default_matmul_precision("highest"):  # or an accelerator would round more than folding does
        before, after = parts.outputs(parts.leaves, example), parts.outputs(new, example)
    return copy, compared("fold", report, before, after, exact=is_exact(graph.dtypes))


def _not_called(model: nnx.Module, called: set[str]) -> list[Row]:
    """What else the state has."""
    state = State.of(nnx.state(model, nnx.BatchStat))
    classes: dict[str, Any] = {path: class_of(module) for path, module in modules_with_paths(model)}
    rows = []
    for path in state.pairs():
        cls = classes[path]
        kind = kind_of(cls)
        why = foreign(cls.__name__) if kind is None else NOT_FOLDED if kind != "batch" else cut_off(cls) or NOT_CALLED
        rows.append(Row(path, kind or cls.__name__, False, why))
    return [row for row in (*rows, *state.other_rows()) if row.path not in called]
