"""How our constructors, whose arguments are written out, hand on to Flax's."""

import inspect
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from flax.nnx.nn.dtypes import promote_dtype as promote_dtype
from flax.typing import PromoteDtypeFn as PromoteDtypeFn

NO_METADATA: Mapping[str, Any] = MappingProxyType({})


def construct(init: Callable[..., None], arguments: Mapping[str, Any]) -> None:
    """Calls the constructor of the class that is extended with those of our arguments that it takes.

    Args:
      init: `super().__init__`.
      arguments: `locals()` at the first line of our constructor, where they are its arguments.
    """
    taken = inspect.signature(init).parameters
    init(**{name: value for name, value in arguments.items() if name in taken})
