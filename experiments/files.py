"""The files of a run folder. Whatever happens, none of them is ever half written."""

import io
import itertools
import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from experiments.errors import UserError, short, shown

Record = dict[str, float]

KEYS = ("step", "train/loss", "train/accuracy", "eval/loss", "eval/accuracy")


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Calls `write` with a temporary name of the same ending, and moves the file to `path` when it is whole."""
    temporary = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        write(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Writes `text` to `path`, wholly or not at all."""
    write_whole(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


class MetricsLog:
    """`metrics.jsonl`: one record a line. A loss that is not finite is `null` there."""

    def __init__(self, path: Path, upto: int, write: bool = True):
        """Opens the log to continue after step `upto`; what it holds of later steps, or half a line, is dropped.

        With `write=False` the records are kept, and the file is left to another process.
        """
        self.records = [r for r in read_metrics(path) if r["step"] <= upto] if path.exists() else []
        if write:
            write_text(path, "".join(_line(r) for r in self.records))
        self._path = path if write else None
        self._file = path.open("a", encoding="utf-8") if write else io.StringIO()

    def add(self, record: Record) -> None:
        if self._path and not self._path.exists():  # the system would write on, into a file that nobody finds
            raise UserError(f"`{self._path}` is gone: its folder was moved or deleted while the program ran.")
        self.records.append(record)
        self._file.write(_line(record))
        self._file.flush()

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, where: TracebackType | None) -> None:
        self._file.close()


def read_metrics(path: Path) -> list[Record]:
    """The records of a `metrics.jsonl`; a last line without its end, of a run that was killed, is left out."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        records = [_record(json.loads(line)) for line in lines if line.endswith("\n")]
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise UserError(
            f"`{path}` is not a log of this program: {type(error).__name__}: {shown(str(error))}."
        ) from error
    if any(after["step"] <= before["step"] for before, after in itertools.pairwise(records)):
        raise UserError(f"`{path}` is not a log of this program: its steps must grow.")
    return records


def _record(values: Any) -> Record:
    record = {k: math.nan if values[k] is None else values[k] for k in KEYS}
    if wrong := [k for k, v in record.items() if type(v) not in (int, float) or math.isinf(v)]:
        raise ValueError(f"`{wrong[0]}` is {short(record[wrong[0]])}")
    if not record["step"] >= 1:  # nor NaN
        raise ValueError(f"`step` is {short(record['step'])}")
    return record


def _line(record: Record) -> str:
    return json.dumps({k: v if math.isfinite(v) else None for k, v in record.items()}) + "\n"
