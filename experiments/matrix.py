"""Trains every task in every layout, and compares with the same groups on one device: `python -m experiments.matrix`.

In float64, with dropout, masks, and a last batch that is not full. Each cell is a run of its own, of two epochs: with
statistics of all devices, of each device, of groups of two and of slices (ghost batches), with micro-batches, with an
interruption, and with two processes.
"""

import dataclasses
import itertools
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from experiments.cli.flags import parse_flags
from experiments.cli.program import run_main
from experiments.cli.report import Report, reporting
from experiments.config import Config, DataConfig, ModelConfig, OptimizerConfig, ParallelConfig, TrainConfig
from experiments.config.file import to_json
from experiments.data import kind_of, load_data
from experiments.results.markers import Markers, write_between
from experiments.results.records import read_metrics
from experiments.results.tables import Table
from experiments.training import launcher, processes, run
from experiments.training.checkpoints import last_arrays
from experiments.training.steps import make_program

ROOT = Path(__file__).resolve().parents[1]
DOCUMENT = ROOT / "docs" / "results" / "matrix.md"
MARKERS = Markers("<!-- matrix -->\n", "<!-- /matrix -->\n")
DEVICES, BATCH, EXAMPLES = 4, 24, 37
LIMIT = 1e-5  # as far as results may differ

Layout = Literal["jit", "shard_map", "pmap", "vmap"]
Case = Literal["global", "device", "group", "ghost", "accumulate", "resume", "processes"]
LAYOUTS: tuple[Layout, ...] = ("jit", "shard_map", "pmap", "vmap")
CASES: tuple[Case, ...] = ("global", "device", "group", "ghost", "accumulate", "resume", "processes")
SLICES = {"device": BATCH // DEVICES, "group": 2 * BATCH // DEVICES, "ghost": BATCH // DEVICES}  # examples
# By name: what is trained.
WORKS: dict[str, dict[str, Any]] = {
    "classification": {"data": "digits", "model": "mlp"},
    "classification, nnx": {"data": "digits", "model": "mlp", "api": "nnx"},
    "language_model": {"data": "text", "model": "bert"},
    "masked_language_model": {"data": "text", "model": "bert"},
    "sequence_to_sequence": {"data": "reverse", "model": "transformer"},
}
Work = Literal[
    "classification", "classification, nnx", "language_model", "masked_language_model", "sequence_to_sequence"
]


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Train every task in every layout, and compare with one device."""

    works: tuple[Work, ...] = ()  # all by default
    layouts: tuple[Layout, ...] = LAYOUTS
    cases: tuple[Case, ...] = CASES
    write: bool = False  # write the table of docs/results/matrix.md


def config_of(work: str, layout: str = "jit", case: str = "global") -> Config:
    """What a cell trains."""
    of = WORKS[work]
    sync: Any = case if case in ("device", "group") else "global"
    return Config(
        task=work.partition(",")[0],
        data=DataConfig(name=of["data"], length=8, train_examples=EXAMPLES, eval_examples=11),
        model=_model(of, "ghost" if case == "ghost" else "batch", SLICES["ghost"]),
        optimizer=OptimizerConfig(learning_rate=0.01, schedule="constant"),
        parallel=ParallelConfig(layout=layout, sync=sync, group_size=2 if case == "group" else None),  # type: ignore[arg-type]
        train=TrainConfig(epochs=2, batch_size=BATCH, eval_batch_size=7, accumulate=2 if case == "accumulate" else 1),
    )


def reference_of(work: str, case: str) -> Config:
    """The same groups on one device: as slices of the batch, where they are not all of it."""
    config = config_of(work, "jit", case)
    model = _model(WORKS[work], "ghost", SLICES[case]) if case in SLICES else config.model
    return dataclasses.replace(config, model=model, parallel=ParallelConfig())


def _model(of: dict[str, Any], norm: str, size: int) -> ModelConfig:
    return ModelConfig(
        name=of["model"], api=of.get("api", "linen"), norm=norm, ghost_size=size, dropout=0.2, dtype="float64"
    )


class _Quiet(Report):
    def __init__(self) -> None:
        pass

    def line(self, text: str) -> None:
        pass

    def advance(self, steps: int = 1) -> None:
        pass


def trained(config: Config, devices: int, folder: Path, *, interrupted: bool = False) -> dict[str, np.ndarray]:
    """What a run in `folder` ends with: the arrays of its last checkpoint, and the loss of the held-out examples."""
    data = load_data(config.data)
    program = make_program(config, kind_of(data), run.total_steps(config, data), jax.devices()[:devices])
    records = run.train(config, data, program, folder, _Quiet())
    if interrupted:
        shutil.rmtree(folder / run.CHECKPOINTS / str(run.total_steps(config, data)))
        records = run.train(config, data, program, folder, _Quiet())
    return {**last_arrays(folder / run.CHECKPOINTS), "eval/loss": np.array(records[-1]["eval/loss"])}


def trained_by_two(config: Config, folder: Path) -> dict[str, np.ndarray]:
    """The same of two processes, which have half of the devices each."""
    config = dataclasses.replace(config, parallel=dataclasses.replace(config.parallel, fake_devices=DEVICES // 2))
    file = folder.with_suffix(".json")
    file.write_text(to_json(config))
    argv = [f"--config={file}", f"--workdir={folder}"]
    with tempfile.TemporaryFile("w+") as said:
        group = launcher.Group(launcher.commands(2, argv), said, said)
        try:
            failed = group.wait()
        finally:
            group.kill()
        if failed is not None:
            said.seek(0)
            print(said.read(), file=sys.stderr)
            raise RuntimeError(f"Process {failed[0]} of {config.task} ended with status {failed[1]}.")
    records = read_metrics(folder / run.METRICS)
    return {**last_arrays(folder / run.CHECKPOINTS), "eval/loss": np.array(records[-1]["eval/loss"])}


def difference(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> float:
    """The largest difference in any array, relative to its largest entry; or to 1e-6, where that is smaller.

    What is smaller is rounding: a bias before a norm has no gradient but 1e-17.
    """
    if a.keys() != b.keys():
        raise RuntimeError(f"The runs have other arrays: {sorted(a.keys() ^ b.keys())}.")
    return max(float(np.max(np.abs(x - b[n])) / max(np.max(np.abs(b[n])), 1e-6)) for n, x in _numbers(a))


def _numbers(arrays: dict[str, np.ndarray]) -> Iterator[tuple[str, np.ndarray]]:
    return ((name, t) for name, t in arrays.items() if np.issubdtype(t.dtype, np.floating))


def found(works: Sequence[str], layouts: Sequence[str], cases: Sequence[str], report: Report) -> list[list[str]]:
    """The rows of the table."""
    rows: list[list[str]] = []
    with tempfile.TemporaryDirectory() as folder:
        for number, (work, case) in enumerate(itertools.product(works, cases)):
            there = Path(folder) / str(number)
            there.mkdir()
            reference = trained(reference_of(work, case), 1, there / "reference")
            row = [work, case]
            for layout in layouts:
                report.title(f"{work}, {case}, {layout}")
                config = config_of(work, layout, case)
                if case == "processes":
                    made = trained_by_two(config, there / layout)
                else:
                    made = trained(config, DEVICES, there / layout, interrupted=case == "resume")
                row.append(f"{difference(made, reference):.0e}")
                report.advance()
            rows.append(row)
            jax.clear_caches()
    return rows


def main(argv: Sequence[str]) -> int:
    arguments = parse_flags(Arguments, argv, "python -m experiments.matrix", __doc__)
    works: Sequence[str] = arguments.works or tuple(WORKS)
    processes.start(dataclasses.replace(config_of("classification"), parallel=ParallelConfig(fake_devices=DEVICES)))
    with reporting(len(works) * len(arguments.cases) * len(arguments.layouts)) as report:
        rows = found(works, arguments.layouts, arguments.cases, report)
    head = ["task", "case", *(f"`{layout}`" for layout in arguments.layouts)]
    table = Table("Largest relative difference from the same groups on one device", head, rows)
    print(table.markdown())
    if arguments.write:
        write_between(DOCUMENT, {MARKERS: f"{table.markdown()}\n"})
    return int(any(float(cell) > LIMIT for row in rows for cell in row[2:]))


if __name__ == "__main__":
    run_main(main)
