"""A table of the norms of a linen model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
from flax import linen as nn

from bnjax._core.state import named_leaves
from bnjax._lifecycle.report import Report, raise_if_nothing_done
from bnjax._lifecycle.summary import Summary, norm_row
from bnjax._lifecycle.trees import State
from bnjax.linen._recalibrate import Call, default_call
from bnjax.linen._twins import Twin, kind_of, raw


def summary(model: nn.Module, variables: Mapping[str, Any], example: Any, *, call: Call = default_call) -> Summary:
    """The norms of a model in a table: of all kinds, by Flax, by bnjax, and classes of somebody's own with a state.

    Nothing is computed; the model is traced.

    Args:
      model: the model, which need not know bnjax.
      variables: all its variables.
      example: a batch, or its shapes.
      call: `call(model, example)` runs the model as for evaluation.

    Returns:
      A `Summary`: `.rows` has `path, kind, axis, momentum, axis_name, parameters, mean, var, called`; `str` is a table.

    Raises:
      ValueError: the model has no norm.

    >>> model = nn.Sequential([nn.Dense(2), nn.BatchNorm(use_running_average=True)])
    >>> x = jnp.ones((1, 3))
    >>> print(summary(model, model.init(jax.random.key(0), x), x))
    path      kind   axis  momentum  axis_name  parameters       mean    var
    --------  -----  ----  --------  ---------  ---------------  ------  ------
    layers_1  batch  -1    0.99                 bias 2, scale 2  0 to 0  1 to 1
    """
    rows = tuple(norm_row(*norm) for norm in norms_of(model, variables, example, call))
    if not rows:
        raise_if_nothing_done("summary", Report(), "The model has no norm of Flax or bnjax.")
    return Summary(rows)


def norms_of(
    model: nn.Module, variables: Mapping[str, Any], example: Any, call: Call
) -> Iterator[tuple[str, str, Any, dict[str, Any], dict[str, Any], bool]]:
    """Path, kind, module, parameters and statistics of each norm, and whether it is called.

    Those that are called come in the order of the calls, then pairs of the state that nothing reaches.
    """
    seen: dict[str, tuple[str, nn.Module]] = {}

    def look(method: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
        module = context.module
        kind = kind_of(module, raw(context.orig_method))
        if module.scope is not None and not isinstance(module, Twin):
            path = "/".join(module.path)
            if kind is not None:
                seen[path] = kind, module
            seen.setdefault(path, (type(module).__name__, module))
        return method(*args, **kwargs)

    def run(variables: Any, example: Any) -> None:
        nn.apply(call, model, mutable=["batch_stats"])(variables, example)

    with nn.intercept_methods(look):
        jax.eval_shape(run, variables, example)
    params, stats = (named_leaves(variables.get(name, {}))[0] for name in ("params", "batch_stats"))
    pairs = State.of(variables.get("batch_stats", {})).pairs()
    kinds = {path: kind for path, (kind, module) in seen.items() if kind != type(module).__name__ or path in pairs}
    for path in [*kinds, *(p for p in pairs if p not in kinds)]:
        kind, module = seen.get(path, ("unknown", None))
        own = tuple(path.split("/")) if path else ()
        of_params, of_stats = ({p[-1]: t for p, t in leaves.items() if p[:-1] == own} for leaves in (params, stats))
        yield path, kind, module, of_params, of_stats, path in seen
