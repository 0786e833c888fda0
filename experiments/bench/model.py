"""A whole model, compiled for machines that need not be there: each in a process of its own, which `compiled` is."""

import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from experiments.bench.options import Arguments, environment
from experiments.measure.compile import FailedError, records_of
from experiments.measure.targets import Target, target_of


def tasks(arguments: Arguments) -> list[tuple[Target, str]]:
    """The targets, and the dtypes for each. Nobody trains in float32 on an accelerator."""
    made: list[tuple[Target, str]] = []
    for target in map(target_of, arguments.target):
        for dtype in arguments.dtypes:
            if (dtype == "bfloat16") if target.platform != "cpu" else (dtype == "float32" or not arguments.quick):
                made.append((target, dtype))
    return made


def measure(
    target: Target, dtype: str, arguments: Arguments, log: Path, left_out: Callable[[str], None]
) -> Iterator[dict[str, Any]]:
    """The facts of every program, as they are found. What the compiler says goes to `log`."""
    python = {"tpu": arguments.tpu_python, "gpu": arguments.gpu_python}.get(target.platform, sys.executable)
    task = {
        "target": str(target), "dtype": dtype, "memory_switch": arguments.memory_switch,
        "contenders": arguments.contenders,
        "repeats": arguments.repeats if target.platform == "cpu" and not arguments.quick else 1,
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
