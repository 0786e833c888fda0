"""Norms by name, for nnx."""

import inspect
from typing import Any

from flax import nnx

from bnjax import nnx as family
from bnjax._registry import NormName, check_arguments, norm_named


def make_norm(name: NormName, /, *positional: Any, **arguments: Any) -> nnx.Module:
    """The module of that name.

    Modules that keep a running state take `use_running_average` at the call, all others do not:
    `bnjax.NORMS[name].takes_running_average`.

    Args:
      name: one of `bnjax.NORMS`.
      *positional: what the module takes first: the number of features, or the layer that it wraps.
      **arguments: of the module, `rngs` among them.

    Raises:
      ValueError: no such name (says the nearest), or an argument that the norm does not take (says which it takes).

    >>> make_norm("group", 8, num_groups=2, rngs=nnx.Rngs(0)).num_groups
    2
    """
    row = norm_named(name)
    module = getattr(family, row.module)
    check_arguments(name, arguments, inspect.signature(module.__init__).parameters.keys() - {"self"})
    return module(*positional, **(dict(row.arguments) | arguments))
