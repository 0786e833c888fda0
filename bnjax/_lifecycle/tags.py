"""Names on values, by which a traced program tells where layers and norms begin and end.

A name given by `checkpoint_name` survives `jit`, `scan` and `remat`, and changes no number. Under `vmap` the value that
gets it has the mapped axis in front.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array
from jax.ad_checkpoint import checkpoint_name
from jax.custom_batching import custom_vmap

from bnjax._checks import canonical_axes

_PREFIX = "bnjax:"


class Tag(NamedTuple):
    """What a value is.

    Attributes:
      role: `"layer"`, a layer's output; `"norm_in"` and `"norm_out"`, a batch norm's input and output;
        `"other_norm_out"`, that of another norm of activations; `"dropout"`, the output of one; `"leaf"`, a variable as
        its module sees it, to which nothing is done.
      path: of the module.
      rank: of the value where it was named; the axes of `vmap` come before.
      axis: of a norm, its feature axis, none where there are several; of a layer, the axis of its kernel, from the
        right, that the last axis of its output is.
      features: of a layer, how many axes of its output are features.
      epsilon: of a norm.
      why: a norm cannot be folded.
      dtype: of the value.
      leaf: the name of the variable.
      rate: of a dropout.
    """

    role: str
    path: str
    rank: int
    axis: int | None = None
    features: int = 1
    epsilon: float = 0.0
    why: str = ""
    dtype: str = ""
    leaf: str = ""
    rate: float = 0.0


def tagged(x: Array, tag: Tag) -> Array:
    """`x` with a name."""

    @custom_vmap
    def named(x: Array) -> Array:
        return checkpoint_name(x, _PREFIX + json.dumps(tag._replace(dtype=str(x.dtype))))

    @named.def_vmap
    def mapped(size: int, in_batched: Any, x: Array) -> tuple[Array, bool]:
        return tagged(x, tag), True  # JAX moves the mapped axis to the front

    return named(x)


def tag_leaves(path: str, leaves: Mapping[str, Any]) -> None:
    """Names the variables of a module; those that are nothing are left out."""
    for name, value in leaves.items():
        if value is not None:
            value = jnp.asarray(value)
            tagged(value, Tag("leaf", path, value.ndim, leaf=name))


def norm_tag(module: Any, path: str, x: Array, average: bool | None, arguments: Mapping[str, Any]) -> Tag:
    """The tag of the input of a batch norm.

    Args:
      module: the norm.
      path: its path.
      x: its input.
      average: `use_running_average` as it is given at the call.
      arguments: the others of the call, by name.
    """
    axes = canonical_axes(module.axis, x.ndim)
    average = module.use_running_average if average is None else average
    why = ""
    if not average or not getattr(module, "track_running_stats", True):
        why = "it normalizes by the batch"
    elif arguments.get("scale") is not None:
        why = "its scale is given at the call"
    axis = axes[0] if len(axes) == 1 else None
    return Tag("norm_in", path, x.ndim, axis, epsilon=float(module.epsilon), why=why)


def tag_of(primitive: str, params: Any) -> Tag | None:
    """The tag that an operation of a program puts on a value, if it does that."""
    name = str(params["name"]) if primitive == "name" else ""
    return Tag(*json.loads(name.removeprefix(_PREFIX))) if name.startswith(_PREFIX) else None
