"""The layers of an unmodified linen model, for the conversion of weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from bnjax._core.state import named_leaves
from bnjax._lifecycle.context import ACTIVE
from bnjax._lifecycle.convert.layers import OWN, Seen
from bnjax._lifecycle.convert.model import Watch
from bnjax._lifecycle.convert.seen import (
    Noting,
    abstract,
    at_random,
    length_axes,
    norm_kind,
    on_device,
    out_axes,
    seen_by,
    settings_of,
)
from bnjax._lifecycle.graph import Graph
from bnjax._lifecycle.trees import shown
from bnjax._norms.weights import WEIGHT_NORM
from bnjax.linen._arguments import check_arguments
from bnjax.linen._recalibrate import Call
from bnjax.linen._twins import FLAX

KINDS: dict[type, str] = {
    nn.Conv: "conv", nn.ConvTranspose: "conv_transpose", nn.Dense: "dense", nn.DenseGeneral: "dense", nn.Embed: "embed",
    nn.PReLU: "prelu",
}  # fmt: skip


class LinenModel:
    """A model at evaluation.

    Args:
      model: an unmodified linen model.
      variables: all its variables, or their shapes.
      call: runs it.
    """

    def __init__(self, model: nn.Module, variables: Any, call: Call):
        check_arguments(model, variables, call, shapes=True)
        self._run = nn.apply(call, model, mutable=["batch_stats"])
        named, self._structure = named_leaves(variables)
        self._all = {shown(path): leaf for path, leaf in named.items()}
        self.leaves = {
            path: leaf for path, leaf in self._all.items() if path.split("/")[0] in ("params", "batch_stats")
        }

    def tree(self, leaves: Mapping[str, Any]) -> Any:
        """Variables with other values."""
        return self._structure.unflatten((self._all | dict(leaves)).values())

    def traced(self, example: Any) -> tuple[Graph, dict[str, int], dict[str, Seen]]:
        """The program of the model, tagged; its variables' values in it; its layers."""
        noting = _Tagging()

        def program(leaves: Any, example: Any) -> Any:
            return self._run(self._structure.unflatten(leaves), example)[0]

        # A key of its own, or `jit` would run what it has traced without tags.
        with nn.intercept_methods(noting), ACTIVE((*ACTIVE.value, "convert")):
            graph = Graph(jax.make_jaxpr(program)(list(self._all.values()), example))
        return graph, dict(zip(self._all, graph.inputs, strict=False)), noting.seen

    def watched(self, leaves: Mapping[str, Any], example: Any, watch: Watch) -> Any:
        """Runs it operation by operation; of loops, each step, and of `vmap`, each slice."""

        def look(method: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
            y = method(*args, **kwargs)
            if context.method_name == "__call__" and context.module.scope is not None:
                x = next(iter((*args, *kwargs.values())), None)
                seen_by(watch, "/".join(context.module.path), x, y)
            return y

        with nn.intercept_methods(look), jax.disable_jit():
            return self._run(self.tree(leaves), on_device(example))[0]


class _Tagging(Noting):
    """An interceptor that notes layers."""

    def __call__(self, method: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
        """A call of a module, noted if the module has variables of its own."""
        module = context.module
        if context.method_name != "__call__" or module.scope is None or module.is_initializing():
            return method(*args, **kwargs)
        path = "/".join(module.path)
        if isinstance(module, nn.WeightNorm | nn.SpectralNorm):
            self._wrapped(module)
        if leaves := _own(module):
            self.note(path, _seen(module, leaves, args, kwargs), leaves)
        return self.called(path, method, args, kwargs)

    def _wrapped(self, module: Any) -> None:
        """Notes the layer that a wrapper calls."""
        layer = module.layer_instance
        if leaves := _own(layer):
            seen = _seen(layer, leaves, (), {})
            length = module.variables.get("params", {}).get(f"{layer.name}/kernel/scale")
            if length is not None and _gives_length(module):
                leaves |= {"length": nn.unbox(length)}
                seen.length_axes = length_axes(module, np.ndim(leaves["kernel"]))
            seen.leaves = tuple(leaves)
            self.note("/".join(layer.path), seen, leaves, wrapped=True)


def _gives_length(module: Any) -> bool:
    """Whether a wrapper is weight norm, of Flax or ours, and none of those that extend it."""
    return isinstance(module, nn.WeightNorm) and getattr(module, "spec", WEIGHT_NORM) is WEIGHT_NORM


def _own(module: nn.Module) -> dict[str, Any]:
    """The variables that a module holds itself."""
    found: dict[str, Any] = {}
    for collection in ("params", "batch_stats"):
        for name, value in module.variables.get(collection, {}).items():
            if not isinstance(value, Mapping):
                found[name] = nn.unbox(value)
    length = {name for name in found if name.endswith("/kernel/scale")}
    return {name: value for name, value in found.items() if name not in length or not _gives_length(module)}


def _seen(module: nn.Module, leaves: Mapping[str, Any], args: Any, kwargs: Any) -> Seen:
    """A layer, described."""
    kind = next((kind for cls, kind in KINDS.items() if isinstance(module, cls)), None) or norm_kind(type(module), FLAX)
    seen = Seen(kind or OWN, type(module).__name__, tuple(leaves), settings_of(module), out_axes(module))
    seen.transposed = bool(getattr(module, "transpose_kernel", False))
    seen.settings["channels_moved"] = bool(args) and np.ndim(args[0]) > 3
    if seen.kind == OWN and set(leaves) == set(module.variables.get("params", {})):
        seen.probe = _probe(module, leaves, args, kwargs)
    return seen


def _probe(
    module: nn.Module, leaves: Mapping[str, Any], args: Any, kwargs: Any
) -> Callable[[Mapping[str, float]], Any]:
    """Computes a module by itself on numbers at random, with numbers in the place of its variables."""
    alone, shapes = module.clone(parent=None), {name: np.shape(value) for name, value in leaves.items()}
    args = abstract(args)

    def probe(values: Mapping[str, float]) -> Any:
        params = {name: jnp.full(shape, values.get(name, 1.0)) for name, shape in shapes.items()}
        return alone.apply({"params": params}, *at_random(args), **kwargs)

    return probe
