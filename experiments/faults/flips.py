"""Flips bits in the files of a run, and sees what a resume takes up: what was saved, or nothing in silence."""

import collections
import math
import random
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import jax

from experiments.cli.errors import UserError
from experiments.cli.report import Report
from experiments.config import Config, DataConfig, ModelConfig, OptimizerConfig, TrainConfig
from experiments.config.file import load
from experiments.data import load_data
from experiments.results.tables import Table
from experiments.training import run
from experiments.training.checkpoints import FILES, digests
from experiments.training.pictures import save_curves
from experiments.training.steps import TrainState

CONFIG = Config(
    data=DataConfig(train_examples=100, eval_examples=50),
    model=ModelConfig(widths=(8, 16, 32)),  # arrays large enough to lie in files by themselves, without a checksum
    optimizer=OptimizerConfig(learning_rate=0.01),
    train=TrainConfig(epochs=3, batch_size=50),
)
NONE = "(nothing)"
TO_EACH_UNDAMAGED = 20  # flips
WHOLE, OLDER, REFUSED, WRONG = OUTCOMES = ("as saved", "the older one, said", "refused, said", "WRONG")


class Told(Report):
    """A report that is kept."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def line(self, text: str) -> None:
        self.lines.append(text)

    def advance(self, steps: int = 1) -> None:
        pass


class Trial:
    """One run, of which copies are damaged and taken up."""

    def __init__(self, workdir: Path, seed: int = 0):
        self.run, self._copy, self._random = workdir / "run", workdir / "copy", random.Random(seed)
        self.found: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
        self.wrong: list[str] = []
        self._data = load_data(CONFIG.data)
        program = run.program_of(CONFIG, self._data)
        with run.claim(self.run, CONFIG, resume=False):
            records = run.train(CONFIG, self._data, program, self.run, Told())
            save_curves(self.run / "curves.png", records, "flips")
        self._initial = program.init(jax.random.key(CONFIG.seed))
        self.steps = sorted(int(f.name) for f in (self.run / "checkpoints").iterdir())
        self._expected = {step: self._undamaged(step) for step in self.steps}
        self.files = sorted(f for f in self.run.rglob("*") if f.is_file() and f.stat().st_size)

    def flips(self, number: int) -> Iterator[int]:
        """Damages at least so many copies, by a bit in each file in turn; yields how many so far.

        In every other round a file of the older checkpoint goes with one of the newest, and one of the newest with the
        digests of files, as if the process had been killed before it saved them: arrays are compared then.
        """
        rounds = math.ceil(number / len(self.files))
        for i in range(rounds * len(self.files)):
            if i % TO_EACH_UNDAMAGED == 0:
                self._try(None)
            self._try(self.files[i % len(self.files)], alone=i // len(self.files) % 2 == 0)
            yield i + 1

    def table(self) -> Table:
        """What came of it, for each kind of file."""
        kinds = collections.Counter(self._kind(f) for f in self.files)
        total = sum(self.found.values(), collections.Counter())
        lines = [*((k, kinds[k], found) for k, found in sorted(self.found.items())), ("all", len(self.files), total)]
        rows = [[k, *map(str, (n, found.total(), *(found[o] for o in OUTCOMES)))] for k, n, found in lines]
        return Table("One bit flipped, and what a resume takes up", ["file", "files", "trials", *OUTCOMES], rows)

    def _undamaged(self, step: int) -> tuple[dict[str, str], bytes]:
        """The digests of the state at a step, and the log up to it, by a copy that ends there."""
        self._fresh()
        for other in self.steps:
            if other > step:
                shutil.rmtree(self._copy / "checkpoints" / str(other))
        (state, log), _ = self._taken_up()
        return digests(state), log

    def _fresh(self) -> None:
        shutil.rmtree(self._copy, ignore_errors=True)
        shutil.copytree(self.run, self._copy)

    def _taken_up(self) -> tuple[tuple[TrainState, bytes], list[str]]:
        """As `experiments.train --resume` begins: the state, the log, and what is said."""
        told = Told()
        config = load(str(self._copy / "config.json"))
        with (
            run.claim(self._copy, config, resume=True),
            run.checkpoints_of(self._copy, config, self._data) as checkpoints,
        ):
            state, log = run.take_up(checkpoints, self._initial, self._copy, told)
            with log:
                pass
        return (state, (self._copy / "metrics.jsonl").read_bytes()), told.lines

    def _try(self, file: Path | None, alone: bool = True) -> None:
        self._fresh()
        older, newest = (self.run / "checkpoints" / str(step) for step in self.steps)
        flipped = [] if file is None else [self._flip(file)]
        if file is not None and not alone:
            if older in file.parents:
                flipped.append(self._flip(self._random.choice([f for f in self.files if newest in f.parents])))
            elif file != newest / FILES:
                self._of_copy(newest / FILES).unlink()
        outcome = self._outcome()
        if file is None and outcome != WHOLE:
            outcome = WRONG
        if outcome == WRONG:
            self.wrong.append(" and ".join(flipped) or "an undamaged run")
        self.found[self._kind(file)][outcome] += 1

    def _flip(self, file: Path) -> str:
        """Flips a bit in the copy of a file, and says which."""
        bit = self._random.randrange(8 * file.stat().st_size)
        content = bytearray(file.read_bytes())
        content[bit // 8] ^= 1 << bit % 8
        self._of_copy(file).write_bytes(content)
        return f"bit {bit} of {file}"

    def _of_copy(self, file: Path) -> Path:
        return self._copy / file.relative_to(self.run)

    def _outcome(self) -> str:
        try:
            (state, log), told = self._taken_up()
        except UserError:
            return REFUSED
        step = int(state.step)
        if (digests(state), log) != self._expected.get(step):
            return WRONG
        if step == self.steps[-1]:
            return WHOLE
        return OLDER if told else WRONG

    def _kind(self, file: Path | None) -> str:
        if file is None:
            return NONE
        name = re.sub(r"\b[0-9a-f]{32}\b", "*", str(file.relative_to(self.run)))
        ages = {f"checkpoints/{self.steps[-1]}/": "newest/", f"checkpoints/{self.steps[0]}/": "older/"}
        for folder, age in ages.items():
            name = name.replace(folder, age)
        return name
