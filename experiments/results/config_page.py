"""What the configs with a mark reach, from the committed numbers: a page, and the lines in the configs themselves."""

import hashlib
import json
import statistics
from pathlib import Path
from typing import NamedTuple

from experiments.cli.errors import UserError
from experiments.cli.schema import fields
from experiments.config import Config
from experiments.config.file import load
from experiments.results.evidence import Evidence
from experiments.results.markers import Markers
from experiments.results.tables import markdown

ROOT = Path(__file__).resolve().parents[2]
FILE = ROOT / "docs" / "results" / "configs.csv"  # of the committed numbers
COMMAND = "python -m experiments.marks"
LINES = Markers(f"`{COMMAND}` measured:\n\n", '"""')  # in the docstring of a config, at its end
LIMIT = 120  # seconds of CPU that a run may take
HEAD = (
    "config", "task", "data", "parameters", "guess", "mark", "accuracy", "without a norm", "CPU seconds", "seconds",
)  # fmt: skip
ABOUT = """\
# A config for each architecture

<!-- Made by `python -m experiments.docs --write`. -->

There is a config for each architecture of [the zoo](zoo.md), in a size that trains on a CPU. To train one of them:

```bash
python -m experiments.train --config=configs/digits_cnn.py
```

The *mark* stands in the config. It is the accuracy that a run should reach, and the last line of a run says whether it
did. *Guess* is the accuracy of a model that always gives the most frequent answer. Every mark is at least halfway from
there to 1. *Accuracy* is that of the held-out examples at the end of training: the median of three seeds, and in
brackets the least and the largest. *Without a norm* is the accuracy of one seed with `--config.model.norm=none`, and
nothing else changed.

"""
TIMES = f"""\
Both times are of the whole command, from its start to its end, with compilation, and the largest of the three runs.
*CPU seconds* are those that the cores worked, added up. Where they have nothing else to do, a run takes no longer.
*Seconds* are those on the clock, of a machine with {{cores}} cores that had other work, too.

To measure all of them again: `{COMMAND} --write`, and then `python -m experiments.docs --write`.
"""


class Accuracies(NamedTuple):
    """Of some seeds."""

    values: list[float]

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    def __str__(self) -> str:
        return f"{self.median:.4f} ({min(self.values):.4f} to {max(self.values):.4f})"


class Result(NamedTuple):
    """What was measured of a config.

    Attributes:
      accuracies: as the config is.
      without: the accuracy with no norm, of one seed.
      parameters: the number of weights.
      guess: the accuracy of the most frequent answer.
      seconds: that the longest of the runs as the config is took.
      cpu_seconds: that the cores worked for the one that took most of them, added up.
      cores: of the machine.
    """

    accuracies: Accuracies
    without: float
    parameters: int
    guess: float
    seconds: float
    cpu_seconds: float
    cores: int


def marked() -> dict[str, Config]:
    """By name, the configs of this repository that have a mark."""
    found = {file.stem: load(str(file)) for file in sorted((ROOT / "configs").glob("*.py"))}
    return {name: config for name, config in found.items() if config.mark is not None}


def digest(config: Config) -> str:
    """A short name of what is trained: of all values that are not the default. The mark is not among them."""
    usual = fields(Config())
    said = {n: v for n, v in fields(config).items() if v != usual[n] and n not in ("config.mark", "config.seed")}
    return hashlib.blake2b(json.dumps(said, sort_keys=True).encode(), digest_size=6).hexdigest()


def result_of(name: str, found: Evidence) -> Result:
    """What was measured of a config.

    Raises:
      UserError: it was not.
    """
    try:
        return _result(name, found)
    except LookupError as missing:
        raise UserError(
            f"`configs/{name}.py` is not measured yet; run `{COMMAND} --names={name} --write`."
        ) from missing


def _result(name: str, found: Evidence) -> Result:
    own, none = ({"config": name, "norm": norm} for norm in ("own", "none"))

    def number(metric: str) -> float:
        return max(found.by_seed(metric, own).values())

    return Result(
        Accuracies(list(found.by_seed("accuracy", own).values())),
        found.by_seed("accuracy", none)[0],
        int(number("parameters")),
        number("guess"),
        number("seconds"),
        number("cpu seconds"),
        int(number("cores")),
    )


def put_lines(page: str, name: str, config: Config, found: Evidence) -> str:
    """The text of a config, with what was measured in its docstring."""
    result = result_of(name, found)
    lines = (
        f"accuracy on the held-out examples: {result.accuracies}, of three seeds; the mark is {config.mark:g}",
        f"without a norm (`--config.model.norm=none`, seed 0): {result.without:.4f}",
        f"CPU time, compilation included: {result.cpu_seconds:.0f} s at most",
        f"time on the clock: {result.seconds:.0f} s at most, on a busy machine with {result.cores} cores",
    )
    return LINES.put(page, "".join(f"- {line}\n" for line in lines))


def page(configs: dict[str, Config], found: Evidence) -> str:
    """The page of all configs."""
    results = {name: result_of(name, found) for name in configs}
    rows = [_cells(name, config, results[name]) for name, config in configs.items()]
    cores = " or ".join(str(n) for n in sorted({result.cores for result in results.values()}))
    return f"{ABOUT}{markdown(HEAD, rows)}\n\n{TIMES.format(cores=cores)}"


def _cells(name: str, config: Config, result: Result) -> list[str]:
    return [
        f"`{name}`", config.task.replace("_", " "), config.data.name, f"{result.parameters:,}", f"{result.guess:.2f}",
        f"{config.mark:g}", str(result.accuracies), f"{result.without:.4f}", f"{result.cpu_seconds:.0f}",
        f"{result.seconds:.0f}",
    ]  # fmt: skip
