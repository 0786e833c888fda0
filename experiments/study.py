"""Answers a question by measurements: `python -m experiments.study gradients [--quick] [--seeds N]`.

`--list` names the studies. Every cell is saved when it is measured; interrupted, the same command goes on with
`--workdir` and `--resume`. With `--at_once` cells are measured side by side, with `--where=slurm` on a cluster.
`--write` puts the numbers into docs/results/studies, from which pages and claims are made.
"""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from experiments.cli.errors import UserError
from experiments.cli.flags import folder_of, parse_flags
from experiments.cli.program import run_main
from experiments.cli.report import Report, reporting
from experiments.cli.schema import Range
from experiments.results import evidence, study_page
from experiments.results.claims import judge
from experiments.results.evidence import Evidence, Row, cell_name
from experiments.results.files import write_text
from experiments.results.study import Settings, Study
from experiments.results.tables import Table
from experiments.results.versions import commit, in_words, versions
from experiments.studies import FOLDER, NOT_YET, STUDIES, all_studies, study_of
from experiments.training import cluster
from experiments.training.jobs import Job


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Measure a study, judge its claims, and make its page."""

    list: bool = False
    """Name the studies, with their claims as they stand."""
    json: bool = False
    """Print the claims as JSON."""
    quick: bool = False
    """A few cells and two seeds, in three minutes: whether it runs, not what is true."""
    seeds: Annotated[int, Range(low=0, high=1000)] = 0
    """How many; 0: as many as the study needs."""
    write: bool = False
    """Put the numbers into docs/results/studies."""
    pages: str = ""
    """Measure nothing: make the pages of all studies in this folder, of the numbers in docs/results/studies."""
    workdir: str = ""
    """The folder of the cells, the numbers and the page; a new one under `runs/` by default."""
    resume: bool = False
    """Keep what is measured in `workdir`, and continue."""
    where: cluster.Where = "here"
    """`here`: on this machine. `slurm`: a cluster; `local`: submitit without a cluster."""
    at_once: Annotated[int, Range(low=1, high=1000)] = 1
    """How many cells at a time, on this machine or on the cluster."""
    slurm: cluster.Slurm = dataclasses.field(default_factory=cluster.Slurm)
    only: str = ""
    """Measure one cell, whose digest this is; a job of a cluster does so."""


def main(argv: Sequence[str]) -> None:
    words = [word for word in argv if not word.startswith("-")][:1] if argv and not argv[0].startswith("-") else []
    arguments = parse_flags(Arguments, argv[len(words) :], "python -m experiments.study [NAME]", __doc__)
    if arguments.pages:
        return make_pages(Path(arguments.pages))
    if arguments.list:
        return show_list(arguments.json)
    if not words:
        raise UserError(f"Name a study: {', '.join(STUDIES)}.")
    if arguments.write and (arguments.quick or arguments.seeds or arguments.only):
        raise UserError("`--write` takes whole studies; leave out `--quick`, `--seeds` and `--only`.")
    study = study_of(words[0])
    cluster.check(arguments.where)
    workdir = folder_of(arguments.workdir, arguments.resume, f"study-{study.name}")
    if arguments.only:
        return measure_only(study, arguments, workdir)
    if (workdir / "cells").exists() and not arguments.resume:
        raise UserError(f"`{workdir}` holds a study; add `--resume` to go on with it, or name another `--workdir`.")
    _check_same(study, workdir)
    found = measure(study, arguments, workdir)
    show_claims(study, found, arguments.json)
    return None


def _check_same(study: Study, workdir: Path) -> None:
    for file in sorted((workdir / "cells").glob("*.json"))[:1]:
        if (other := json.loads(file.read_text())[0][0]) != study.name:
            raise UserError(f"`{workdir}` holds the study `{other}`; name another `--workdir` for `{study.name}`.")


def measure(study: Study, arguments: Arguments, workdir: Path) -> Evidence:
    """Measures what is not measured yet, and writes the numbers and the page."""
    cells, seeds = study.cells(arguments.quick), seeds_of(study, arguments)
    begins = arguments.resume and not (workdir / "cells").exists()
    (workdir / "cells").mkdir(parents=True, exist_ok=True)
    rows: list[Row] = []
    with reporting(len(cells)) as report:
        if begins:
            report.line(f"There is no study in {workdir} yet: one begins.")
        report.line(f"{study.title}: {len(cells)} cells of {len(seeds)} seeds, in {workdir}")
        try:
            if arguments.where != "here" or arguments.at_once > 1:
                _measure_apart(study, arguments, workdir, report)
            for settings in cells:
                report.title(cell_name(settings))
                rows += _cell(study, settings, seeds, workdir / "cells")
                report.advance()
        except KeyboardInterrupt:
            report.line(f"To continue, give the same command with `--workdir={workdir} --resume`.")
            raise
        return _written(study, rows, arguments, workdir, report)


def seeds_of(study: Study, arguments: Arguments) -> range:
    return range(arguments.seeds or (2 if arguments.quick else study.seeds))


def measure_only(study: Study, arguments: Arguments, workdir: Path) -> None:
    """Measures the cell that `--only` names.

    Raises:
      UserError: there is none.
    """
    seeds = seeds_of(study, arguments)
    found = [s for s in study.cells(arguments.quick) if study.digest_of_seeds(s, seeds) == arguments.only]
    if not found:
        raise UserError(f"`--only` must be the digest of a cell of `{study.name}`; `{arguments.only}` is none.")
    (workdir / "cells").mkdir(parents=True, exist_ok=True)
    _cell(study, found[0], seeds, workdir / "cells")


def _measure_apart(study: Study, arguments: Arguments, workdir: Path, report: Report) -> None:
    """Measures the cells that are missing, each in a process of its own.

    Raises:
      UserError: one of them failed.
    """
    seeds, failed = seeds_of(study, arguments), list[Job]()
    common = (study.name, *(["--quick"] if arguments.quick else []), f"--seeds={len(seeds)}")
    jobs = []
    for settings in study.cells(arguments.quick):
        digest = study.digest_of_seeds(settings, seeds)
        if not (workdir / "cells" / f"{digest}.json").exists():
            own = (*common, f"--only={digest}")
            jobs.append(Job(cell_name(settings), own, workdir / "jobs" / digest, "experiments.study"))

    def ended(job: Job, status: int) -> None:
        report.line(f"{job.name}: {f'failed: {job.last_words}' if status else 'measured'}")
        if status:
            failed.append(job)
        else:
            name = f"{job.folder.name}.json"
            (job.folder / "cells" / name).replace(workdir / "cells" / name)

    cluster.run_all(jobs, arguments.where, arguments.at_once, arguments.slurm, workdir, ended)
    if failed:
        raise UserError(f"{len(failed)} cells failed; what each said is in `log.txt` in `{workdir / 'jobs'}`.")


def _cell(study: Study, settings: Settings, seeds: Sequence[int], folder: Path) -> list[Row]:
    """The rows of a cell: as they were saved by the same settings, or measured now."""
    digest = study.digest_of_seeds(settings, seeds)
    file = folder / f"{digest}.json"
    if file.exists():
        return [Row(*row) for row in json.loads(file.read_text())]
    common = (digest, commit(), in_words(versions(("jax", "flax"))))
    rows = [
        Row(study.name, cell_name({**settings, **one.more}), one.seed, one.metric, one.step, one.value, *common)
        for one in study.run(settings, seeds)
    ]
    write_text(file, json.dumps(rows))
    return rows


def _written(study: Study, rows: Sequence[Row], arguments: Arguments, workdir: Path, report: Report) -> Evidence:
    """The rows as they come back from their file, of which the page is made, too."""
    file = workdir / f"{study.name}.csv"
    evidence.save(file, rows)
    found = evidence.load(file)
    write_text(workdir / f"{study.name}.html", study_page.study_page(study, found, index=False))
    report.line(f"The page: {workdir / f'{study.name}.html'}")
    if arguments.write:
        FOLDER.mkdir(exist_ok=True)
        evidence.save(FOLDER / f"{study.name}.csv", rows)
    return found


def make_pages(folder: Path) -> None:
    """Writes a page for each study, and the index."""
    study_page.save_all(folder, all_studies(), NOT_YET)
    print(f"The index: {folder / 'index.html'}")


def show_list(as_json: bool) -> None:
    for study, measured in all_studies():
        if not as_json:
            print(f"{study.name}: {study.question}")
        show_claims(study, measured, as_json)


def show_claims(study: Study, measured: Evidence, as_json: bool) -> None:
    judged = [judge(claim, measured) for claim in study.claims]
    if as_json:
        for one in judged:
            figures = {name: list(v) if isinstance(v, tuple) else v for name, v in one.figures.items()}
            record = {"study": study.name, "claim": one.claim.name, "said": one.said, "verdict": one.verdict}
            print(json.dumps({**record, "figures": figures}))
        return
    rows = [[one.claim.name, one.verdict, one.said] for one in judged]
    with reporting(0) as report:
        report.show(Table("", ["claim", "verdict", "what was found"], rows).rich())
        if part := study_page.missing(study, measured):
            report.line(part)


if __name__ == "__main__":
    run_main(main)
