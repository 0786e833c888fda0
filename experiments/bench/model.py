"""Programs compiled for machines that need not be there: each in a process of its own, which `compiled` is."""

import json
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from experiments.bench import rows
from experiments.bench.options import Arguments, environment
from experiments.cli.errors import UserError
from experiments.measure.compile import FailedError, records_of
from experiments.measure.targets import Target, target_of
from experiments.results.files import write_text

Record = dict[str, Any]
PROGRAM = ("what", "contender", "target", "dtype")  # the keys of a record that say of which program it is


def tasks(arguments: Arguments) -> list[tuple[Target, str]]:
    """The targets, and the dtypes for each. Nobody trains a ResNet-50 in float32 on an accelerator."""
    made: list[tuple[Target, str]] = []
    for target in map(target_of, arguments.target):
        for dtype in arguments.dtypes:
            wanted = (dtype == "bfloat16") if target.platform != "cpu" else (dtype == "float32" or not arguments.quick)
            if wanted or "compiled" in arguments.parts:
                made.append((target, dtype))
    return made


def works(arguments: Arguments) -> list[str]:
    """The names of the rows that are compiled.

    Raises:
      UserError: none has such a name.
    """
    wanted = arguments.works if "compiled" in arguments.parts else (f"{rows.STEP}, batch norm",)
    names = [row.name for row in rows.chosen(wanted)]
    if not names:
        known = ", ".join(f"`{row.name}`" for row in rows.ROWS)
        raise UserError(f"`--works` must begin a name in {known}; {arguments.works} does not.")
    return names


def measure(
    target: Target, dtype: str, arguments: Arguments, log: Path, left_out: Callable[[str], None]
) -> Iterator[Record]:
    """The facts of every program, as they are found. What the compiler says goes to `log`."""
    python = {"tpu": arguments.tpu_python, "gpu": arguments.gpu_python}.get(target.platform, sys.executable)
    task = {
        "target": str(target), "dtype": dtype, "works": works(arguments), "contenders": arguments.contenders,
        "memory_switch": arguments.memory_switch, "blocks": arguments.blocks, "explain": arguments.explain,
        "repeats": 1 if arguments.quick else arguments.repeats,
    }  # fmt: skip
    if shutil.which(python) is None:
        left_out(f"{target}: `--{target.platform}-python` must be an interpreter, but it is {python!r}.")
        return
    with log.open("w+", encoding="utf-8") as errors:
        try:
            surroundings = environment(arguments.buffers) | target.environment
            for found in records_of("experiments.bench.compiled", task, python, surroundings, errors):
                if "skipped" in found:
                    left_out(found["skipped"])
                else:
                    yield found
        except FailedError as failed:
            left_out(f"{target}, {dtype}: the compiler's process {failed}; see {log}.")


def kept(path: Path) -> list[Record]:
    """The facts that were found so far, in this run and in others.

    Raises:
      UserError: the file holds something else.
    """
    if not path.exists():
        return []
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found = None
    if not isinstance(found, list) or not all(isinstance(r, dict) and set(PROGRAM) <= set(r) for r in found):
        raise UserError(f"`--found` must be a file of this benchmark, or a new one, but {path} holds something else.")
    return found


def keep(path: Path, record: Record) -> None:
    """Adds a record to them, in the place of what was found before of the same program."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(joined([*kept(path), record]), indent=1) + "\n")


def joined(records: Sequence[Record]) -> list[Record]:
    """Each program once, as it was found last; machines in order."""
    last = {tuple(r[key] for key in PROGRAM): r for r in records}
    return sorted(last.values(), key=lambda r: (r["target"], r["dtype"], _place(r)))


def _place(record: Record) -> int:
    """Where the row of a record stands among all rows, however many blocks its encoder has."""
    what = record["what"]
    return next((i for i, row in enumerate(rows.ROWS) if what == row.name or what.startswith(f"{row.name} (")), 0)
