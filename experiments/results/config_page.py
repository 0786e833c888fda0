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
REACHED = ("config", "mark", "median", "least", "largest", "without a norm", "CPU seconds", "seconds")
LEARNED = ("config", "task", "data", "parameters", "chance", "most frequent")
PAGE = f"""\
# A config for each architecture

<!-- Made by `python -m experiments.docs --write`. -->

There is a config for each architecture of [the zoo](zoo.md), in a size that trains on a CPU. To train one of them:

```bash
python -m experiments.train --config=configs/digits_cnn.py
```

## What they reach

The *mark* stands in the config. It is the accuracy that a run should reach, and the last line of a run says whether it
did. Beside it is the accuracy on the held-out examples at the end of training, of three seeds: the *median*, the
*least* and the *largest*. *Without a norm* is that of seed 0 with `--config.model.norm=none`, and nothing else changed.

{{reached}}

Both times are of the whole command, from its start to its end, with compilation, and the largest of the three runs.
*CPU seconds* are those that the cores worked, added up. Where they have nothing else to do, a run takes no longer.
*Seconds* are those on the clock, of a machine with {{cores}} cores that had other work, too.

## What they learn

Every mark is at least halfway from *chance*, the accuracy of a guess at random, to 1. *Most frequent* is the accuracy
of the one answer that is right most often: in text, the blank.

{{learned}}

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
      chance: the accuracy of a guess at random.
      frequent: the accuracy of the answer that is the most frequent one.
      seconds: that the longest of the runs as the config is took.
      cpu_seconds: that the cores worked for the one that took most of them, added up.
      cores: of the machine.
    """

    accuracies: Accuracies
    without: float
    parameters: int
    chance: float
    frequent: float
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
        number("chance"),
        number("most frequent"),
        number("seconds"),
        number("cpu seconds"),
        int(number("cores")),
    )


def put_lines(page: str, name: str, config: Config, found: Evidence) -> str:
    """The text of a config, with what was measured in its docstring."""
    result = result_of(name, found)
    lines = (
        f"median accuracy of three seeds, held-out examples: {result.accuracies}; the mark is {config.mark:g}",
        f"without a norm (`--config.model.norm=none`, seed 0): {result.without:.4f}",
        f"CPU time, compilation included: {result.cpu_seconds:.0f} s at most",
        f"time on the clock: {result.seconds:.0f} s at most, on a busy machine with {result.cores} cores",
    )
    return LINES.put(page, "".join(f"- {line}\n" for line in lines))


def page(configs: dict[str, Config], found: Evidence) -> str:
    """The page of all configs."""
    results = {name: result_of(name, found) for name in configs}
    reached = [_reached(name, config, results[name]) for name, config in configs.items()]
    learned = [_learned(name, config, results[name]) for name, config in configs.items()]
    return PAGE.format(
        reached=markdown(REACHED, reached, numbers=True),
        learned=markdown(LEARNED, learned),
        cores=" or ".join(str(n) for n in sorted({result.cores for result in results.values()})),
    )


def _reached(name: str, config: Config, result: Result) -> list[str]:
    values = result.accuracies.values
    figures = (result.accuracies.median, min(values), max(values), result.without)
    times = (result.cpu_seconds, result.seconds)
    return [f"`{name}`", f"{config.mark:g}", *(f"{v:.4f}" for v in figures), *(f"{t:.0f}" for t in times)]


def _learned(name: str, config: Config, result: Result) -> list[str]:
    task = config.task.replace("_", " ")
    figures = (f"{result.parameters:,}", f"{result.chance:.2f}", f"{result.frequent:.2f}")
    return [f"`{name}`", task, config.data.name, *figures]
