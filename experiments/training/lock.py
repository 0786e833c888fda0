"""A folder has one writer at a time, by a lock that the system takes back from a process that dies."""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from experiments.cli.errors import UserError

NAME = ".lock"  # it stays, and is empty: were it deleted, two processes could lock two files of this name


@contextlib.contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Within it, no other process that asks for it writes to `folder`.

    Raises:
      UserError: another process has the folder.
      OSError: it cannot be locked.
    """
    handle = os.open(folder / NAME, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    try:
        _lock(handle, folder)
        yield
    finally:
        os.close(handle)


def _lock(handle: int, folder: Path) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise UserError(
            f"Another process writes to `{folder}`; wait until it has ended, or name another `--workdir`."
        ) from error
