"""The log of a run: one record for every evaluation."""

import hashlib
import io
import itertools
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any, NamedTuple

from experiments.cli.errors import UserError, short, shown
from experiments.results.files import write_whole

Record = dict[str, float]

DIGEST_SIZE = 16  # bytes
KEYS = ("step", "train/loss", "train/accuracy", "eval/loss", "eval/accuracy")  # of a classification
NEEDED = ("step", "train/loss", "eval/loss")  # of every task
RECALIBRATED = "recalibrated"  # what the held-out examples give with statistics of some batches of training
AVERAGED = "averaged"  # what they give with averaged weights
MORE = (f"{RECALIBRATED}/loss", f"{RECALIBRATED}/accuracy")  # of a run that is evaluated with them, too


class Mark(NamedTuple):
    """A place in a log: how many bytes are before it, and their digest."""

    length: int
    digest: str


class MetricsLog:
    """`metrics.jsonl`: one record a line. NaN is `null` there, since JSON has no word for it, and infinity `1e999`."""

    def __init__(self, path: Path, length: int = 0, write: bool = True):
        """Opens the log to continue after so many bytes; what it holds beyond them is dropped.

        With `write=False` the records are kept, and the file is left to another process.
        """
        kept = path.read_bytes()[:length] if length else b""
        self.records = _records(path, kept)
        self._length, self._digest = len(kept), hashlib.blake2b(kept, digest_size=DIGEST_SIZE)
        if write:
            write_whole(path, lambda file: file.write(kept))
        self._path = path if write else None
        self._file: IO[bytes] = path.open("ab") if write else io.BytesIO()

    def add(self, record: Record) -> None:
        if self._path and not self._path.exists():  # the system would write on, into a file that nobody finds
            raise UserError(f"`{self._path}` is gone: its folder was moved or deleted while the program ran.")
        self.records.append(record)
        line = _line(record).encode()
        self._file.write(line)
        self._file.flush()
        self._length += len(line)
        self._digest.update(line)

    def mark(self) -> Mark:
        """Where the log ends now. What is before it is on the disk: a checkpoint may count on it."""
        if self._path:
            os.fsync(self._file.fileno())
        return Mark(self._length, self._digest.hexdigest())

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, where: TracebackType | None) -> None:
        self._file.close()


def departs(path: Path, mark: Mark) -> str:
    """Why the log at `path` does not begin as one of which `mark` is a place, for a checkpoint; or nothing."""
    kept = path.read_bytes()[: mark.length] if path.exists() else b""
    if len(kept) < mark.length:
        return f"is beyond the end of `{path.name}`"
    same = hashlib.blake2b(kept, digest_size=DIGEST_SIZE).hexdigest() == mark.digest
    return "" if same else f"was saved with another `{path.name}`"


def read_metrics(path: Path) -> list[Record]:
    """The records of a `metrics.jsonl`; a last line without its end, of a run that was killed, is left out."""
    return _records(path, path.read_bytes())


def _records(path: Path, content: bytes) -> list[Record]:
    try:
        lines = content.decode().splitlines(keepends=True)
        records = [_record(json.loads(line)) for line in lines if line.endswith("\n")]
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise UserError(
            f"`{path}` is not a log of this program: {type(error).__name__}: {shown(str(error))}."
        ) from error
    if any(after["step"] <= before["step"] for before, after in itertools.pairwise(records)):
        raise UserError(f"`{path}` is not a log of this program: its steps must grow.")
    return records


def _record(values: Any) -> Record:
    if missing := [k for k in NEEDED if k not in values]:
        raise KeyError(missing[0])
    record = {k: math.nan if v is None else v for k, v in values.items()}
    if wrong := [k for k, v in record.items() if type(v) is not float and not (type(v) is int and abs(v) < 2**63)]:
        raise ValueError(f"`{wrong[0]}` is {short(record[wrong[0]])}")
    if not 1 <= record["step"] < math.inf:  # nor NaN
        raise ValueError(f"`step` is {short(record['step'])}")
    return record


def splits(record: Mapping[str, Any]) -> tuple[str, ...]:
    """What a record has figures of: `train`, `eval`, and perhaps more.

    >>> splits({"step": 1, "train/loss": 2.0, "eval/loss": 3.0})
    ('train', 'eval')
    """
    return tuple(name.removesuffix("/loss") for name in record if name.endswith("/loss"))


def _line(record: Record) -> str:
    return "{" + ", ".join(f"{json.dumps(name)}: {_number(value)}" for name, value in record.items()) + "}\n"


def _number(value: float) -> str:
    """As JSON; what is too large for a float, every reader takes for infinity.

    >>> _number(0.5), _number(-math.inf), _number(math.nan)
    ('0.5', '-1e999', 'null')
    """
    if math.isnan(value):
        return "null"
    return json.dumps(value) if math.isfinite(value) else "1e999" if value > 0 else "-1e999"
