"""What a training program gains on a CPU when freed memory is kept: the tables of docs/guide/cpu.md.

    python -m experiments.memory [--epoch] [--write]

Trains `configs/mnist_cnn.py` on images of the size of Fashion-MNIST's, with every setting in turn, each time in a
process of its own. The images are noise. All runs must end with the same metrics, to the last digit. For Linux.
"""

import dataclasses
import os
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Annotated, NamedTuple

import numpy as np

from experiments.cli import memory
from experiments.cli.errors import UserError
from experiments.cli.flags import parse_flags
from experiments.cli.program import run_main
from experiments.cli.report import reporting
from experiments.cli.schema import Range
from experiments.measure import machine
from experiments.results.markers import Markers, write_between
from experiments.results.tables import Table

ROOT = Path(__file__).resolve().parents[1]
DOCUMENT = ROOT / "docs" / "guide" / "cpu.md"
MARKERS = Markers("<!-- memory -->\n", "<!-- /memory -->\n")
EPOCH_MARKERS = Markers("<!-- memory: epoch -->\n", "<!-- /memory -->\n")
BATCH, HELD_OUT, EPOCH = 128, 2000, 60_000

FRESH = {memory.VARIABLE: "fresh"}  # or the program would keep its memory by itself
HUGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
SETTINGS: dict[str, dict[str, str]] = {
    "nothing": FRESH,
    "huge pages": FRESH | HUGE_PAGES,
    "the three variables": FRESH | memory.VARIABLES,
    "the three variables and huge pages": FRESH | memory.VARIABLES | HUGE_PAGES,
    "by the program itself": {},
}
OF_EPOCH = ("nothing", "by the program itself")
HEAD = ("what is set", "wall s", "user s", "system s", "1000 page faults", "peak memory, MB")


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Train with freed memory kept and not, in turn, and show what it costs."""

    steps: Annotated[int, Range(low=1, high=5000)] = 100
    """Of training, of 128 images each."""
    epoch: bool = False
    """Train for a whole epoch of 60,000 images, with memory fresh and kept alone."""
    rounds: Annotated[int, Range(low=1, high=100)] = 3
    """How often each setting is measured, all in turn."""
    write: bool = False
    """Put the table into docs/guide/cpu.md."""

    @property
    def images(self) -> int:
        """To train with."""
        return EPOCH if self.epoch else self.steps * BATCH

    @property
    def settings(self) -> dict[str, dict[str, str]]:
        """What is measured."""
        return {name: SETTINGS[name] for name in (OF_EPOCH if self.epoch else SETTINGS)}


class Run(NamedTuple):
    """What a process cost, and the metrics that it ended with."""

    wall: float
    user: float
    system: float
    faults: int
    peak: int
    metrics: str


def train(data: Path, setting: dict[str, str]) -> Run:
    """Trains in a process whose environment says of memory what `setting` says, and nothing else.

    Raises:
      UserError: it failed.
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    for name in (memory.VARIABLE, "GLIBC_TUNABLES", "LD_PRELOAD"):
        environment.pop(name, None)
    with tempfile.TemporaryDirectory() as made:
        command = [
            sys.executable, "-m", "experiments.train", f"--config={ROOT / 'configs' / 'mnist_cnn.py'}",
            f"--config.data.directory={data}", "--config.train.epochs=1", f"--workdir={made}/run",
        ]  # fmt: skip
        began = time.monotonic()
        process = subprocess.Popen(command, cwd=ROOT, env=environment | setting, stdout=subprocess.DEVNULL)
        _, status, used = os.wait4(process.pid, 0)
        wall = time.monotonic() - began
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise UserError(f"Training ended with status {process.returncode}.")
        metrics = (Path(made) / "run" / "metrics.jsonl").read_text(encoding="utf-8")
    return Run(wall, used.ru_utime, used.ru_stime, used.ru_minflt, used.ru_maxrss * 1024, metrics)


def write_images(folder: Path, part: str, count: int) -> None:
    """Noise and labels for it, as idx files."""
    random = np.random.default_rng(0)
    for name, high, shape in (("images-idx3", 256, (count, 28, 28)), ("labels-idx1", 10, (count,))):
        header = struct.pack(f">4B{len(shape)}I", 0, 0, 8, len(shape), *shape)
        content = random.integers(0, high, shape, np.uint8).tobytes()
        (folder / f"{part}-{name}-ubyte").write_bytes(header + content)


def table(found: Mapping[str, Sequence[Run]], images: int) -> Table:
    """The medians of all rounds."""
    rows = []
    for name, runs in found.items():
        wall, user, system, faults, peak = (median(values) for values in list(zip(*runs, strict=True))[:-1])
        rows.append([name, f"{wall:.0f}", f"{user:.1f}", f"{system:.1f}", f"{faults / 1e3:.0f}", f"{peak / 1e6:.0f}"])
    return Table(f"{images:,} images, {BATCH} a step, from start to end, median of {len(runs)}", HEAD, rows)


def main(argv: Sequence[str]) -> None:
    arguments = parse_flags(Arguments, argv, "python -m experiments.memory", __doc__)
    if not sys.platform.startswith("linux"):
        raise UserError(f"`python -m experiments.memory` measures Linux, but this is {sys.platform}.")
    found: dict[str, list[Run]] = {name: [] for name in arguments.settings}
    with tempfile.TemporaryDirectory() as data, reporting(arguments.rounds * len(found)) as report:
        write_images(Path(data), "train", arguments.images)
        write_images(Path(data), "t10k", HELD_OUT)
        for _ in range(arguments.rounds):
            for name, setting in arguments.settings.items():
                report.title(name)
                found[name].append(train(Path(data), setting))
                report.advance()
    if len({run.metrics for runs in found.values() for run in runs}) > 1:
        sys.exit("The runs did not end with the same metrics.")
    block = f"{machine.sentence(machine.machine())}\n\n{table(found, arguments.images).markdown()}\n"
    print(block, end="")
    if arguments.write:
        write_between(DOCUMENT, {EPOCH_MARKERS if arguments.epoch else MARKERS: block})


if __name__ == "__main__":
    run_main(main)
