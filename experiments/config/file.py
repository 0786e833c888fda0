"""Config files: Python with `get_config()`, or the `config.json` of a run."""

import dataclasses
import json
import runpy
from pathlib import Path

from experiments.cli.errors import UserError, nearest, short
from experiments.cli.schema import build, rebuild
from experiments.config import Config
from experiments.config.failures import failure
from experiments.config.own import named

KINDS = "a Python file with `get_config()`, or the `config.json` of a run"


def load(path: str) -> Config:
    """The checked config of a Python file with `get_config()`, or of the `config.json` of a run."""
    file = Path(path)
    if file.suffix not in (".py", ".json"):
        raise UserError(f"`--config` must be {KINDS}, but it is `{path}`.{_beside(file)}")
    if not file.is_file():
        raise UserError(f"There is no config file `{path}`.{_beside(file)}")
    return _load_json(file) if file.suffix == ".json" else _load_python(file)


def _beside(file: Path) -> str:
    """What may have been meant: the configs in that folder, or else those that come with the program."""
    folder = file if file.is_dir() else file.parent
    others = _configs(folder) or _configs(Path("configs"))
    return f" {nearest(str(file), others)}" if others else ""


def _configs(folder: Path) -> list[str]:
    return sorted(str(f) for f in folder.glob("*.py") if b"def get_config(" in f.read_bytes())


def _load_json(file: Path) -> Config:
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"The config file `{file}` cannot be read: {error}.") from error
    return build(Config, values)


def _load_python(file: Path) -> Config:
    try:
        names = runpy.run_path(str(file))
        config = names["get_config"]() if "get_config" in names else None
    except (Exception, SystemExit) as error:
        raise UserError(f"The config file `{file}` fails{failure(error, file)}") from error
    if not isinstance(config, Config):
        came = "there is none" if config is None else f"it returns {short(config)}"
        raise UserError(f"`get_config()` of `{file}` must return an `experiments.config.Config`, but {came}.")
    return rebuild(named(config, names, file))


def to_json(config: Config) -> str:
    """The text of a `config.json`."""
    return json.dumps(dataclasses.asdict(config), indent=2) + "\n"
