"""How our constructors, which write out their arguments, call Flax's."""

import inspect
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

NO_METADATA: Mapping[str, Any] = MappingProxyType({})


def construct(init: Callable[..., None], arguments: Mapping[str, Any]) -> None:
    """Calls the constructor of the class that is extended with those of our arguments that it takes.

    Args:
      init: `super().__init__`.
      arguments: `locals()` at the first line of our constructor, where they are its arguments.
    """
    taken = inspect.signature(init).parameters
    init(**{name: value for name, value in arguments.items() if name in taken})


def first_given(*values: Any, error: str) -> Any:
    """The first of `values` that is not `None`.

    Raises:
      ValueError: `error`, where all are.
    """
    for value in values:
        if value is not None:
            return value
    raise ValueError(error)
