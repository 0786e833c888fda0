"""Jobs on this machine, or on a SLURM cluster by submitit."""

import dataclasses
import importlib.util
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from experiments.cli.errors import UserError
from experiments.cli.report import Report
from experiments.cli.schema import Range
from experiments.training.jobs import Job, perform, run_here

Cluster = Literal["slurm", "local", "debug"]  # submitit's names; the last two need no cluster
Where = Literal["here", "slurm", "local"]
POLL = 1  # seconds


@dataclasses.dataclass(frozen=True)
class Slurm:
    """What each job asks of a cluster."""

    partition: str = ""
    minutes: Annotated[int, Range(low=1)] = 60
    cpus: Annotated[int, Range(low=1)] = 2
    gpus: Annotated[int, Range(low=0)] = 0


def run_all(
    jobs: Sequence[Job], where: Where, at_once: int, slurm: Slurm, workdir: Path, ended: Callable[[Job, int], None]
) -> None:
    """Runs jobs to their end, so many at once; calls `ended` with each and its status."""
    if where == "here":
        return run_here(jobs, at_once, ended)
    if not jobs:
        return None
    asked: dict[str, Any] = {
        "timeout_min": slurm.minutes, "cpus_per_task": slurm.cpus, "gpus_per_node": slurm.gpus,
        "slurm_array_parallelism": at_once, "name": workdir.name,
    }  # fmt: skip
    if slurm.partition:
        asked["slurm_partition"] = slurm.partition
    return wait(jobs, submit(jobs, workdir.resolve() / "submitit", where, **asked), ended)


def run_left(
    jobs: Sequence[Job], report: Report, workdir: Path, where: Where = "here", at_once: int = 1, slurm: Slurm = Slurm()
) -> int:
    """Runs the jobs that are not finished, says how each ended, and returns how many failed."""
    left, failed = [job for job in jobs if job.seconds is None], list[Job]()
    report.title(f"{len(jobs)} runs in {workdir}; {len(jobs) - len(left)} are finished")
    report.advance(len(jobs) - len(left))

    def ended(job: Job, status: int) -> None:
        report.advance()
        report.line(f"{job.name}: {'failed: ' if status else ''}{job.last_words}")
        if status:
            failed.append(job)

    try:
        run_all(left, where, at_once, slurm, workdir, ended)
    except KeyboardInterrupt:
        report.line(f"{sum(job.seconds is not None for job in jobs)} of {len(jobs)} runs are finished.")
        if where != "here":
            report.line("What the cluster has goes on there; `scancel` ends it.")
        report.line(f"To continue, give the same command with `--workdir={workdir} --resume`.")
        raise
    if failed:
        report.line(f"{len(failed)} of {len(jobs)} runs failed; what each said is in its `log.txt`.")
    return len(failed)


def check(where: Where) -> None:
    """Refuses a cluster that is not there; to be called before anything is written.

    Raises:
      UserError: it is not, or submitit is not installed.
    """
    if where == "here":
        return
    if importlib.util.find_spec("submitit") is None:
        raise UserError("`--where` needs the package `submitit` for a cluster; `pip install 'bnjax[slurm]'` brings it.")
    import submitit

    try:
        submitit.AutoExecutor(folder="submitit", cluster=where)  # which makes no folder
    except RuntimeError as error:
        raise UserError(f"`--where={where}` cannot run the jobs: {error} Write `--where=here`.") from error


def submit(jobs: Sequence[Job], folder: Path, cluster: Cluster, **parameters: Any) -> list[Any]:
    """Hands jobs to a cluster, and returns submitit's handles.

    Args:
      jobs: what to run; their folders must be on a disk that all machines share.
      folder: for the files of submitit.
      cluster: its name.
      **parameters: those of `submitit.AutoExecutor.update_parameters`.

    Raises:
      UserError: there is no such cluster, or it refuses.
    """
    import submitit

    try:
        executor = submitit.AutoExecutor(folder=str(folder / "%j"), cluster=cluster)
        executor.update_parameters(**parameters)
        with executor.batch():
            handles = [executor.submit(perform, job) for job in jobs]
    except (RuntimeError, ValueError, OSError) as error:
        raise UserError(f"`--where={cluster}` cannot run the jobs: {error}") from error
    return handles


def wait(jobs: Sequence[Job], handles: Sequence[Any], ended: Callable[[Job, int], None]) -> None:
    """Waits until all have ended; calls `ended` with each and its status, 1 where the cluster ended it."""
    left = dict(enumerate(handles))
    while left:
        for i in [i for i, handle in left.items() if handle.done()]:
            handle = left.pop(i)
            ended(jobs[i], 1 if handle.exception() is not None else handle.result())
        if left:
            time.sleep(POLL)
