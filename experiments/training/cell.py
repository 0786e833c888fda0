"""A cell of a comparison: runs that differ in their seeds alone, trained by one program where that can be."""

import contextlib
import dataclasses
import itertools
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import jax
import numpy as np

from experiments.cli.report import Report
from experiments.config import Config
from experiments.data import Data, count, epoch_order, kind_of
from experiments.results.records import Record
from experiments.training import run
from experiments.training.run import Run
from experiments.training.stacking import together, training_batches
from experiments.training.steps import Program, TrainState, make_program

Together = Literal["auto", "yes", "no"]


def train_cell(
    name: str,
    config: Config,
    folders: Mapping[int, Path],
    data: Data,
    report: Report,
    resume: bool,
    how: Together,
    found: dict[int, list[Record]],
) -> None:
    """Trains with each seed in its folder, and puts the records of what is finished into `found`.

    Every run is what it would be alone, up to rounding: its folder, its checkpoints, its log. Runs that are at
    different steps after an interruption are trained in several groups.
    """
    program = run.program_of(config, data)
    if why := _why_never(config) or (how == "auto" and _why_not_held(program, len(folders))):
        report.line(f"{name}: one seed after the other, since {why}.")
    is_one = how != "no" and not why
    for part in [folders] if is_one else [{seed: folder} for seed, folder in folders.items()]:
        with contextlib.ExitStack() as held:
            runs = []
            for seed, folder in part.items():
                seeded = dataclasses.replace(config, seed=seed)
                held.enter_context(run.claim(folder, seeded, resume))
                runs.append(held.enter_context(run.taken_up(seeded, data, program, folder, report)))
            for _, group in itertools.groupby(sorted(runs, key=_step), _step):
                _train(name, [*group], data, program, report, how, found)


def _step(one: Run) -> int:
    return int(one.state.step)


def _train(
    name: str,
    runs: Sequence[Run],
    data: Data,
    program: Program,
    report: Report,
    how: Together,
    found: dict[int, list[Record]],
) -> None:
    """Trains runs that are at one step, by one program if that can be."""
    parts = [[one] for one in runs]
    if len(runs) > 1 and _step(runs[0]) < run.total_steps(runs[0].config, data):
        began = time.monotonic()
        made = _side_by_side(runs, data, program, how)
        if isinstance(made, Program):
            seconds = time.monotonic() - began
            report.line(f"{name}: {len(runs)} seeds run as one program, which was compiled in {seconds:.1f} s.")
            program, parts = made, [[*runs]]
        else:
            report.line(f"{name}: one seed after the other, since {made}.")
    for part in parts:
        seeds = ", ".join(str(one.config.seed) for one in part)
        report.title(f"{name}, seed{'s' if len(part) > 1 else ''} {seeds}")
        run.go_on(part, data, program, report)
        found |= {one.config.seed: one.log.records for one in part}


def _side_by_side(runs: Sequence[Run], data: Data, alone: Program, how: Together) -> Program | str:
    """The compiled program of several runs, or why they run one after the other; `alone` is that of one."""
    config, states = runs[0].config, [one.state for one in runs]
    orders = [epoch_order(one.config.seed, 0, count(data.train)) for one in runs]
    if how == "auto" and jax.default_backend() == "cpu" and _convolves(config, data, alone, states[0], orders[0]):
        return "convolutions of several seeds at once are slow on the CPU (`--together=yes` has them nevertheless)"
    program = make_program(config, kind_of(data), run.total_steps(config, data), seeds=len(runs))
    batch = next(training_batches(config, data, program, orders))
    compiled = program.lower(together(states, program), batch).compile()
    if how == "auto" and _bytes_of(compiled) > run.memory():
        return f"a step of all takes {_bytes_of(compiled) / 1e9:.1f} GB, more than the device has"
    return program._replace(train_step=lambda state, batch: compiled(state, program.place(batch)))


def _convolves(config: Config, data: Data, program: Program, state: TrainState, order: np.ndarray) -> bool:
    """Whether a step has a convolution. Of several seeds it is one in groups, for which XLA:CPU has no fast way."""
    batch = next(training_batches(config, data, program, [order]))
    return "stablehlo.convolution" in program.lower(state, batch).as_text()


def _bytes_of(compiled: jax.stages.Compiled) -> int:
    found = compiled.memory_analysis()
    return int(found.argument_size_in_bytes + found.temp_size_in_bytes) if found else 0


def _why_never(config: Config) -> str:
    """Why the layout of a config trains one run at a time, or nothing."""
    if config.parallel.layout in ("pmap", "vmap"):
        return f"`config.parallel.layout={config.parallel.layout}` trains one at a time"
    return "several processes train one at a time" if jax.process_count() > 1 else ""


def _why_not_held(program: Program, seeds: int) -> str:
    """Why the states of all runs are too much for the memory, or nothing."""
    needed = seeds * run.needed(program)
    return f"all at once take {needed / 1e9:.1f} GB and more" if needed > run.memory() else ""
