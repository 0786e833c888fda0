"""Tags on the layers and norms of an unmodified nnx model, for one trace."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from bnjax._core.state import named_leaves
from bnjax._lifecycle.graph import Graph
from bnjax._lifecycle.tags import Tag, norm_tag, tag_leaves, tagged
from bnjax._lifecycle.trees import shown
from bnjax._norms.registry import NORMS
from bnjax.nnx._twins import derived, kind_of, modules_with_paths, owner_of, set_class

LAYERS = (nnx.Conv, nnx.ConvTranspose, nnx.Linear, nnx.LinearGeneral)
FOLDED = (nnx.Param, nnx.BatchStat)  # the types of variables that may change


class Parts:
    """A model at evaluation, taken apart.

    Args:
      model: which stays as it is.
      call: runs it.

    Attributes:
      leaves: the parameters and statistics by path.
    """

    def __init__(self, model: nnx.Module, call: Callable[[Any, Any], Any]):
        self._rest: Any
        self._copy, self._call = nnx.clone(model), call
        self._copy.eval()
        graphdef, state, self._rest = nnx.split(self._copy, FOLDED, ...)  # type: ignore[misc]
        self._jitted = jax.jit(functools.partial(self._run, graphdef))
        named, self._structure = named_leaves(state)
        self.leaves = {shown(path): leaf for path, leaf in named.items()}

    def state(self, leaves: Mapping[str, Any]) -> nnx.State:
        """Parameters and statistics with other values."""
        return self._structure.unflatten(leaves.values())

    def outputs(self, leaves: Mapping[str, Any], example: Any) -> Any:
        """What the model makes of an example, with other values."""
        return self._jitted(self.state(leaves), self._rest, example)

    def traced(self, example: Any) -> tuple[Graph, dict[str, int]]:
        """The program of the model, tagged, and the values of its variables in it by path."""
        tagged_copy = nnx.clone(self._copy)
        for path, module in modules_with_paths(tagged_copy):
            _tag_calls(module, path)
        run = functools.partial(self._run, nnx.graphdef(tagged_copy))

        def program(leaves: Any, rest: Any, example: Any) -> Any:
            return run(self._structure.unflatten(leaves), rest, example)

        graph = Graph(jax.make_jaxpr(program)(list(self.leaves.values()), self._rest, example))
        return graph, dict(zip(self.leaves, graph.inputs, strict=False))

    def _run(self, graphdef: Any, state: Any, rest: Any, example: Any) -> Any:
        return self._call(nnx.merge(graphdef, state, rest), example)


def _tag_calls(module: nnx.Module, path: str) -> None:
    """Has the calls of a layer, a norm or a dropout tagged."""
    cls = type(module)
    if kind_of(cls) == "batch":
        changed = _changed(cls, owner_of(cls), _norm_call)
    elif issubclass(cls, LAYERS):
        changed = _changed(cls, next(c for c in cls.__mro__ if c in LAYERS), _layer_call)
    elif issubclass(cls, nnx.Dropout):
        changed = _changed(cls, nnx.Dropout, _dropout_call)
    elif (kind := kind_of(cls)) is not None and not NORMS[kind].wraps:
        changed = _changed(cls, owner_of(cls), _other_norm_call)
    else:
        return
    set_class(module, changed)
    module.path_in_model = path  # type: ignore[attr-defined]


@functools.cache
def _changed(cls: Any, owner: Any, with_call: Callable[[Any], Any]) -> Any:
    """A class whose calls are tagged where they come to those of Flax's or our class, which it is or extends."""
    below = derived(owner, (owner,), {"__call__": with_call(owner)})
    return below if cls is owner else derived(cls, (cls, below), {})


def _leaves(module: Any, *names: str) -> None:
    """Names the variables of a module."""
    found = {name: getattr(module, name, None) for name in names}
    tag_leaves(module.path_in_model, {name: v[...] for name, v in found.items() if isinstance(v, nnx.Variable)})


def _layer_call(owner: Any) -> Any:
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        y = owner.__call__(self, *args, **kwargs)
        _leaves(self, "kernel", "bias")
        axis = -2 if getattr(self, "transpose_kernel", False) else -1
        made = getattr(self, "out_features", 1)
        features = 1 if isinstance(made, int | np.integer) else len(made)
        return tagged(y, Tag("layer", self.path_in_model, y.ndim, axis, features))

    return call


def _norm_call(owner: Any) -> Any:
    def call(self: Any, x: Any, use_running_average: bool | None = None, **kwargs: Any) -> Any:
        x = jnp.asarray(x)
        tag = norm_tag(self, self.path_in_model, x, use_running_average, kwargs)
        y = owner.__call__(self, tagged(x, tag), use_running_average, **kwargs)
        _leaves(self, "mean", "var", "scale", "bias")
        return tagged(y, tag._replace(role="norm_out", rank=y.ndim))

    return call


def _dropout_call(owner: Any) -> Any:
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        y = owner.__call__(self, *args, **kwargs)
        return tagged(y, Tag("dropout", self.path_in_model, y.ndim, rate=float(self.rate)))

    return call


def _other_norm_call(owner: Any) -> Any:
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        y = owner.__call__(self, *args, **kwargs)
        return tagged(y, Tag("other_norm_out", self.path_in_model, y.ndim))

    return call
