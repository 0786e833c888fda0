"""Trains many experiments: `python -m experiments.sweep --grid config.model.norm=none,batch -- --config=FILE`.

What comes after `--` are arguments of `experiments.train` for all runs. The runs are every combination of the values in
`--grid`, and with `--runs FILE` every line of that file, which holds further arguments of `experiments.train`.
Interrupted, the same command goes on with `--workdir` and `--resume`; what is finished is not run again.
"""

import csv
import dataclasses
import hashlib
import io
import itertools
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from experiments.cli.errors import UserError, nearest, shown
from experiments.cli.flags import apart, folder_of, parse_flags
from experiments.cli.program import run_main
from experiments.cli.report import Report, reporting
from experiments.cli.schema import Range, fields
from experiments.config import Config
from experiments.config.arguments import parse
from experiments.results.files import write_text
from experiments.results.records import read_metrics
from experiments.results.summary import mean_and_deviation
from experiments.results.tables import Table
from experiments.training import cluster
from experiments.training.jobs import Job

SEED = "config.seed"
LONGEST_NAME = 100  # of a folder


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Train many experiments. The sweep's folder gets a folder for each run, and table.csv."""

    grid: tuple[str, ...] = ()
    """Fields and their values, as `config.model.norm=none,batch config.seed=0,1,2`."""
    runs: str = ""
    """A file with a run in every line: arguments of `experiments.train`."""
    where: cluster.Where = "here"
    """`here`: processes of this machine. `slurm`: a cluster; `local`: submitit without a cluster."""
    at_once: Annotated[int, Range(low=1, high=1000)] = 1
    """How many runs at a time, on this machine or on the cluster."""
    slurm: cluster.Slurm = dataclasses.field(default_factory=cluster.Slurm)
    workdir: str = ""
    """The sweep's folder; a new one under `runs/` by default."""
    resume: bool = False
    """Keep what is finished in `workdir`, and continue."""


@dataclasses.dataclass(frozen=True)
class Line:
    """What a line may hold."""

    config: Config
    workdir: str = ""
    resume: bool = False


def main(argv: Sequence[str]) -> int:
    own, common = apart(argv)
    if own_of_runs := [word for word in own if word.startswith("--config")]:
        raise UserError(f"`{shown(own_of_runs[0])}` is an argument of all runs; write it behind `--`.")
    arguments = parse_flags(Arguments, own, "python -m experiments.sweep", __doc__)
    cluster.check(arguments.where)
    workdir = folder_of(arguments.workdir, arguments.resume, "sweep")
    if workdir.exists() and any(workdir.iterdir()) and not arguments.resume:
        raise UserError(
            f"`{workdir}` is not empty; add `--resume` to go on with its runs, or name another `--workdir`."
        )
    jobs = jobs_of(lines_of(arguments.runs), grid_of(arguments.grid), common, workdir)
    with reporting(len(jobs)) as report:
        failed = cluster.run_left(jobs, report, workdir, arguments.where, arguments.at_once, arguments.slurm)
        _show(jobs, workdir, report)
    return 1 if failed else 0


def grid_of(words: Sequence[str]) -> dict[str, list[str]]:
    """The values of each field in `--grid`; a word without `=` is a further value of the field before it.

    Raises:
      UserError: a field that is none, or no value.

    >>> grid_of(["config.model.norm=none", "batch", "config.seed=0"])
    {'config.model.norm': ['none', 'batch'], 'config.seed': ['0']}
    """
    known, found = fields(Config()), dict[str, list[str]]()
    name = ""
    for word in words:
        field, given, value = word.partition("=")
        if given:
            name = field.removeprefix("--")
            if name not in known:
                raise UserError(
                    f"`--grid` must name fields of the config; `{shown(name)}` is none. {nearest(name, known)}"
                )
            if name in found:
                raise UserError(f"`--grid` must name each field once, but `{name}` is there twice.")
        elif not name:
            raise UserError(f"`--grid` must be `field=value,value`, as `config.seed=0,1`; {shown(word)!r} is not.")
        found.setdefault(name, []).append(value if given else word)
    return found


def lines_of(file: str) -> list[list[str]]:
    """The arguments in every line of a file; without a file, one line that holds none.

    Raises:
      UserError: no such file, a line with an open quotation mark, or no line at all.
    """
    if not file:
        return [[]]
    if not Path(file).is_file():
        raise UserError(f"`--runs` must name a file; there is no `{shown(file)}`.")
    try:
        lines = [shlex.split(line, comments=True) for line in Path(file).read_text(encoding="utf-8").splitlines()]
    except ValueError as error:
        raise UserError(f"`{file}` must hold arguments of `experiments.train` in each line: {error}.") from error
    if not any(lines):
        raise UserError(f"`{file}` holds no run; write arguments of `experiments.train` in each line.")
    return [line for line in lines if line]


def jobs_of(
    lines: Sequence[Sequence[str]], grid: dict[str, list[str]], common: Sequence[str], workdir: Path
) -> list[Job]:
    """Every line with every combination of the grid. All configs are read before the first one runs.

    Raises:
      UserError: a config or a value that is not right, or a run that is there twice.
    """
    given = {word.partition("=")[0] for words in (common, *lines) for word in words}
    if {"--workdir", "--resume"} & given:
        raise UserError(
            "`--workdir` and `--resume` are arguments of the sweep, which gives every run a folder of its own; write "
            "them in front of `--`."
        )
    points = [list(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
    found: dict[str, Job] = {}
    for line, point in itertools.product(lines, points):
        arguments = (*common, *line, *(f"--{name}={value}" for name, value in point))
        parse(Line, arguments, "python -m experiments.train")
        name = name_of([*line, *arguments[len(common) + len(line) :]]) or "run"
        if name in found:
            raise UserError(f"Every run must be there once, but `{shown(name)}` is there twice.")
        found[name] = Job(name, arguments, workdir / name)
    return list(found.values())


def name_of(arguments: Sequence[str]) -> str:
    """What a run is called: what it has for itself.

    >>> name_of(["--config=configs/digits_cnn.py", "--config.model.norm=none", "--config.seed=1"])
    'digits_cnn,model.norm=none,seed=1'
    """
    words = [Path(a.removeprefix("--config=")).stem if a.startswith("--config=") else a for a in arguments]
    name = re.sub(r"[^\w.=,+-]+", "_", ",".join(word.removeprefix("--config.") for word in words))
    if len(name) <= LONGEST_NAME:
        return name
    return f"{name[: LONGEST_NAME - 9]}-{hashlib.blake2b(name.encode(), digest_size=4).hexdigest()}"


def _show(jobs: Sequence[Job], workdir: Path, report: Report) -> None:
    """One table: a row for each run in table.csv, and on the terminal the seeds of a row together."""
    rows = [_row(job) for job in jobs]
    head = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    csv.writer(text).writerows([head, *([row.get(name, "") for name in head] for row in rows)])
    write_text(workdir / "table.csv", text.getvalue())
    groups: dict[str, list[dict[str, str]]] = {}
    for row in rows:
        groups.setdefault(re.sub(r"(^|,)seed=\d+", "", row["run"]) or "run", []).append(row)
    shown_head = [name for name in head if name not in ("run", "step") and not name.startswith("train/")]
    lines = [[name, str(len(same)), *(_together(same, key) for key in shown_head)] for name, same in groups.items()]
    report.show(Table("Mean ± standard deviation of the runs", ["", "runs", *shown_head], lines).rich())
    report.line(f"Every run: {workdir / 'table.csv'}")


def _row(job: Job) -> dict[str, str]:
    seconds = job.seconds
    metrics = job.folder / "metrics.jsonl"
    last = read_metrics(metrics)[-1] if seconds is not None and metrics.exists() else {}
    return {
        "run": job.name,
        **{k: repr(v) for k, v in last.items()},
        "seconds": "" if seconds is None else f"{seconds:.1f}",
    }


def _together(rows: Sequence[dict[str, str]], key: str) -> str:
    values = [float(row[key]) for row in rows if row.get(key)]
    if not values:
        return ""
    missing = f" ({len(values)} of {len(rows)})" if len(values) < len(rows) else ""
    return mean_and_deviation(values, digits=0 if key == "seconds" else 4) + missing


if __name__ == "__main__":
    run_main(main)
