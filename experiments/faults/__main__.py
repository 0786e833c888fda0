"""Kills training processes, or damages files, and sees that no run is lost: `python -m experiments.faults --kills 20`.

A run is trained undisturbed first. Then others like it are trained by groups of processes of which one is killed with
SIGKILL after a random time, half of the times in the save that comes next, and continued, until there were so many
kills. Every run must end with the same metrics and the same state as the undisturbed one, to the last bit.

With `--flips 1000` bits are flipped instead, one after the other in copies of a small run: a resume must take up what
was saved, to the last bit, or say why it does not.
"""

import contextlib
import dataclasses
import os
import random
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Annotated

import numpy as np
from rich.console import Console

from experiments.cli.errors import UserError
from experiments.cli.flags import new_folder, parse_flags
from experiments.cli.program import run_main
from experiments.cli.schema import Count, Range
from experiments.config import Config, DataConfig, ModelConfig, OptimizerConfig, ParallelConfig, TrainConfig
from experiments.config.file import to_json
from experiments.faults import flips
from experiments.results.files import write_text
from experiments.training import launcher
from experiments.training.checkpoints import last_arrays

CONFIG = Config(  # saves take as long as steps
    data=DataConfig(train_examples=200, eval_examples=50),
    model=ModelConfig(widths=(4, 8, 16)),
    optimizer=OptimizerConfig(learning_rate=0.01),
    parallel=ParallelConfig(fake_devices=2),
    train=TrainConfig(epochs=40, batch_size=64),
)


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Kill training processes at random moments, or flip bits of a run's files, and see that no run is lost."""

    kills: Count = 20
    flips: Annotated[int, Range(low=0)] = 0  # so many, shared out among all files of a run, instead of kills
    processes: Annotated[int, Range(low=1, high=64)] = 2
    epochs: Count = CONFIG.train.epochs  # of every run; a checkpoint after each
    seed: Annotated[int, Range(low=0)] = 0  # of the moments, of who is killed, and of the bits
    workdir: str = ""  # a new folder under `runs/` by default


class LostError(Exception):
    """A run that does not end as it should."""


class Trial:
    """The runs of one kind, the first of them undisturbed."""

    def __init__(self, arguments: Arguments, workdir: Path, log: IO[str]):
        self._processes, self._workdir, self._log = arguments.processes, workdir, log
        self._random = random.Random(arguments.seed)
        self.kills = self.saves = self.runs = 0
        config = dataclasses.replace(CONFIG, train=dataclasses.replace(CONFIG.train, epochs=arguments.epochs))
        self._config = workdir / "faults.json"
        write_text(self._config, to_json(config))
        began = time.monotonic()
        group = self._group(workdir / "undisturbed")
        try:
            failed = group.wait()
        finally:
            group.kill()
        if failed is not None:
            raise LostError(f"the undisturbed run failed; see {log.name}")
        self.seconds = time.monotonic() - began
        self._expected = result(workdir / "undisturbed")

    def train(self, kills: int) -> None:
        """One run, disturbed until there were so many kills in all, and then compared."""
        self.runs += 1
        folder = self._workdir / f"run{self.runs}"
        while not self._disturbed(folder, kill=self.kills < kills):
            pass
        made = result(folder)
        if made.keys() != self._expected.keys() or any(
            not np.array_equal(made[name], value) for name, value in self._expected.items()
        ):
            raise LostError(f"{folder} does not end as {self._workdir / 'undisturbed'}")

    def _group(self, folder: Path) -> launcher.Group:
        known = ["--resume"] if (folder / "config.json").exists() else [f"--config={self._config}"]
        commands = launcher.commands(self._processes, [*known, f"--workdir={folder}"])
        return launcher.Group(commands, self._log, self._log)

    def _disturbed(self, folder: Path, kill: bool) -> bool:
        """Starts or continues a run, and whether it was done before one of its processes was to be killed."""
        group, number = self._group(folder), self._random.randrange(self._processes)
        victim = group.processes[number]
        try:
            if kill:
                end, in_save = time.monotonic() + self._random.uniform(0, self.seconds), self._random.random() < 0.5
                while all(p.poll() is None for p in group.processes):
                    if time.monotonic() >= end and (not in_save or saving(folder)):
                        victim.kill()  # looks once more whether it is there
                        break
                    time.sleep(0.002)
            failed = group.wait()
        finally:
            group.kill()
        if failed is None:
            return True
        if not kill or failed != (number, -signal.SIGKILL):
            raise LostError(f"process {failed[0]} in {folder} ended with {failed[1]}; see {self._log.name}")
        self.kills += 1
        self.saves += saving(folder)
        return False


def saving(folder: Path) -> bool:
    """Whether there is a checkpoint that is not whole."""
    return any((folder / "checkpoints").glob("*tmp*"))


def result(folder: Path) -> dict[str, np.ndarray]:
    """All numbers that a run ends with: those of its checkpoint, and the text of its metrics."""
    metrics = (folder / "metrics.jsonl").read_text(encoding="utf-8")
    return {**last_arrays(folder / "checkpoints"), "metrics": np.asarray(metrics)}


def main(argv: Sequence[str]) -> None:
    arguments = parse_flags(Arguments, argv, "python -m experiments.faults", __doc__)
    workdir = Path(arguments.workdir or new_folder("faults"))
    if any((workdir / name).exists() for name in ("faults.json", "run")):
        raise UserError(f"`{workdir}` already holds a run; name another `--workdir`.")
    workdir.mkdir(parents=True, exist_ok=True)
    with (workdir / "log.txt").open("w", encoding="utf-8") as log:
        trial = flip if arguments.flips else kill
        trial(arguments, workdir, log)


def kill(arguments: Arguments, workdir: Path, log: IO[str]) -> None:
    """The trial of killed processes; exit status 1 if a run does not end as it should."""
    try:
        trial = Trial(arguments, workdir, log)
        print(f"Undisturbed, a run of {arguments.processes} processes takes {trial.seconds:.0f} s.", flush=True)
        while trial.kills < arguments.kills:
            trial.train(arguments.kills)
            print(f"{trial.kills} kills, {trial.runs} runs ended as the undisturbed one.", flush=True)
    except LostError as lost:
        print(f"LOST: {lost}.", file=sys.stderr)
        raise SystemExit(1) from lost
    print(f"{trial.kills} kills, {trial.saves} of them in the middle of a save: of {trial.runs} runs none was lost.")


def flip(arguments: Arguments, workdir: Path, log: IO[str]) -> None:
    """The trial of flipped bits, with a table at the end; exit status 1 if anything wrong was taken up in silence."""
    trial = flips.Trial(workdir, arguments.seed)
    print(f"{len(trial.files)} files of a run, each flipped in turn.", flush=True)
    try:
        with unheard(log):
            for done in trial.flips(arguments.flips):
                if done % 100 == 0:
                    print(f"{done} flips, {len(trial.wrong)} wrong.", flush=True)
    finally:
        Console(width=130).print(trial.table().rich())
    for where in trial.wrong:
        print(f"WRONG: {where}.", file=sys.stderr)
    if trial.wrong:
        raise SystemExit(1)


@contextlib.contextmanager
def unheard(log: IO[str]) -> Iterator[None]:
    """Within it, what TensorStore's threads write of damage goes to a file."""
    kept = os.dup(2)
    os.dup2(log.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


if __name__ == "__main__":
    run_main(main)
