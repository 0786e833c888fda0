"""Trains norms side by side: `python -m experiments.compare --config=configs/digits_cnn.py --norms=none,batch`.

With `--batch_sizes=4,16,64` each norm is trained with each of them, as in figure 1 of Wu and He, Group Normalization.
"""

import contextlib
import dataclasses
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

from experiments.cli.errors import UserError
from experiments.cli.program import run_main
from experiments.cli.report import Report, reporting
from experiments.cli.schema import Range, rebuild
from experiments.config import BatchSize, Config, Norm, with_norm
from experiments.config.arguments import parse
from experiments.data import Data, check_sizes, load_data
from experiments.results.page import save_page, save_picture, save_sizes_page, size_table
from experiments.results.plots import save_scores
from experiments.results.records import Record
from experiments.results.summary import Summary
from experiments.results.tables import Table
from experiments.tasks import score_of, task_of
from experiments.training import processes, recalibration, run
from experiments.training.cell import Together, train_cell
from experiments.training.layouts import make_layout


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Train each norm with each seed, and show the curves side by side in compare.png and compare.html.

    What they are compared by, the task says: the error, the perplexity, the loss. With `--batch_sizes` the page and
    batch_sizes.png show it against the batch size.
    """

    config: Config
    norms: tuple[Norm, ...] = ("none", "batch")  # values of `config.model.norm`
    seeds: Annotated[int, Range(low=1, high=1000)] = 3  # how many, counted from `config.seed`
    batch_sizes: tuple[BatchSize, ...] = ()  # with each of these: learning rate in proportion
    together: Together = (
        "auto"  # train the seeds of a norm by one program: where it fits and is faster, always, or never
    )
    workdir: str = ""  # where the runs and the page go; a new folder under `runs/` by default
    resume: bool = False  # keep what is finished in `workdir`, and continue


def main(argv: Sequence[str]) -> None:
    arguments = parse(Arguments, argv, "python -m experiments.compare")
    check_once("norms", arguments.norms)
    check_once("batch_sizes", arguments.batch_sizes)
    if not arguments.norms:
        raise UserError("`--norms` must name norms; write, for example, `--norms=none,batch`.")
    norms, config = arguments.norms, arguments.config
    configs = of_sizes(config, arguments.batch_sizes) or {config.train.batch_size: config}
    processes.start(config)
    for size, sized in configs.items():
        for norm in norms:
            with _named(arguments.batch_sizes, size, norm):
                recalibration.check(with_norm(sized, norm))
                make_layout(with_norm(sized, norm))  # says what does not fit, before any work
    data = load_data(config.data)
    for size, sized in configs.items():
        with _named(arguments.batch_sizes, size):
            check_sizes(sized, data)
        for norm in norms:
            with _named(arguments.batch_sizes, size, norm):
                run.program_of(with_norm(sized, norm), data)  # that it takes the widths, and fits the memory
    with run.claim(Path(arguments.workdir), config, arguments.resume):
        _compare(arguments, norms, configs, data)


@contextlib.contextmanager
def _named(sizes: Sequence[int], size: int, norm: str = "") -> Iterator[None]:
    """What is refused within it is said with the flags that were given: the config's own values are not meant."""
    try:
        yield
    except UserError as error:
        flags = [f"`--batch_sizes={size}`"] * bool(sizes)
        flags += [f"`--norms={norm}`"] * ("config.model.norm" in str(error))
        if not flags:
            raise
        raise UserError(f"With {' and '.join(flags)}, {error}") from error


def _compare(arguments: Arguments, norms: Sequence[Norm], configs: dict[int, Config], data: Data) -> None:
    config, workdir = arguments.config, Path(arguments.workdir)
    seeds = range(config.seed, config.seed + arguments.seeds)
    found: dict[int, dict[str, dict[int, list[Record]]]] = {size: {norm: {} for norm in norms} for size in configs}
    steps = sum(run.total_steps(c, data) for c in configs.values())
    with reporting(len(norms) * len(seeds) * steps) as report:
        try:
            for size, sized in configs.items():
                for norm, runs in found[size].items():
                    name = f"{norm}-batch{size}" if arguments.batch_sizes else norm
                    folders = {seed: workdir / f"{name}-seed{seed}" for seed in seeds}
                    own = with_norm(sized, norm)
                    train_cell(name, own, folders, data, report, arguments.resume, arguments.together, runs)
        except KeyboardInterrupt:
            sizes = f" --batch_sizes={','.join(map(str, arguments.batch_sizes))}" if arguments.batch_sizes else ""
            how = f" --together={arguments.together}" if arguments.together != Arguments.together else ""
            same = f"--workdir={workdir} --norms={','.join(norms)} --seeds={len(seeds)}{sizes}{how}"
            done = sum(len(runs) for of_size in found.values() for runs in of_size.values())
            report.line(f"{done} of {len(norms) * len(seeds) * len(configs)} runs are finished.")
            report.line(f"To continue: python -m experiments.compare --resume {same}")
            raise
    in_turn = {size: {n: [runs[s] for s in seeds] for n, runs in of_size.items()} for size, of_size in found.items()}
    show(workdir, config, in_turn, seeds, report, sizes=bool(arguments.batch_sizes))


def show(
    workdir: Path,
    config: Config,
    found: dict[int, dict[str, list[list[Record]]]],
    seeds: Sequence[int],
    report: Report,
    *,
    sizes: bool,
) -> None:
    """Pictures, page and tables of what was found: over the batch sizes, or of the one size over the steps."""
    score = score_of(task_of(config))
    if sizes:
        norms = next(iter(found.values()))
        scores = {n: {size: Summary(n, score, runs[n]).ends() for size, runs in found.items()} for n in norms}
        save_scores(workdir / "batch_sizes.png", scores, score)
        save_sizes_page(workdir / "compare.html", scores, score, seeds, config)
        report.show(size_table(scores, score).rich())
        report.line(f"{score.name.capitalize()} against batch size: {workdir / 'compare.html'}")
        return
    (runs,) = found.values()
    summaries = [Summary(norm, score, runs[norm]) for norm in runs]
    save_picture(workdir / "compare.png", runs, score)
    save_page(workdir / "compare.html", runs, summaries, seeds, config)
    report.show(table(summaries).rich())
    report.line(f"Curves and table: {workdir / 'compare.html'}")


def of_sizes(config: Config, sizes: Sequence[int]) -> dict[int, Config]:
    """The config with each batch size, the learning rate in proportion, and ghost batches that divide it.

    Raises:
      UserError: a learning rate beyond its limit.
    """
    return {size: _of_size(config, size) for size in sizes}


def _of_size(config: Config, size: int) -> Config:
    rate, ghost = config.optimizer.learning_rate * size / config.train.batch_size, config.model.ghost_size
    divisor = math.gcd(size, ghost)
    sized = dataclasses.replace(
        config,
        train=dataclasses.replace(config.train, batch_size=size, eval_every=0),
        optimizer=dataclasses.replace(config.optimizer, learning_rate=rate),
        model=dataclasses.replace(config.model, ghost_size=divisor if divisor > 1 else ghost),
    )
    try:
        return rebuild(sized)
    except UserError as error:
        raise UserError(f"`--batch_sizes={size}` scales the learning rate with the batch: {error}") from error


def check_once(name: str, values: Sequence[object]) -> None:
    """Refuses a list that has a value twice: its runs would have one folder.

    >>> check_once("norms", ["none", "batch"])
    """
    if len(set(values)) != len(values):
        twice = next(v for v in values if values.count(v) > 1)
        raise UserError(f"`--{name}` must name each value once, but `{twice}` is there {values.count(twice)} times.")


def table(summaries: Sequence[Summary]) -> Table:
    head = ["norm", *summaries[0].figures]
    rows = [[s.norm, *s.figures.values()] for s in summaries]
    return Table(f"Mean ± standard deviation, {len(summaries[0].runs)} seeds", head, rows)


if __name__ == "__main__":
    run_main(main)
