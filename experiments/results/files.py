"""Files that are never half written, whatever happens."""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO


def write_whole(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Calls `write` with a new file, and gives it the name `path` when it is whole and on the disk.

    Nobody else can open or have made that file before: its name is random, and no link is followed.
    """
    handle, temporary = tempfile.mkstemp(prefix=".", dir=path.parent)
    try:
        with open(handle, "wb") as file:
            write(file)
            file.flush()
            os.fchmod(file.fileno(), 0o666 & ~_umask())
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)
    _sync_names(path.parent)


def write_text(path: Path, text: str) -> None:
    """Writes `text` to `path`, wholly or not at all."""
    write_whole(path, lambda file: file.write(text.encode()))


def _umask() -> int:
    """What the user takes from the mode of new files; it can be read only by setting it."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _sync_names(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError:  # not every file system can
        pass
    finally:
        os.close(handle)
