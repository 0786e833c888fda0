"""Compiles one training step for 4, 64 and 256 devices, and shows what it sends: `python -m experiments.scale`.

For TPUs by their own compiler, with no TPU there, where an environment has it (`--tpu_python`); for so many pretended
CPU devices elsewhere. Each step is compiled in a process of its own.
"""

import dataclasses
import itertools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from experiments.cli.flags import parse_flags
from experiments.cli.program import run_main
from experiments.measure.compile import FailedError, records_of
from experiments.measure.targets import Target, target_of
from experiments.results.files import write_text
from experiments.results.tables import markdown

ROOT = Path(__file__).resolve().parents[2]
DOCUMENT = ROOT / "docs" / "results" / "scale.md"
TPUS = ("tpu:v5e:2x2", "tpu:v5e:8x8", "tpu:v5e:16x16")
CPUS = ("cpu:4", "cpu:64", "cpu:256")
HEAD = ("statistics of", "devices", "collectives", "operand bytes", "temporary MB", "compile, CPU s")
GROUP = 2  # devices, in the groups of `sync=group`

NEWLINE = "\n"  # which f-strings of Python 3.11 do not take

Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Compile one training step for 4, 64 and 256 devices, and show what it sends."""

    model: Literal["ResNet-50", "one block"] = "ResNet-50"
    layouts: tuple[Literal["jit", "shard_map"], ...] = ("jit", "shard_map")
    syncs: tuple[Literal["global", "group", "device"], ...] = ("global", "group", "device")
    targets: tuple[str, ...] = ()
    """TPU topologies such as `tpu:v5e:8x8`, or numbers of CPU devices such as `cpu:64`; 4, 64 and 256 chips by default,
    or as many CPU devices where there is no compiler for TPUs."""
    tpu_python: str = sys.executable
    """The interpreter of an environment with `jax[tpu]`."""
    found: str = "runs/scale.json"
    """What has been found: a step that is there is not compiled again."""
    write: bool = False
    """Write docs/results/scale.md."""


def compiled(python: str, task: Row) -> Row:
    """The facts of one step, found by a process of its own."""
    target = target_of(task["target"]) if task["target"].startswith("tpu") else Target("cpu")
    kept = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    with tempfile.TemporaryFile("w+", encoding="utf-8") as errors:
        try:
            (found,) = records_of("experiments.scale.compiled", task, python, kept | target.environment, errors)
        except FailedError as failed:
            return {"skipped": f"{task['target']}: {failed.said}"}
    return found


def has_tpu_compiler(python: str) -> bool:
    """Whether the environment of an interpreter can compile for TPUs."""
    question = "import importlib.util, sys; sys.exit(importlib.util.find_spec('libtpu') is None)"
    return subprocess.run([python, "-c", question], check=False).returncode == 0


def cells(row: Row) -> list[str]:
    """What the table says of a step."""
    counts = ", ".join(f"{n} {kind}{'s' * (n > 1)}" for kind, n in row["counts"].items()) or "none"
    sync = {"group": f"groups of {GROUP}", "device": "each device", "global": "all devices"}[row["sync"]]
    sizes = f"{row['operand_bytes']:,}", f"{row['temporary_bytes'] / 1e6:.1f}", f"{row['seconds']:.0f}"
    return [f"{sync}, `{row['layout']}`", str(row["devices"]), counts, *sizes]


def growth(rows: Sequence[Row]) -> list[str]:
    """A sentence for everything that is sent and is not the same for every number of devices."""
    first: dict[tuple[str, str], Row] = {}
    found = []
    for row in rows:
        base = first.setdefault((row["layout"], row["sync"]), row)
        for name in ("counts", "operand_bytes"):
            if row[name] != base[name]:
                what = f"`{row['layout']}`, {row['sync']}: {name.replace('_', ' ')}"
                found.append(f"{what} {base[name]} for {base['devices']} devices, {row[name]} for {row['devices']}.")
    return found


def table(rows: Sequence[Row]) -> list[str]:
    """The lines of a table of all rows, and what it comes to."""
    lines = markdown(HEAD, [cells(row) for row in rows], numbers=True).splitlines()
    return [*lines, "", *(growth(rows) or ["What is sent is the same for every number of devices."])]


def document(rows: Sequence[Row], arguments: Arguments, targets: Iterable[str]) -> str:
    """The text of docs/results/scale.md."""
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("jax", "flax"))
    return f"""# What a training step sends, by the number of devices

This is one step of {arguments.model} in the training program, with 32 examples on each device, compiled for
{", ".join(f"`{t}`" for t in targets)} without such a device ({versions}).
The numbers are those of one device: how many collectives its program has, the total size of their operands, and its
temporary memory.

{NEWLINE.join(table(rows))}

Statistics of all devices need one all-reduce of two vectors for each norm in the forward pass, and one in the backward
pass. Statistics of groups need the same, among fewer devices. Statistics of each device need none. All three send the
gradient once. With groups, their statistics are sent once more, for the running state.

`python -m experiments.scale --write` makes this page. `--tpu_python` is the Python of an environment with `jax[tpu]`.
"""


def measure(arguments: Arguments, targets: Sequence[str]) -> list[Row]:
    """The facts of every step, said and saved as they are found."""
    file = Path(arguments.found)
    found: list[Row] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else []
    rows: list[Row] = []
    for layout, sync, target in itertools.product(arguments.layouts, arguments.syncs, targets):
        task = {"target": target, "model": arguments.model, "layout": layout, "sync": sync}
        row = next((r for r in found if task.items() <= r.items()), None)
        if row is None:
            row = task | compiled(arguments.tpu_python, task | {"group_size": GROUP if sync == "group" else None})
            if "skipped" in row:
                print(f"Left out: {row['skipped']}", flush=True)
                continue
            found.append(row)
            file.parent.mkdir(parents=True, exist_ok=True)
            write_text(file, json.dumps(found, indent=1) + "\n")
        rows.append(row)
        print(f"{target}: {'; '.join(cells(row))}", flush=True)
    return rows


def main(argv: Sequence[str]) -> None:
    arguments = parse_flags(Arguments, argv, "python -m experiments.scale", __doc__)
    targets = arguments.targets or (TPUS if has_tpu_compiler(arguments.tpu_python) else CPUS)
    rows = measure(arguments, targets)
    print("", *table(rows), sep="\n")
    if arguments.write and rows:
        DOCUMENT.parent.mkdir(exist_ok=True)
        write_text(DOCUMENT, document(rows, arguments, targets))
    if growth(rows) or not rows:
        raise SystemExit(1)


if __name__ == "__main__":
    run_main(main)
