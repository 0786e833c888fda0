"""What is wrong with a Python file of the user's, and in which line."""

import re
import traceback
import typing
from pathlib import Path

from experiments.cli.errors import nearest, shown
from experiments.config.types import Config


def failure(error: BaseException, file: Path) -> str:
    """The end of a sentence: where and why a file fails."""
    return f"{_where(error, file)}: {_what(error)}"


def _where(error: BaseException, file: Path) -> str:
    if isinstance(error, SyntaxError) and error.lineno:
        return f" in line {error.lineno}"
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == str(file)]
    return f" in line {lines[-1]}" if lines else ""


def _what(error: BaseException) -> str:
    text = shown(f"{type(error).__name__}: {error}")
    unknown = re.search(r"(\w+)\.__init__\(\) got an unexpected keyword argument '(\w+)'", text)
    fields = _fields(Config, unknown[1]) if unknown else ()
    return f"`{unknown[1]}` has no `{unknown[2]}`. {nearest(unknown[2], fields)}" if unknown and fields else f"{text}."


def _fields(cls: type, name: str) -> tuple[str, ...]:
    """The fields of the dataclass called `name` in the tree under `cls`."""
    hints = typing.get_type_hints(cls) if hasattr(cls, "__dataclass_fields__") else {}
    if cls.__name__ == name:
        return tuple(hints)
    return next((found for h in hints.values() if isinstance(h, type) and (found := _fields(h, name))), ())
