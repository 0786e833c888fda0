"""Dataclasses out of plain values, checked against their types: wherever a config comes from, it passes here."""

import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

from experiments.cli.errors import UserError, nearest, short, shown

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Range:
    """The limits of a number, for `Annotated`; `low` and `high` belong to it, `above` and `below` do not.

    >>> print(Range(above=0, high=1))
    greater than 0 and at most 1
    """

    low: float = -math.inf
    high: float = math.inf
    above: float = -math.inf
    below: float = math.inf

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high and self.above < value < self.below

    def __str__(self) -> str:
        words = (
            ("at least", self.low), ("greater than", self.above), ("at most", self.high), ("less than", self.below),
        )  # fmt: skip
        return " and ".join(f"{word} {limit}" for word, limit in words if math.isfinite(limit))


Count = Annotated[int, Range(low=1, high=2**31 - 1)]  # what is counted on a device is an int32
LONGEST = 4096  # bytes of a text: the longest path of a file


def build(cls: type[T], values: Any, path: str = "config") -> T:
    """An instance of the dataclass `cls` from nested mappings; what is not given has its default.

    Raises:
      UserError: a key that `cls` has not, a value of the wrong type, not among the choices or out of range.

    >>> build(Range, {"low": 1})
    Range(low=1.0, high=inf, above=-inf, below=inf)
    """
    if dataclasses.is_dataclass(values) and not isinstance(values, type):
        values = vars(values)
    if not isinstance(values, Mapping):
        raise UserError(f"`{path}` must hold the fields of `{cls.__name__}`, but it is {short(values)}.")
    hints = typing.get_type_hints(cls, include_extras=True)
    for key in values:
        if key not in hints:
            raise UserError(f"`{path}` has no `{shown(str(key))}`. {nearest(str(key), hints)}")
    return cls(**{key: _value(hints[key], value, _join(path, key)) for key, value in values.items()})


def rebuild(config: T, path: str = "config") -> T:
    """`config` again, checked."""
    return build(type(config), config, path)


def choices(hint: Any) -> tuple[str, ...]:
    """The values of a `Literal`."""
    return typing.get_args(hint)


def fields(value: Any, path: str = "config") -> dict[str, Any]:
    """The values in a dataclass of dataclasses by their names in full.

    >>> fields(Range(low=0, high=1), "kept")
    {'kept.low': 0, 'kept.high': 1, 'kept.above': -inf, 'kept.below': inf}
    """
    if not dataclasses.is_dataclass(value):
        return {path: value}
    names = (f.name for f in dataclasses.fields(value))
    return {k: v for n in names for k, v in fields(getattr(value, n), f"{path}.{n}").items()}


def differences(a: Any, b: Any) -> list[str]:
    """The names of the fields in which two instances of a dataclass differ."""
    of_b = fields(b)
    return [name for name, value in fields(a).items() if value != of_b[name]]


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def _value(hint: Any, value: Any, path: str) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        return _in_range(_value(args[0], value, path), args[1:], path)
    if origin in (types.UnionType, typing.Union):
        if value is None and types.NoneType in args:
            return None
        (hint,) = (a for a in args if a is not types.NoneType)
        return _value(hint, value, path)
    if origin is Literal:
        if value not in args:
            valid = ", ".join(f"`{a}`" for a in args)
            raise UserError(f"`{path}` must be one of {valid}, but it is {short(value)}.")
        return value
    if origin is tuple:
        if args[-1] is Ellipsis and isinstance(value, list | tuple):
            args = args[:1] * len(value)
        if not isinstance(value, list | tuple) or len(value) != len(args):
            raise UserError(f"`{path}` must be {len(args)} values, but it is {short(value)}.")
        return tuple(_value(a, v, f"{path}[{i}]") for i, (a, v) in enumerate(zip(args, value, strict=True)))
    if dataclasses.is_dataclass(hint):
        return build(typing.cast(type, hint), value, path)
    return _plain(hint, value, path)


def _plain(kind: type, value: Any, path: str) -> Any:
    if kind is float and type(value) is int:  # in JSON, 1.0 may come back as 1
        try:
            return float(value)
        except OverflowError:
            return math.inf if value > 0 else -math.inf
    if type(value) is not kind:  # exactly: True is not a number here
        raise UserError(f"`{path}` must be of type `{kind.__name__}`, but it is {short(value)}.")
    if isinstance(value, str):
        _check_text(value, path)
    return value


def _check_text(text: str, path: str) -> None:
    """Texts are paths or end in files and messages, which hold UTF-8."""
    try:
        size = len(text.encode())
    except UnicodeEncodeError as error:
        raise UserError(f"`{path}` must be UTF-8, but it is {short(text)}.") from error
    if size > LONGEST or "\0" in text:
        raise UserError(f"`{path}` must have at most {LONGEST} bytes, none of them zero, but it is {short(text)}.")


def _in_range(value: Any, limits: tuple[Any, ...], path: str) -> Any:
    for limit in limits:
        if isinstance(limit, Range) and not (value in limit and abs(value) < math.inf):
            raise UserError(f"`{path}` must be {limit}, but it is {short(value)}.")
    return value
