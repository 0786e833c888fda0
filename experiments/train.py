"""Trains one experiment: `python -m experiments.train --config=configs/digits_cnn.py`."""

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path

from experiments.cli.program import run_main
from experiments.cli.report import reporting
from experiments.config import Config
from experiments.config.arguments import parse
from experiments.data import check_sizes, load_data
from experiments.tasks import marks, task_of
from experiments.training import processes, recalibration, run
from experiments.training.board import Board, check_board
from experiments.training.examination import hint
from experiments.training.layouts import make_layout
from experiments.training.pictures import save_curves
from experiments.training.processes import Distributed


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Train one experiment. The run folder gets metrics.jsonl, config.json, curves.png and checkpoints."""

    config: Config
    workdir: str = ""  # the run folder; a new one under `runs/` by default
    resume: bool = False  # continue the run in `workdir` from its last checkpoint
    tensorboard: bool = False  # write the metrics for TensorBoard, too: in the folder `tensorboard` of the run folder
    distributed: Distributed = dataclasses.field(default_factory=Distributed)


def main(argv: Sequence[str]) -> None:
    began = time.monotonic()
    arguments = parse(Arguments, argv, "python -m experiments.train")
    config = arguments.config
    task = task_of(config)
    marks.check(config, task)
    if arguments.tensorboard:
        check_board()
    processes.start(config, arguments.distributed, arguments.resume)
    recalibration.check(config)
    make_layout(config)  # what does not fit the devices is refused before any work
    workdir = Path(processes.agreed(arguments.workdir))
    begins = arguments.resume and not (workdir / "config.json").exists()
    data = load_data(config.data)
    check_sizes(config, data)
    program = run.program_of(config, data)
    with (
        run.claim(workdir, config, arguments.resume),
        reporting(run.total_steps(config, data), quiet=not processes.is_main()) as report,
        Board(workdir) as board,
    ):
        report.watch = board.add if arguments.tensorboard and processes.is_main() else None
        report.title(f"Training in {workdir}")
        if begins:
            report.line(f"There is no run in {workdir} yet: one begins.")
        try:
            records = run.train(config, data, program, workdir, report)
            if processes.is_main():
                save_curves(workdir / "curves.png", records, run.title(config, workdir), task)
        except KeyboardInterrupt:
            report.line(f"To continue: python -m experiments.train --resume --workdir={workdir}")
            raise
        seconds = time.monotonic() - began
        said = " ".join(filter(None, [task.verdict(records[-1]), marks.sentence(config.mark, records[-1])]))
        report.line(f"{said} {seconds:.0f} s; everything is in {workdir}.")
        if said := hint(records[-1], config, workdir):
            report.line(said)


if __name__ == "__main__":
    run_main(main)
