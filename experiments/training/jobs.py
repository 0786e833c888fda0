"""Training runs as jobs: the arguments of a run and its folder. What is finished is not run again."""

import collections
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from experiments.cli.errors import UserError
from experiments.results.files import write_text
from experiments.training.warden import Warden

FINISHED, LOG = "finished.json", "log.txt"
PATIENCE = 30  # seconds for a run to say where it is when it is interrupted


class Job(NamedTuple):
    """A run of `experiments.train`, or of another command of this program."""

    name: str
    arguments: tuple[str, ...]
    folder: Path
    module: str = "experiments.train"

    @property
    def command(self) -> list[str]:
        """What runs; it goes on where the folder holds a run."""
        resume = ["--resume"] if (self.folder / "config.json").exists() else []
        return [sys.executable, "-m", self.module, *self.arguments, f"--workdir={self.folder}", *resume]

    @property
    def seconds(self) -> float | None:
        """How long the finished run took, its last part if it was interrupted; None: it is not finished.

        Raises:
          UserError: the folder holds a finished run with other arguments.
        """
        found = self._finished
        return None if found is None else float(found["seconds"])

    @property
    def cpu_seconds(self) -> float | None:
        """How long the cores of the machine worked for it, added up; None where that is not known."""
        return (self._finished or {}).get("cpu_seconds")

    @property
    def _finished(self) -> dict[str, Any] | None:
        file = self.folder / FINISHED
        if not file.exists():
            return None
        found: dict[str, Any] = json.loads(file.read_text())
        if found["arguments"] != list(self.arguments):
            raise UserError(f"`{self.folder}` holds a run with other arguments; name another `--workdir`.")
        return found

    @property
    def last_words(self) -> str:
        """The last line that the run said."""
        lines = (self.folder / LOG).read_text(errors="replace").split("\n") if (self.folder / LOG).exists() else []
        return next((line for line in reversed(lines) if line.strip()), "it said nothing")

    def finish(self, seconds: float, cpu_seconds: float | None = None) -> None:
        """Marks the run as finished."""
        found = {"seconds": seconds, "cpu_seconds": cpu_seconds, "arguments": self.arguments}
        write_text(self.folder / FINISHED, json.dumps(found))


def perform(job: Job) -> int:
    """Runs a job to its end, and returns its status. A cluster calls this."""
    began = time.monotonic()
    job.folder.mkdir(parents=True, exist_ok=True)
    with (job.folder / LOG).open("ab") as log:
        status = subprocess.run(job.command, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL).returncode
    if not status:
        job.finish(time.monotonic() - began)
    return status


def run_here(jobs: Sequence[Job], at_once: int, ended: Callable[[Job, int], None]) -> None:
    """Runs jobs on this machine, so many at once; calls `ended` with each and its status.

    They end with this process, too, whatever ends it. When it is interrupted, so are they, and what they saved is kept.
    """
    waiting, running, warden = collections.deque(jobs), dict[int, "_Running"](), Warden()
    try:
        while waiting or running:
            while waiting and len(running) < at_once:
                started = _Running(waiting.popleft(), warden)
                running[started.process.pid] = started
            time.sleep(0.1)
            for pid in [pid for pid, one in running.items() if one.has_ended()]:
                warden.forget(pid)
                one = running.pop(pid)
                ended(one.job, one.end())
    finally:
        for pid, one in running.items():
            one.interrupt()
            warden.forget(pid)
        warden.dismiss()


class _Running:
    """A job's process, the leader of a process group of its own."""

    def __init__(self, job: Job, warden: Warden):
        self.job, self._began, self._cpu_seconds = job, time.monotonic(), 0.0
        job.folder.mkdir(parents=True, exist_ok=True)
        with (job.folder / LOG).open("ab") as log:
            self.process = warden.start(job.command, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)

    def has_ended(self) -> bool:
        """Whether the process has ended."""
        pid, status, usage = os.wait4(self.process.pid, os.WNOHANG)
        if not pid:
            return False
        self.process.returncode = os.waitstatus_to_exitcode(status)
        self._cpu_seconds = usage.ru_utime + usage.ru_stime
        return True

    def end(self) -> int:
        """The status of a process that has ended."""
        status = self.process.wait()
        if not status:
            self.job.finish(time.monotonic() - self._began, self._cpu_seconds)
        return status

    def interrupt(self) -> None:
        """Asks it to stop, and ends it if it does not."""
        self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
