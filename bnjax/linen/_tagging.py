"""Tags on the layers and norms of an unmodified linen model, for one trace."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from flax import linen as nn

from bnjax._checks import canonical_axes
from bnjax._core.state import named_leaves
from bnjax._lifecycle.graph import Graph
from bnjax._lifecycle.tags import Tag, tagged
from bnjax._lifecycle.trees import shown
from bnjax.linen._twins import kind_of, raw

LAYERS = {raw(cls.__call__) for cls in (nn.Conv, nn.ConvTranspose, nn.ConvLocal, nn.Dense, nn.DenseGeneral)}


def traced(model: nn.Module, variables: Mapping[str, Any], example: Any, call: Any) -> tuple[Graph, dict[str, int]]:
    """The program of a model at evaluation, tagged, and the values of the variables in it by path."""
    with nn.intercept_methods(_tagging):
        closed = jax.make_jaxpr(nn.apply(call, model))(variables, example)
    graph = Graph(closed)
    paths = map(shown, named_leaves(variables)[0])
    return graph, dict(zip(paths, graph.inputs, strict=False))


def _tagging(method: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
    module, function = context.module, raw(context.orig_method)
    if module.scope is None:
        return method(*args, **kwargs)
    if function in LAYERS:
        return _layer(module, method(*args, **kwargs))
    if kind_of(module, function) == "batch":
        return _norm(module, method, args, dict(kwargs))
    return method(*args, **kwargs)


def _layer(module: Any, y: Any) -> Any:
    """The output of a layer, with its tag."""
    several = isinstance(module, nn.DenseGeneral) and not isinstance(module.features, int | np.integer)
    axis = -2 if isinstance(module, nn.ConvTranspose) and module.transpose_kernel else -1
    return tagged(y, Tag("layer", "/".join(module.path), y.ndim, axis, len(module.features) if several else 1))


def _norm(module: Any, method: Callable[..., Any], args: Any, kwargs: dict[str, Any]) -> Any:
    """The call of a norm, its input and its output with tags."""
    x, *rest = args or (kwargs.pop("x"),)
    x = jax.numpy.asarray(x)
    given = rest[0] if rest else kwargs.get("use_running_average")
    average = module.use_running_average if given is None else given
    axes = canonical_axes(module.axis, x.ndim)
    axis = axes[0] if len(axes) == 1 else None
    tag = Tag("norm_in", "/".join(module.path), x.ndim, axis, 1, float(module.epsilon), not average)
    y = method(tagged(x, tag), *rest, **kwargs)
    return tagged(y, tag._replace(role="norm_out"))
