"""Trains norms side by side: `python -m experiments.compare --config=configs/digits_cnn.py --norms none,batch`."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, cast

import tyro
from rich.table import Table

from experiments import distributed, run
from experiments.cli import parse, run_main
from experiments.config import Config, Norm
from experiments.data import Data, load_data
from experiments.errors import UserError
from experiments.files import Record
from experiments.page import save_page, save_picture
from experiments.parallel import make_layout
from experiments.report import Report, reporting
from experiments.schema import Range, choices
from experiments.summary import TARGET, Summary, summarize


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Train each norm with each seed, and show the curves side by side in compare.png and compare.html."""

    config: tyro.conf.FlagConversionOff[Config]
    norms: str = "none,batch"  # values of `config.model.norm`, with commas between them
    seeds: Annotated[int, Range(low=1, high=1000)] = 3  # how many, counted from `config.seed`
    workdir: str = ""  # where the runs and the page go; a new folder under `runs/` by default
    resume: bool = False  # keep what is finished in `workdir`, and continue


def main(argv: Sequence[str]) -> None:
    arguments = parse(Arguments, argv, "python -m experiments.compare")
    norms, config, workdir = split(arguments.norms), arguments.config, Path(arguments.workdir)
    seeds = range(config.seed, config.seed + arguments.seeds)
    distributed.start(config)
    make_layout(config)  # what does not fit the devices is refused before any work
    data = load_data(config.data)
    run.claim(workdir, config, arguments.resume)
    runs: dict[Norm, list[list[Record]]] = {norm: [] for norm in norms}
    with reporting(len(norms) * len(seeds) * run.total_steps(config, data)) as report:
        try:
            for norm in norms:
                train_norm(config, norm, seeds, data, workdir, arguments.resume, runs[norm], report)
        except KeyboardInterrupt:
            same = f"--workdir={workdir} --norms={','.join(norms)} --seeds={len(seeds)}"
            report.line(f"{sum(map(len, runs.values()))} of {len(norms) * len(seeds)} runs are finished.")
            report.line(f"To continue: python -m experiments.compare --resume {same}")
            raise
    summaries = [summarize(norm, runs[norm]) for norm in norms]
    save_picture(workdir / "compare.png", runs)
    save_page(workdir / "compare.html", runs, summaries, seeds, config)
    report.show(table(summaries))
    report.line(f"Curves and table: {workdir / 'compare.html'}")


def train_norm(
    base: Config,
    norm: Norm,
    seeds: Sequence[int],
    data: Data,
    workdir: Path,
    resume: bool,
    runs: list[list[Record]],
    report: Report,
) -> None:
    """Adds to `runs` the records of every seed; what is compiled for the norm serves all of them."""
    config = dataclasses.replace(base, model=dataclasses.replace(base.model, norm=norm))
    program = run.program_of(config, data)
    for seed in seeds:
        folder, seeded = workdir / f"{norm}-seed{seed}", dataclasses.replace(config, seed=seed)
        run.claim(folder, seeded, resume)
        report.title(f"{norm}, seed {seed}")
        runs.append(run.train(seeded, data, program, folder, report))


def split(norms: str) -> list[Norm]:
    """The norms in the argument `--norms`.

    >>> split("none, batch")
    ['none', 'batch']
    """
    names = [name.strip() for name in norms.split(",")]
    for name in names:
        if name not in choices(Norm):
            valid = ", ".join(f"`{c}`" for c in choices(Norm))
            raise UserError(f"`--norms` must be names among {valid}, with commas between, but there is {name!r}.")
        if names.count(name) > 1:
            raise UserError(f"`--norms` must name each norm once, but `{name}` is there {names.count(name)} times.")
    return cast(list[Norm], names)


def table(summaries: Sequence[Summary]) -> Table:
    made = Table(title=f"Mean ± standard deviation, {len(summaries[0].steps)} seeds")
    made.add_column("norm")
    made.add_column("held-out accuracy, %", justify="right")
    made.add_column(f"steps to {TARGET:.0%}", justify="right")
    for summary in summaries:
        made.add_row(summary.norm, summary.accuracy, summary.steps_to_target)
    return made


if __name__ == "__main__":
    run_main(main)
