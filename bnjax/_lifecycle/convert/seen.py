"""What linen and nnx say of a layer in the same words."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from bnjax._checks import canonical_axes
from bnjax._lifecycle.convert.layers import Seen
from bnjax._lifecycle.convert.model import Watch
from bnjax._lifecycle.tags import Tag, tag_leaves, tagged
from bnjax._norms.spec import Spec
from bnjax._unstable import is_traced

SETTINGS = ("epsilon", "momentum", "padding", "strides", "kernel_dilation", "num_groups")


def settings_of(module: Any) -> dict[str, Any]:
    """What a layer is set to, as far as PyTorch and Keras have the same."""
    found = {name: getattr(module, name) for name in SETTINGS if getattr(module, name, None) is not None}
    padding = found.get("padding")
    if padding is not None and not isinstance(padding, str):
        pairs = np.asarray(padding, dtype=object)
        rank = len(module.kernel_size) if isinstance(module.kernel_size, tuple | list) else 1
        both = [padding] * rank if pairs.ndim == 0 else list(padding)
        found["padding"] = tuple(tuple(p) if isinstance(p, tuple | list) else (p, p) for p in both)
    return found


def out_axes(module: Any) -> int:
    """How many axes of a kernel are features that the layer makes."""
    features = getattr(module, "features", getattr(module, "out_features", 1))
    return len(features) if isinstance(features, tuple | list) else 1


def length_axes(module: Any, rank: int) -> tuple[int, ...]:
    """The axes of a kernel that weight norm gives a length each."""
    axes = module.feature_axes
    return tuple(sorted(canonical_axes(() if axes is None else axes, rank, "feature_axes")))


class Noting:
    """Notes the layers of a trace, and names their variables, inputs and outputs in the program.

    Attributes:
      seen: the layers, in the order of their first calls.
    """

    def __init__(self) -> None:
        self.seen: dict[str, Seen] = {}
        self._within: list[str] = []  # the layers that are being called
        self._named: set[str] = set()  # those whose variables a wrapper has named

    def note(self, path: str, seen: Seen, leaves: Mapping[str, Any], *, wrapped: bool = False) -> None:
        """A layer and its variables. Those of a wrapped one are named before the wrapper computes others from them."""
        if wrapped or path not in self._named:
            # A loop traces its inside more than once, and keeps the last.
            self.seen.setdefault(path, seen)
            tag_leaves(path, leaves)
        self._named = self._named | {path} if wrapped else self._named - {path}

    def called(self, path: str, run: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """The call of a module; of one that is a layer, and calls the class it extends, the outer call counts."""
        if path in self._within or path not in self.seen:
            return run(*args, **kwargs)
        self._within.append(path)
        if args and isinstance(args[0], Array | np.ndarray):
            x = jnp.asarray(args[0])
            args = (tagged(x, Tag("layer_in", path, x.ndim)), *args[1:])
        y = run(*args, **kwargs)
        self._within.pop()
        return tagged(y, Tag("layer_out", path, y.ndim)) if isinstance(y, Array) else y


def norm_kind(cls: type, flax: Mapping[type, str]) -> str | None:
    """The name of the norm that a class is; or nothing."""
    spec = getattr(cls, "spec", None)
    if isinstance(spec, Spec):
        return spec.name
    return next((kind for base, kind in flax.items() if issubclass(cls, base)), None)


def abstract(args: Any) -> Any:
    """Shapes and dtypes in the place of arrays."""
    return jax.tree.map(lambda t: jax.ShapeDtypeStruct(t.shape, t.dtype) if hasattr(t, "shape") else t, args)


def at_random(args: Any) -> Any:
    """Numbers in the place of shapes."""
    rng = np.random.default_rng(0)

    def drawn(t: Any) -> Any:
        return jnp.asarray(rng.normal(size=t.shape), t.dtype) if isinstance(t, jax.ShapeDtypeStruct) else t

    return jax.tree.map(drawn, args)


def on_device(example: Any) -> Any:
    """Arrays of numpy as JAX's, which loops carry."""
    return jax.tree.map(lambda t: jnp.asarray(t) if isinstance(t, np.ndarray) else t, example)


def seen_by(watch: Watch, path: str, x: Any, y: Any) -> None:
    """Hands the input and the output of a layer to `watch`: now, or where a transformation computes them, then."""
    if is_traced(x) or is_traced(y):
        jax.debug.callback(functools.partial(watch, path), x, y)
    else:
        watch(path, x, y)
