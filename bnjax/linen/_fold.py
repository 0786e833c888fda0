"""Batch norms folded into the layers before them, for linen."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
from flax import linen as nn

from bnjax._core.state import named_leaves
from bnjax._lifecycle.compare import compared, is_exact
from bnjax._lifecycle.fold import folded
from bnjax._lifecycle.pairs import Pairs
from bnjax._lifecycle.report import Report, Row, raise_if_nothing_done
from bnjax._lifecycle.trees import State, shown
from bnjax.linen._recalibrate import Call, default_call
from bnjax.linen._tagging import traced


def fold(
    model: nn.Module, variables: Mapping[str, Any], example: Any, *, call: Call = default_call
) -> tuple[Any, Report]:
    """Folds the batch norms of a model, as they are at evaluation, into the layers before them.

    For export, quantization and other runtimes. On a CPU under XLA it makes nothing faster: there the norm is fused
    into what follows. The model stays as it is; its folded norms change nothing, or add what no bias can.

    A norm is folded if nothing but reshapes, transposes and casts stands between it and a layer (`nn.Conv`,
    `nn.ConvTranspose`, `nn.ConvLocal`, `nn.Dense`, `nn.DenseGeneral`), if nothing else uses a value between the two,
    and if the kernel takes part in nothing but that layer's products. This is judged on the traced program, so that
    uses count which no module shows.

    Args:
      model: an unmodified linen model.
      variables: all its variables. They stay as they are.
      example: a batch. The outputs before and after are compared on it.
      call: `call(model, example)` runs the model as for evaluation.

    Returns:
      The variables, and a `Report`: what was folded into what, and why not. Its rows have the largest difference of the
      outputs, relative to the largest output, as `error`.

    Raises:
      ValueError: no norm could be folded; the outputs differ.

    >>> model = nn.Sequential([nn.Dense(2), nn.BatchNorm(use_running_average=True)])
    >>> x = jnp.ones((1, 3))
    >>> variables, report = fold(model, model.init(jax.random.key(0), x), x)
    >>> report["layers_1"].done, report["layers_1"].evidence["into"]
    (True, 'layers_0')
    """
    run = nn.apply(call, model, mutable=["batch_stats"])
    named, structure = named_leaves(variables)
    leaves = {shown(path): leaf for path, leaf in named.items()}
    graph, values = traced(run, leaves, structure, example)
    new, rows = folded(Pairs(graph, values), leaves)
    report = Report([*rows, *_not_called(variables, rows)])
    raise_if_nothing_done("fold", report, "Check that `call` runs the model as for evaluation.")
    out = structure.unflatten(new.values())
    with jax.default_matmul_precision("highest"):  # or an accelerator would round more than folding does
        before, after = (jax.jit(run)(v, example)[0] for v in (variables, out))
    return out, compared("fold", report, before, after, exact=is_exact(graph.dtypes))


def _not_called(variables: Mapping[str, Any], rows: list[Row]) -> list[Row]:
    state = State.of(variables.get("batch_stats", {}))
    called = {row.path for row in rows}
    pairs = [Row(path, "unknown", False, "no batch norm of Flax or bnjax was called there") for path in state.pairs()]
    return [row for row in (*pairs, *state.other_rows()) if row.path not in called]
