"""A table of the norms of an nnx model."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

from flax import nnx

from bnjax._lifecycle.report import Report, raise_if_nothing_done
from bnjax._lifecycle.summary import Summary, norm_row
from bnjax.nnx._recalibrate import Call, default_call
from bnjax.nnx._twins import check_model, class_of, derived, kind_of, modules_with_paths, set_class, variables


def summary(model: nnx.Module, example: Any, *, call: Call = default_call) -> Summary:
    """The norms of a model in a table: of all kinds, by Flax, by bnjax, and classes of somebody's own with a state.

    Nothing is computed; a copy of the model is traced in evaluation mode.

    Args:
      model: the model, which need not know bnjax. It is left alone.
      example: a batch, or its shapes.
      call: `call(model, example)` runs the model as for evaluation.

    Returns:
      A `Summary`: `.rows` has `path, kind, axis, momentum, axis_name, parameters, mean, var, called`; `str` is a table.

    Raises:
      ValueError: the model has no norm.

    >>> model = nnx.Sequential(nnx.Linear(3, 2, rngs=nnx.Rngs(0)), nnx.BatchNorm(2, rngs=nnx.Rngs(0)))
    >>> print(summary(model, jnp.ones((1, 3))))
    path      kind   axis  momentum  axis_name  parameters       mean    var
    --------  -----  ----  --------  ---------  ---------------  ------  ------
    layers/1  batch  -1    0.99                 bias 2, scale 2  0 to 0  1 to 1
    """
    rows = tuple(norm_row(*norm) for norm in norms_of(model, example, call))
    if not rows:
        raise_if_nothing_done("summary", Report(), "The model has no norm of Flax or bnjax.")
    return Summary(rows)


def norms_of(
    model: nnx.Module, example: Any, call: Call
) -> Iterator[tuple[str, str, Any, dict[str, Any], dict[str, Any], bool]]:
    """Path, kind, module, parameters and statistics of each norm, and whether it is called.

    Those that are called come in the order of the calls, then all others.
    """
    check_model(model)
    called, norms = calls_of(model, example, call), dict(_norms(model))
    for path in [*called, *(p for p in norms if p not in called)]:
        module = norms[path]
        parameters, stats = (
            {name: variable[...] for name, variable in sorted(variables(module, of).items())}
            for of in (nnx.Param, nnx.BatchStat)
        )
        cls = class_of(module)
        yield path, kind_of(cls) or cls.__name__, module, parameters, stats, path in called


def _norms(model: nnx.Module) -> list[tuple[str, nnx.Module]]:
    """The norms, and what else holds a mean and a variance, with their paths."""
    return [
        (path, module)
        for path, module in modules_with_paths(model)
        if kind_of(class_of(module)) is not None or {"mean", "var"} <= set(variables(module, nnx.BatchStat))
    ]


@dataclasses.dataclass(eq=False)
class _Calls:
    """The paths of what was called, in one trace, in this order."""

    paths: dict[str, None] = dataclasses.field(default_factory=dict)


@functools.cache
def _watched(cls: Any) -> Any:
    """A class whose calls are noted."""

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        self.calls.paths.setdefault(self.path_in_model)
        return cls.__call__(self, *args, **kwargs)

    return derived(cls, (cls,), {"__call__": call})


def calls_of(model: nnx.Module, example: Any, call: Call) -> list[str]:
    """The paths of the norms that a call reaches, in its order."""
    copy, calls = nnx.clone(model), _Calls()
    copy.eval()
    for path, module in _norms(copy):
        cls: Any = type(module)
        set_class(module, _watched(cls))
        module.calls, module.path_in_model = calls, path  # type: ignore[attr-defined]
    nnx.eval_shape(call, copy, example)
    return list(calls.paths)
