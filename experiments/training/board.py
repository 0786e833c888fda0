"""The figures of a run for TensorBoard, by tensorboardX, beside `metrics.jsonl`, which stays the record."""

import importlib.util
import math
from pathlib import Path
from types import TracebackType
from typing import Any

from experiments.cli.errors import UserError
from experiments.results.records import Record

FOLDER = "tensorboard"


def check_board() -> None:
    """Refuses TensorBoard where tensorboardX is not installed.

    Raises:
      UserError: it is not.
    """
    if importlib.util.find_spec("tensorboardX") is None:
        raise UserError(
            "`--tensorboard` needs the package `tensorboardX`; `pip install 'bnjax[tensorboard]'` brings it."
        )


class Board:
    """Writes each record of a run to its folder `tensorboard`. A run that is taken up replaces what it writes again."""

    def __init__(self, workdir: Path):
        self._folder = workdir / FOLDER
        self._writer: Any = None

    def add(self, record: Record) -> None:
        step = int(record["step"])
        if self._writer is None:
            self._writer = _writer(self._folder, step)
        for name, value in record.items():
            if name != "step" and math.isfinite(value):
                self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def __enter__(self) -> "Board":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, where: TracebackType | None) -> None:
        if self._writer is not None:
            self._writer.close()


def _writer(folder: Path, step: int) -> Any:
    from tensorboardX import SummaryWriter  # not imported where nobody asks for it

    return SummaryWriter(str(folder), purge_step=step, write_to_disk=True)
