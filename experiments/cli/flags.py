"""Command lines, alike for all programs: a dataclass says what there is, and every form of a flag is taken.

`--write`, `--write=True` and `--no_write`; `--seeds=3` and `--seeds 3`; `--batch_sizes` and `--batch-sizes`; a list as
`--norms=none,batch` and as `--norms none batch`. A comma with a blank behind it belongs to a word.
"""

import dataclasses
import inspect
import re
import time
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import tyro

from experiments.cli.errors import UserError, shown
from experiments.cli.schema import rebuild

T = TypeVar("T")


def parse_flags(arguments: type[T], argv: Sequence[str], prog: str, about: str | None = None, default: Any = None) -> T:
    """An instance of the dataclass `arguments`, checked against its types; what is not given is that of `default`.

    Raises:
      UserError: a value that is not right.
      SystemExit: an argument that tyro does not understand (status 2), or `--help` (0).
    """
    parsed = tyro.cli(
        arguments,
        args=plain(arguments, argv),
        default=arguments() if default is None else default,
        prog=prog,
        description=inspect.cleandoc(about or arguments.__doc__ or ""),
        use_underscores=True,
    )
    return rebuild(parsed, "")


def new_folder(name: str) -> str:
    """Where a program of this name puts what it makes, if it is not told: a folder of the current time."""
    return f"runs/{name}-{time.strftime('%Y%m%d-%H%M%S')}"


def folder_of(workdir: str, resume: bool, name: str) -> Path:
    """The folder of what a program of this name makes: `workdir`, or a new one.

    Raises:
      UserError: something is to be continued, and nobody says where it is.
    """
    if resume and not workdir:
        raise UserError("`--resume` needs `--workdir`, the folder of what is continued.")
    return Path(workdir or new_folder(name))


def apart(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """The arguments of a program itself, and those behind `--`.

    >>> apart(["--processes=2", "--", "--config=a"])
    (['--processes=2'], ['--config=a'])
    """
    at = list(argv).index("--") if "--" in argv else len(argv)
    return list(argv[:at]), list(argv[at + 1 :])


def plain(arguments: type, argv: Sequence[str]) -> list[str]:
    """The arguments in the one form that tyro takes.

    >>> @dataclasses.dataclass
    ... class Arguments:
    ...     names: tuple[str, ...] = ()
    ...     write: bool = False
    >>> plain(Arguments, ["--names=a,b", "c", "--write=False"])
    ['--names', 'a', 'b', 'c', '--no_write']
    """
    kinds = _kinds(arguments)
    made: list[str] = []
    flag = ""
    kind: type = object
    for word in argv:
        value = word
        if word.startswith("--"):
            flag, given, value = word.partition("=")
            kind = kinds.get(flag[2:].replace("-", "_"), object)
            made.append(word if kind is object else flag)
            if kind is object or not given:
                continue
        if kind is tuple:
            made += [part for part in re.split(r",(?! )", value) if part]
        elif kind is bool:
            made[-1] = _switch(flag, value)
        else:
            made.append(word)
    return made


def _switch(name: str, value: str) -> str:
    if value.lower() not in ("true", "false"):
        raise UserError(f"`{name}` must be `True` or `False`, or stand alone, but it is {shown(value)!r}.")
    group, dot, last = name[2:].rpartition(".")
    return name if value.lower() == "true" else f"--{group}{dot}no_{last}"


def _kinds(arguments: type, path: str = "") -> dict[str, type]:
    """By the names of all flags, what is written there: a `tuple`, a `bool`, or anything else, an `object`."""
    found: dict[str, type] = {}
    for name, hint in typing.get_type_hints(arguments).items():
        kinds = {typing.get_origin(h) or h for h in _members(hint)}
        if dataclasses.is_dataclass(hint):
            found |= _kinds(typing.cast(type, hint), f"{path}{name}.")
        else:
            found[path + name] = tuple if tuple in kinds else bool if bool in kinds else object
    return found


def _members(hint: Any) -> tuple[Any, ...]:
    is_union = typing.get_origin(hint) in (types.UnionType, typing.Union)
    return typing.get_args(hint) if is_union else (hint,)
