"""The command line: a config file first, then what overrides it. All errors come before any work."""

import dataclasses
import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.cli.errors import UserError
from experiments.cli.flags import new_folder, parse_flags, plain
from experiments.config import Config
from experiments.config.file import KINDS, load


def parse(arguments: Any, argv: Sequence[str], prog: str) -> Any:
    """An instance of the dataclass `arguments`, which has the fields `config`, `workdir` and `resume`.

    `--config FILE` is read first and gives the defaults, `--config.some.field=value` overrides them. With `--resume`
    and no `--config` the file is the `config.json` of `--workdir`. Without `--workdir` there is a new one in `runs/`.

    Raises:
      UserError: the config file or a value is not right.
      SystemExit: an argument that tyro does not understand (status 2), or `--help` (0).
    """
    path, rest = _take("--config", plain(arguments, argv))
    if "--resume" in rest and not _take("--workdir", rest)[0]:
        raise UserError("`--resume` needs `--workdir`, the folder of the run to continue.")
    if path is not None:
        config = load(path)
    elif {"--help", "-h"} & set(rest):
        config = Config()
    elif "--resume" in rest:
        config = load(f"{_take('--workdir', rest)[0]}/config.json")
    else:
        raise UserError("`--config` must name a config file; write, for example, `--config=configs/digits_cnn.py`.")
    about = f"{inspect.cleandoc(arguments.__doc__)}\n\n--config FILE is read first: {KINDS}."
    parsed = parse_flags(arguments, rest, prog, about, default=arguments(config=config))
    if parsed.workdir:
        return parsed
    return dataclasses.replace(parsed, workdir=new_folder(Path(str(path)).stem))


def _take(option: str, argv: Sequence[str]) -> tuple[str | None, list[str]]:
    """The value of `option VALUE` or `option=VALUE` (the last one given), and the arguments without it."""
    value, rest, given = None, [], list(argv)
    while given:
        word = given.pop(0)
        if word == option:
            if not given or given[0].startswith("-"):
                raise UserError(f"`{option}` must be followed by a value; write `{option}=...`.")
            value = given.pop(0)
        elif word.startswith(option + "="):
            value = word.removeprefix(option + "=")
        else:
            rest.append(word)
    return value, rest
