"""One run: train, measure, save, in a folder of its own."""

import contextlib
import itertools
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from experiments.cli.errors import UserError
from experiments.cli.report import Report
from experiments.cli.schema import differences, fields
from experiments.config import Config, ModelConfig
from experiments.config.file import load, to_json
from experiments.config.own import short_name
from experiments.data import Data, Examples, batches, count, epoch_order, kind_of, steps_per_epoch
from experiments.data.prefetch import prefetched
from experiments.results.files import write_text
from experiments.results.records import AVERAGED, RECALIBRATED, MetricsLog, Record, read_metrics, splits
from experiments.tasks import task_of
from experiments.tasks.task import Sums, Task
from experiments.training import processes
from experiments.training.checkpoints import Checkpoints, digest
from experiments.training.lock import only_writer
from experiments.training.recalibration import recalibrated
from experiments.training.stacking import apart, together, training_batches
from experiments.training.steps import Program, TrainState, make_program

CHECKPOINTS, METRICS = "checkpoints", "metrics.jsonl"
# A run may be continued with other ones: they change nothing of what it computes.
ELSEWHERE = {"config.parallel.layout", "config.parallel.fake_devices", "config.mark"}


@contextlib.contextmanager
def claim(workdir: Path, config: Config, resume: bool) -> Iterator[None]:
    """Within it, `workdir` is the folder of the run of `config`, and this process, or its group, alone writes there.

    It is a new one, or with `resume` the one that it was. What can be refused comes before: this leaves its mark.

    Raises:
      UserError: it holds a run and `resume` is not given, or a run of another config, or another process writes there;
        it cannot be made.
    """
    with contextlib.ExitStack() as held:
        refused = ""
        if processes.is_main():
            try:
                _claim(workdir, config, resume, held)
            except UserError as error:
                refused = str(error)
        if refused := processes.agreed(refused[:1000]):
            raise UserError(refused)
        yield


def _claim(workdir: Path, config: Config, resume: bool, held: contextlib.ExitStack) -> None:
    _check_same(workdir, config, resume)  # before anything is written there
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        held.enter_context(only_writer(workdir))
        _check_same(workdir, config, resume)  # what another process did meanwhile
        file = workdir / "config.json"
        if not file.exists():
            write_text(file, to_json(config))
    except OSError as error:
        raise UserError(f"`--workdir` must be a folder that can be written: {error}.") from error


def _check_same(workdir: Path, config: Config, resume: bool) -> None:
    file = workdir / "config.json"
    if not file.exists():
        if left := [name for name in (CHECKPOINTS, METRICS) if os.path.lexists(workdir / name)]:
            raise UserError(
                f"`{workdir}` holds `{left[0]}` of a run, but no `config.json` that says of which; "
                "name another `--workdir`."
            )
        return
    if not resume:
        raise UserError(f"`{workdir}` already holds a run; add `--resume` to continue it, or name another `--workdir`.")
    if differing := [name for name in differences(load(str(file)), config) if name not in ELSEWHERE]:
        names = ", ".join(f"`{name}`" for name in differing)
        raise UserError(f"`--resume` continues a run as it was configured, but `{file}` has other values for {names}.")


def title(config: Config, workdir: Path) -> str:
    """What a picture of the run is called."""
    data, model = short_name(config.data.name), config.model
    return f"{workdir.name}: {data}, norm {model.norm} ({model.api}), seed {config.seed}"


def total_steps(config: Config, data: Data) -> int:
    return config.train.epochs * steps_per_epoch(config, data)


def program_of(config: Config, data: Data) -> Program:
    """The program of a config for its data.

    Raises:
      UserError: what does not fit the devices, or their memory.
    """
    program = make_program(config, kind_of(data), total_steps(config, data))
    there = memory()
    if needed(program) > there:
        option, value = "config.model.size", config.model.size or config.model.name
        if config.model.name == ModelConfig().name:
            option, value = "config.model.widths", str(config.model.widths)
        raise UserError(
            f"`{option}` must fit the memory of a device, {there / 1e9:.1f} GB, but to train "
            f"{value} takes {needed(program) / 1e9:.1f} GB and more; use a smaller one."
        )
    return program


def needed(program: Program) -> int:
    """The bytes that the state of one run takes at least, with its gradients and updates."""
    state = jax.tree.leaves(jax.eval_shape(program.init, jax.random.key(0)))
    return 2 * sum(leaf.size * leaf.dtype.itemsize for leaf in state)


def memory() -> int:
    """The bytes of a device, or of the machine where the CPU is the device."""
    limit = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")
    return limit or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def checkpoints_of(workdir: Path, config: Config, data: Data) -> Checkpoints:
    """The checkpoints of the run of `config` in `workdir`: they are of that config and of these examples."""
    made_by = {name: value for name, value in fields(config).items() if name not in ELSEWHERE}
    made_by["config.data (the examples)"] = digest(*data.train.values(), *data.held_out.values())
    return Checkpoints(workdir / CHECKPOINTS, made_by, before=fields(Config()))


class Run(NamedTuple):
    """A run that was taken up, and that nobody else writes to."""

    config: Config
    workdir: Path
    state: TrainState
    checkpoints: Checkpoints
    log: MetricsLog


def train(config: Config, data: Data, program: Program, workdir: Path, report: Report) -> list[Record]:
    """Trains in `workdir`, from its last checkpoint if it has one, and returns the records of the whole run."""
    with taken_up(config, data, program, workdir, report) as run:
        go_on([run], data, program, report)
        return run.log.records


@contextlib.contextmanager
def taken_up(config: Config, data: Data, program: Program, workdir: Path, report: Report) -> Iterator[Run]:
    """The run in `workdir` where its last checkpoint has it, or at its beginning."""
    with checkpoints_of(workdir, config, data) as checkpoints:
        state, log = take_up(checkpoints, program.init(jax.random.key(config.seed)), workdir, report)
        report.advance(int(state.step))
        with log:
            yield Run(config, workdir, state, checkpoints, log)


def go_on(runs: Sequence[Run], data: Data, program: Program, report: Report) -> None:
    """Trains runs to their end: one, or with a program of so many seeds several that are at the same step."""
    try:
        _train_epochs(runs, data, program, report)
    except KeyboardInterrupt:
        for run in runs:
            saved, steps = run.checkpoints.latest or 0, total_steps(run.config, data)
            report.line(f"Interrupted: {run.workdir} is saved up to step {saved} of {steps}.")
        raise


def _train_epochs(runs: Sequence[Run], data: Data, program: Program, report: Report) -> None:
    config, state = runs[0].config, together([run.state for run in runs], program)
    first = int(runs[0].state.step) // steps_per_epoch(config, data)
    for epoch in range(first, config.train.epochs):
        state = _train_epoch(runs, data, program, state, epoch, report)
        for run, own in zip(runs, apart(state, program), strict=True):
            who = f"seed {run.config.seed}  " if program.seeds else ""
            report.line(who + _sentence(epoch + 1, config, run.log.records[-1]))
            _check_room(run.workdir, own)
            run.checkpoints.save(own, run.log.mark())


def _check_room(workdir: Path, state: TrainState) -> None:
    """Refuses a checkpoint that the disk cannot hold: its writer says so in many lines and leaves a part."""
    needed, free = sum(leaf.nbytes for leaf in jax.tree.leaves(state)), shutil.disk_usage(workdir).free
    if needed > free:
        raise UserError(
            f"No space left on device: a checkpoint in `{workdir}` takes {needed} bytes, but {free} are free. Make "
            "room, and continue with `--resume`."
        )


def take_up(
    checkpoints: Checkpoints, initial: TrainState, workdir: Path, report: Report
) -> tuple[TrainState, MetricsLog]:
    """The state of the last whole checkpoint and the log up to it, or the `initial` state and an empty log."""
    file, write = workdir / METRICS, processes.is_main()
    restored = checkpoints.restore(initial, file, report.line)
    if restored is not None:
        return restored.state, MetricsLog(file, restored.log.length, write)
    if file.exists() and read_metrics(file):  # a log, and not what is somebody else's
        report.line(f"There is no checkpoint in {workdir} yet: the run begins again.")
    return initial, MetricsLog(file, write=write)


def _train_epoch(
    runs: Sequence[Run], data: Data, program: Program, state: TrainState, epoch: int, report: Report
) -> TrainState:
    config, per_epoch = runs[0].config, steps_per_epoch(runs[0].config, data)
    orders = [epoch_order(run.config.seed, epoch, count(data.train)) for run in runs]
    sums: list[Sums] = []
    for i, batch in enumerate(prefetched(training_batches(config, data, program, orders)), start=1):
        state, new = program.train_step(state, batch)
        sums.append(new)
        if i == per_epoch or (config.train.eval_every and i % config.train.eval_every == 0):
            found = _evaluated(config, data, program, state, orders, sums)
            for run, metrics in zip(runs, found, strict=True):
                run.log.add({"step": epoch * per_epoch + i, **metrics})
                report.record(run.log.records[-1])
            sums = []
        report.advance(len(runs))
    return state


def evaluate(program: Program, state: TrainState, examples: Examples, batch_size: int) -> list[Sums]:
    """What the model is worth on `examples`, each counted once."""
    in_turn = prefetched(batches(examples, batch_size, share=program.eval_share))
    return [program.eval_step(state, batch) for batch in in_turn]


def _evaluated(
    config: Config, data: Data, program: Program, state: TrainState, orders: Sequence[np.ndarray], sums: Iterable[Sums]
) -> list[Record]:
    """The metrics of each run: of training by their sums, and of the held-out examples in every way that is asked for.

    These are with statistics of the first batches of the epoch, and with averaged weights.
    """
    task = task_of(config)

    def measured(split: str, state: TrainState, recalibrate: int = 0) -> list[Record]:
        if recalibrate:
            in_turn = itertools.islice(training_batches(config, data, program, orders), recalibrate)
            state = recalibrated(program.measure_step, state, in_turn, many=program.seeds is not None)
        return _metrics(task, split, evaluate(program, state, data.held_out, config.train.eval_batch_size))

    found = [_metrics(task, "train", sums), measured("eval", state)]
    if config.eval.recalibrate:
        found.append(measured(RECALIBRATED, state, config.eval.recalibrate))
    if state.average is not None:
        found.append(measured(AVERAGED, state._replace(params=state.average), config.eval.recalibrate))
    return [dict(itertools.chain(*(part.items() for part in parts))) for parts in zip(*found, strict=True)]


def _metrics(task: Task, split: str, sums: Iterable[Sums]) -> list[Record]:
    """The metrics of each run; they are NaN where nothing counted, as of tokens of which none was hidden."""
    of_batches = jax.device_get(list(sums))
    totals = {n: np.atleast_1d(np.sum([s[n] for s in of_batches], axis=0, dtype=np.float64)) for n in of_batches[0]}
    with np.errstate(divide="ignore", invalid="ignore"):
        means = [task.means(dict(zip(totals, row, strict=True))) for row in zip(*totals.values(), strict=True)]
    return [{f"{split}/{name}": float(value) for name, value in of_run.items()} for of_run in means]


def _sentence(epoch: int, config: Config, record: Record) -> str:
    task = task_of(config)
    shown = "  ".join(task.line(record, split) for split in splits(record))
    return f"epoch {epoch:3} of {config.train.epochs}  step {record['step']:6}  {shown}"
