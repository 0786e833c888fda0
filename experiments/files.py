"""The files of a run folder. Whatever happens, none of them is ever half written."""

import io
import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from experiments.errors import UserError

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
        self._file = path.open("a", encoding="utf-8") if write else io.StringIO()

    def add(self, record: Record) -> None:
        self.records.append(record)
        self._file.write(_line(record))
        self._file.flush()

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, where: TracebackType | None) -> None:
        self._file.close()


def read_metrics(path: Path) -> list[Record]:
    """The records of a `metrics.jsonl`; a last line without its end, of a run that was killed, is left out."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    whole = [line for line in lines if line.endswith("\n")]
    try:
        records = [json.loads(line) for line in whole]
        return [{k: math.nan if r[k] is None else r[k] for k in KEYS} for r in records]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"`{path}` is not a log of this program: {type(error).__name__}: {error}.") from error


def _line(record: Record) -> str:
    return json.dumps({k: v if math.isfinite(v) else None for k, v in record.items()}) + "\n"
