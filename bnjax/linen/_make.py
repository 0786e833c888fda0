"""Norms by name, for linen."""

import dataclasses
from functools import partial
from typing import Any

from flax import linen as nn

from bnjax import linen
from bnjax._registry import NormName, check_arguments, norm_named


def make_norm(name: NormName, /, **arguments: Any) -> partial[nn.Module]:
    """The constructor of the module of that name, its arguments filled in.

    Modules that keep a running state take `use_running_average` at the call, all others do not:
    `bnjax.NORMS[name].takes_running_average`.

    Args:
      name: one of `bnjax.NORMS`.
      **arguments: attributes of the module.

    Raises:
      ValueError: no such name (says the nearest), or an argument that the norm does not take (says which it takes).

    >>> norm = make_norm("group", num_groups=2)
    >>> norm(name="norm1").num_groups
    2
    """
    row = norm_named(name)
    module = getattr(linen, row.module)
    check_arguments(name, arguments, {f.name for f in dataclasses.fields(module)} - {"parent"})
    return partial(module, **(dict(row.arguments) | arguments))
