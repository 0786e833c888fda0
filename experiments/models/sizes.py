"""Sizes of an architecture by name: the published ones, and a small one for a CPU."""

from collections.abc import Mapping
from typing import Any

Sizes = Mapping[str, Mapping[str, Any]]


def sized(sizes: Sizes, size: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The attributes of a size, with those given in their place; what is given as None is not given.

    Raises:
      ValueError: no such size.

    >>> sized({"small": {"width": 8, "depth": 2}}, "small", {"width": 16, "depth": None})
    {'width': 16, 'depth': 2}
    """
    if size not in sizes:
        raise ValueError(f"`size` must be one of {', '.join(sizes)}, but it is {size!r}.")
    return {**sizes[size], **{name: value for name, value in given.items() if value is not None}}
