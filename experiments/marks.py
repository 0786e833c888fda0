"""Trains every config that has a mark, with three seeds, and once without a norm: `python -m experiments.marks`.

Each run is the command of a user, in a process of its own, one after the other. Interrupted, the same command goes on
with `--workdir` and `--resume`, and the run that was interrupted begins again.

`--write` puts the numbers into docs/results/configs.csv; `python -m experiments.docs --write` makes a page of them, and
the lines in the configs.
"""

import dataclasses
import math
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.cli.errors import UserError, chosen
from experiments.cli.flags import folder_of, parse_flags
from experiments.cli.program import run_main
from experiments.cli.report import reporting
from experiments.config import Config, with_norm
from experiments.config.file import load
from experiments.data import batches, count, load_data
from experiments.results import evidence
from experiments.results.config_page import FILE, LIMIT, Result, digest, marked, result_of
from experiments.results.evidence import Evidence, Row, cell_name, settings_of
from experiments.results.records import read_metrics
from experiments.results.tables import Table
from experiments.results.versions import commit, in_words, versions
from experiments.tasks import task_of
from experiments.training.cluster import run_left
from experiments.training.jobs import Job
from experiments.training.lock import only_writer
from experiments.training.run import METRICS, program_of

SEEDS = {"own": (0, 1, 2), "none": (0,)}  # by norm: that of the config, or none


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Train every config that has a mark, with three seeds, and once without a norm."""

    names: tuple[str, ...] = ()
    """Only these configs, as `digits_cnn`; the numbers of all others stay."""
    write: bool = False
    """Put the numbers into docs/results/configs.csv."""
    workdir: str = ""
    """The folder of the runs; a new one under `runs/` by default."""
    resume: bool = False
    """Keep what is finished in `workdir`, and continue."""


def main(argv: Sequence[str]) -> int:
    arguments = parse_flags(Arguments, argv, "python -m experiments.marks", __doc__)
    known = marked()
    configs = {n: chosen(known, n, "--names") for n in arguments.names} if arguments.names else known
    workdir = folder_of(arguments.workdir, arguments.resume, "marks")
    if workdir.exists() and not arguments.resume:
        raise UserError(f"`{workdir}` is there; add `--resume` to go on with its runs, or name another `--workdir`.")
    runs = [Run(name, norm, seed) for name in configs for norm in SEEDS for seed in SEEDS[norm]]
    jobs = [run.job(workdir) for run in runs]
    for job in jobs:
        _clear(job)
    with reporting(len(runs)) as report:
        if run_left(jobs, report, workdir):
            return 1
        rows = [row for run in runs for row in rows_of(run, configs[run.config], workdir)]
        results = {name: result_of(name, Evidence(rows)) for name in configs}
        report.show(table(configs, results).rich())
    if arguments.write:
        others = [row for row in evidence.load(FILE).rows if settings_of(row.cell)["config"] not in configs]
        evidence.save(FILE, sorted([*others, *rows]))
    return int(any(short_of(configs[name].mark, result) for name, result in results.items()))


class Run(NamedTuple):
    """A config, with the norm that it has (`own`) or with none, and a seed."""

    config: str
    norm: str
    seed: int

    def job(self, workdir: Path) -> Job:
        """The command of a user that trains it."""
        name = cell_name(self._asdict()).replace(" ", ",")
        arguments = [f"--config=configs/{self.config}.py", f"--config.seed={self.seed}"]
        if self.norm == "none":
            arguments.append("--config.model.norm=none")
        return Job(name, tuple(arguments), workdir / name)


def _clear(job: Job) -> None:
    """Deletes what an interrupted run left: continued, it would take less time than the whole command does."""
    if job.seconds is None and job.folder.exists():
        with only_writer(job.folder):
            shutil.rmtree(job.folder)


def rows_of(run: Run, config: Config, workdir: Path) -> list[Row]:
    """What a finished run gives.

    Raises:
      UserError: the config has changed since.
    """
    job = run.job(workdir)
    was = load(str(job.folder / "config.json"))
    if digest(with_norm(was, config.model.norm)) != digest(config):
        raise UserError(
            f"`configs/{run.config}.py` has changed since `{job.folder}` was trained; name another `--workdir`."
        )
    last = read_metrics(job.folder / METRICS)[-1]
    numbers = {"accuracy": last["eval/accuracy"], "seconds": whole(job.seconds), "cpu seconds": whole(job.cpu_seconds)}
    if run == Run(run.config, "own", 0):
        numbers |= {**facts(was), "cores": float(cores())}
    cell, step = cell_name({"config": run.config, "norm": run.norm}), int(last["step"])
    common = (digest(config), commit(), in_words(versions(("jax", "flax"))))
    return [Row("configs", cell, run.seed, metric, step, value, *common) for metric, value in numbers.items()]


def whole(seconds: float | None) -> float:
    """The next whole number of seconds; what is not known is no number."""
    return math.nan if seconds is None else float(math.ceil(seconds))


def cores() -> int:
    """Of this machine, for this process."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def facts(config: Config) -> dict[str, float]:
    """The number of parameters, and what can be right without a model: by chance, or with the most frequent answer."""
    data, task = load_data(config.data), task_of(config)
    params = jax.eval_shape(program_of(config, data).init, jax.random.key(0)).params
    n = count(data.held_out)
    (batch,) = batches(data.held_out, n)
    view = task.view(jax.tree.map(jnp.asarray, batch), jax.random.split(jax.random.key(0), n))
    asked = view.mask if task.random else view.weight  # what is hidden at random may be any token
    answers = np.bincount(np.asarray(view.targets)[np.asarray(asked)])
    return {
        "parameters": float(sum(leaf.size for leaf in jax.tree.leaves(params))),
        "chance": 1 / np.count_nonzero(answers),
        "most frequent": float(answers.max() / answers.sum()),
    }


def short_of(mark: float | None, result: Result) -> str:
    """Why a result is not good enough; nothing where it is."""
    if mark is not None and result.accuracies.median < mark:
        return "the accuracy"
    return "" if result.cpu_seconds <= LIMIT else "the time"


def table(configs: Mapping[str, Config], results: Mapping[str, Result]) -> Table:
    """Of all results."""
    head = ["", "mark", "accuracy", "without a norm", "seconds", "of CPU", "falls short"]
    rows = [
        [
            name,
            f"{configs[name].mark:g}",
            str(r.accuracies),
            f"{r.without:.4f}",
            f"{r.seconds:.0f}",
            f"{r.cpu_seconds:.0f}",
            short_of(configs[name].mark, r),
        ]
        for name, r in results.items()
    ]
    return Table("Accuracy on the held-out examples: the median of three seeds, the least and the largest", head, rows)


if __name__ == "__main__":
    run_main(main)
