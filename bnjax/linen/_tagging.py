"""Tags on the layers and norms of an unmodified linen model, for one trace."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from flax import linen as nn

from bnjax._lifecycle.context import ACTIVE
from bnjax._lifecycle.graph import Graph
from bnjax._lifecycle.tags import Tag, norm_tag, tag_leaves, tagged
from bnjax._norms.registry import NORMS
from bnjax.linen._twins import kind_of, raw

LAYERS = {raw(cls.__call__) for cls in (nn.Conv, nn.ConvTranspose, nn.ConvLocal, nn.Dense, nn.DenseGeneral)}
DROPOUT = raw(nn.Dropout.__call__)


def traced(run: Callable[..., Any], leaves: Mapping[str, Any], structure: Any, example: Any) -> tuple[Graph, Any]:
    """The program of a model at evaluation, tagged, and the values of its variables in it by path."""

    def program(leaves: Any, example: Any) -> Any:
        return run(structure.unflatten(leaves), example)

    # A key of its own, or `jit` would run what it has traced without tags.
    with nn.intercept_methods(_tagging), ACTIVE((*ACTIVE.value, "fold")):
        graph = Graph(jax.make_jaxpr(program)(list(leaves.values()), example))
    return graph, dict(zip(leaves, graph.inputs, strict=False))


def _tagging(method: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
    module, function = context.module, raw(context.orig_method)
    if module.scope is None or module.is_initializing():
        return method(*args, **kwargs)
    if function in LAYERS:
        return _layer(module, method(*args, **kwargs))
    kind = kind_of(module, function)
    if kind == "batch":
        return _norm(module, method, args, dict(kwargs))
    y = method(*args, **kwargs)
    if function is DROPOUT:
        return tagged(y, Tag("dropout", "/".join(module.path), y.ndim, rate=float(module.rate)))
    if kind is not None and not NORMS[kind].wraps:
        return tagged(y, Tag("other_norm_out", "/".join(module.path), y.ndim))
    return y


def _leaves(module: nn.Module, *names: str) -> None:
    """Names the variables of a module."""
    found = {**module.variables.get("params", {}), **module.variables.get("batch_stats", {})}
    tag_leaves("/".join(module.path), {name: nn.unbox(found[name]) for name in names if name in found})


def _layer(module: Any, y: Any) -> Any:
    """The output of a layer, with its tag."""
    several = isinstance(module, nn.DenseGeneral) and not isinstance(module.features, int | np.integer)
    axis = -2 if isinstance(module, nn.ConvTranspose) and module.transpose_kernel else -1
    _leaves(module, "kernel", "bias")
    return tagged(y, Tag("layer", "/".join(module.path), y.ndim, axis, len(module.features) if several else 1))


def _norm(module: Any, method: Callable[..., Any], args: Any, kwargs: dict[str, Any]) -> Any:
    """The call of a norm, its input and its output with tags."""
    x, *rest = args or (kwargs.pop("x"),)
    x = jax.numpy.asarray(x)
    given = rest[0] if rest else kwargs.get("use_running_average")
    tag = norm_tag(module, "/".join(module.path), x, given, kwargs)
    y = method(tagged(x, tag), *rest, **kwargs)
    _leaves(module, "mean", "var", "scale", "bias")
    return tagged(y, tag._replace(role="norm_out", rank=y.ndim))
