"""What a config names in a file of the user's own: `path/to/file.py:NAME`."""

import dataclasses
import functools
import importlib.util
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from experiments.cli.errors import UserError, chosen, short
from experiments.config.failures import failure
from experiments.config.types import Config, DataConfig, ModelConfig

T = TypeVar("T")


def chosen_or_own(known: Mapping[str, T], name: str, option: str) -> T:
    """What is known by a name that `option` gave, or what a file of the user's own calls so.

    Raises:
      UserError: nothing is known by that name, there is no such file, it fails, or it has no such name.
    """
    file, colon, attribute = name.rpartition(":")
    if not colon:
        return chosen(known, name, option, more="or `FILE.py:NAME`, what a file of yours calls so")
    found = vars(_module(Path(file), option))
    if attribute not in found:
        raise UserError(f"`{option}={name}`: the file `{file}` has no `{attribute}`.")
    return found[attribute]


def short_name(name: str) -> str:
    """What a picture calls what has this name in a config.

    >>> short_name("my/models.py:Net")
    'Net'
    """
    return name.rpartition(":")[2]


def called(function: Callable[..., T], argument: Any, name: str, option: str) -> T:
    """What a function gives, by the name that `option` gave it.

    Raises:
      UserError: one of the user's own fails.
    """
    file, colon, _ = name.rpartition(":")
    try:
        return function(argument)
    except Exception as error:
        if isinstance(error, UserError) or not colon:
            raise
        raise UserError(f"`{option}={name}` fails{failure(error, Path(file))}") from error


def named(config: Config, names: Mapping[str, Any], file: Path) -> Config:
    """A config in which what the file hands in itself stands by its name, as `FILE.py:NAME`.

    Raises:
      UserError: something that the file does not give a name to.
    """
    data, model = config.data, config.model
    if not (isinstance(data, DataConfig) and isinstance(model, ModelConfig)):  # said where the config is checked
        return config

    def name_of(value: Any, option: str) -> Any:
        if isinstance(value, str) or not (callable(value) or isinstance(value, tuple)):
            return value
        name = next((n for n, found in names.items() if found is value), None)
        if name is None:
            raise UserError(
                f"`{option}` is {short(value)}, which has no name of its own in `{file}`; define it there, outside of "
                "`get_config()`."
            )
        return f"{file.resolve()}:{name}"

    return dataclasses.replace(
        config,
        task=name_of(config.task, "config.task"),
        data=dataclasses.replace(data, name=name_of(data.name, "config.data.name")),
        model=dataclasses.replace(model, name=name_of(model.name, "config.model.name")),
    )


@functools.cache
def _module(file: Path, option: str) -> ModuleType:
    if not file.is_file():
        raise UserError(f"`{option}` names the file `{file}`, which is not there.")
    spec = importlib.util.spec_from_file_location(f"own.{file.stem}", file)
    if spec is None or spec.loader is None:
        raise UserError(f"`{option}` must name a Python file, but `{file}` is none.")
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise UserError(f"The file `{file}` of `{option}` fails{failure(error, file)}") from error
    return module
