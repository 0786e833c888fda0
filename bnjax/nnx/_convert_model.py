"""The layers of an unmodified nnx model, for the conversion of weights."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from bnjax._core.state import named_leaves
from bnjax._lifecycle.arguments import check_call
from bnjax._lifecycle.convert.layers import OWN, Seen
from bnjax._lifecycle.convert.model import Watch
from bnjax._lifecycle.convert.seen import (
    Noting,
    abstract,
    at_random,
    length_axes,
    on_device,
    out_axes,
    seen_by,
    settings_of,
)
from bnjax._lifecycle.graph import Graph
from bnjax._lifecycle.trees import shown
from bnjax._norms.weights import WEIGHT_NORM
from bnjax.nnx._recalibrate import Call
from bnjax.nnx._twins import check_model, class_of, derived, kind_of, modules_with_paths, set_class, variables

KINDS: dict[type, str] = {
    nnx.Conv: "conv", nnx.ConvTranspose: "conv_transpose", nnx.Linear: "dense", nnx.LinearGeneral: "dense",
    nnx.Embed: "embed", nnx.PReLU: "prelu",
}  # fmt: skip
WRAPPERS = (nnx.WeightNorm, nnx.SpectralNorm)
CONVERTED = (nnx.Param, nnx.BatchStat)
Called = Callable[[nnx.Module, str, Callable[..., Any], Any, Any], Any]
_calls: ContextVar[Called] = ContextVar("calls")


def _is_converted(path: Any, value: Any) -> bool:
    """Parameters and statistics; the lengths of weight norm, which some releases of Flax hold as plain arrays."""
    if hasattr(value, "type"):
        return issubclass(value.type, CONVERTED)
    return isinstance(value, CONVERTED) or (not isinstance(value, nnx.Variable) and "scales" in path)


class NnxModel:
    """A model at evaluation.

    Args:
      model: which stays as it is.
      call: runs it.
    """

    def __init__(self, model: nnx.Module, call: Call):
        check_model(model)
        check_call(call)
        copy, self._call = nnx.clone(model), call
        copy.eval()
        for path, module in modules_with_paths(copy):
            if variables(module, nnx.Param) or variables(module, nnx.BatchStat) or isinstance(module, WRAPPERS):
                set_class(module, _noted(class_of(module)))
                module.path_in_model = path  # type: ignore[attr-defined]
        self._graphdef: Any
        self._rest: Any
        self._graphdef, state, self._rest = nnx.split(copy, _is_converted, ...)  # type: ignore[misc]
        named, self._structure = named_leaves(state)
        self.leaves = {shown(path): leaf for path, leaf in named.items()}

    def state(self, leaves: Mapping[str, Any]) -> nnx.State:
        """Parameters and statistics with other values."""
        return self._structure.unflatten(leaves.values())

    def traced(self, example: Any) -> tuple[Graph, dict[str, int], dict[str, Seen]]:
        """The program of the model, tagged; its variables' values in it; its layers."""
        noting = _Tagging()
        with _calling(noting):
            graph = Graph(jax.make_jaxpr(self._program)(list(self.leaves.values()), self._rest, example))
        return graph, dict(zip(self.leaves, graph.inputs, strict=False)), noting.seen

    def watched(self, leaves: Mapping[str, Any], example: Any, watch: Watch) -> Any:
        """Runs it operation by operation; of loops, each step, and of `vmap`, each slice."""

        def look(module: nnx.Module, path: str, run: Callable[..., Any], args: Any, kwargs: Any) -> Any:
            y = run(*args, **kwargs)
            x = next(iter((*args, *kwargs.values())), None)
            seen_by(watch, path, x, y)
            return y

        with _calling(look), jax.disable_jit():
            return self._program(list(leaves.values()), self._rest, on_device(example))

    def _program(self, leaves: list[Any], rest: Any, example: Any) -> Any:
        model = nnx.merge(self._graphdef, self._structure.unflatten(leaves), rest)
        return self._call(model, example)


@contextlib.contextmanager
def _calling(called: Called) -> Iterator[None]:
    """While this holds, `called` gets the calls of layers."""
    token = _calls.set(called)
    try:
        yield
    finally:
        _calls.reset(token)


@functools.cache
def _noted(cls: Any) -> Any:
    """A class whose calls are noted."""

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        return _calls.get()(self, self.path_in_model, functools.partial(cls.__call__, self), args, kwargs)

    return derived(cls, (cls,), {"__call__": call, "_bnjax_noted": cls})


class _Tagging(Noting):
    """Notes layers."""

    def __call__(self, module: Any, path: str, run: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """A call of a module, noted if the module has variables of its own."""
        if isinstance(module, WRAPPERS):
            self._wrapped(module)
        if leaves := _own(module):
            self.note(path, _seen(module, leaves, args, kwargs), leaves)
        return self.called(path, run, args, kwargs)

    def _wrapped(self, module: Any) -> None:
        """Notes the layer that a wrapper calls."""
        layer = module.layer_instance
        if leaves := _own(layer):
            seen = _seen(layer, leaves, (), {})
            length = (getattr(module, "scales", None) or {}).get(("kernel",))
            if length is not None and getattr(module, "spec", WEIGHT_NORM) is WEIGHT_NORM:
                leaves |= {"length": length[...]}
                seen.length_axes = length_axes(module, np.ndim(leaves["kernel"]))
            seen.leaves = tuple(leaves)
            self.note(layer.path_in_model, seen, leaves, wrapped=True)


def _own(module: nnx.Module) -> dict[str, Any]:
    """The variables that a module holds itself."""
    return {name: v[...] for of in CONVERTED for name, v in variables(module, of).items() if v.get_value() is not None}


def _seen(module: Any, leaves: Mapping[str, Any], args: Any, kwargs: Any) -> Seen:
    """A layer, described."""
    cls = type(module)._bnjax_noted
    kind = next((kind for base, kind in KINDS.items() if issubclass(cls, base)), None) or kind_of(cls)
    seen = Seen(kind or OWN, cls.__name__, tuple(leaves), settings_of(module), out_axes(module))
    seen.transposed = bool(getattr(module, "transpose_kernel", False))
    seen.settings["channels_moved"] = bool(args) and np.ndim(args[0]) > 3
    if seen.kind == OWN:
        seen.probe = _probe(module, cls, leaves, args, kwargs)
    return seen


def _probe(
    module: nnx.Module, cls: Any, leaves: Mapping[str, Any], args: Any, kwargs: Any
) -> Callable[[Mapping[str, float]], Any]:
    """Computes a module by itself on numbers at random, with numbers in the place of its variables."""
    graphdef, state = nnx.split(module)
    shapes, args = {name: np.shape(value) for name, value in leaves.items()}, abstract(args)
    state = abstract(state)

    def probe(values: Mapping[str, float]) -> Any:
        alone = nnx.merge(graphdef, at_random(state))
        for name, shape in shapes.items():
            getattr(alone, name).set_value(jnp.full(shape, values.get(name, 1.0)))
        return cls.__call__(alone, *at_random(args), **kwargs)

    return probe
