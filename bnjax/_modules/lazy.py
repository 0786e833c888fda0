"""Names of a package that are imported when they are first asked for."""

import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any


def lazy_names(
    package: str, module: str, names: Sequence[str], present: Mapping[str, Any]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """`__getattr__` and `__dir__` of a package, some of whose names are in a module that is not imported with it.

    Args:
      package: its name.
      module: where the names are.
      names: of functions and classes.
      present: those that the package has anyhow: `globals()`.
    """

    def getattribute(name: str) -> Any:
        if name not in names:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(module), name)

    return getattribute, lambda: sorted({*present, *names})
