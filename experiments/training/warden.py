"""Ends the processes of a group when their launcher is gone, whatever ended it: a small process that waits for that."""

import contextlib
import os
import signal
import subprocess
import sys


class Warden:
    """Knows process groups, and kills them when this process ends without a word."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", __file__], stdin=subprocess.PIPE, start_new_session=True
        )

    def watch(self, group: int) -> None:
        """From now on this group ends with the launcher."""
        self._say(group)

    def forget(self, group: int) -> None:
        """This group has ended: another may get its number."""
        self._say(-group)

    def dismiss(self) -> None:
        """No group needs it any more."""
        self._process.kill()
        self._process.communicate()

    def _say(self, number: int) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(OSError, ValueError):  # it is not there any more
            os.write(self._process.stdin.fileno(), f"{number}\n".encode())  # at once and whole


def main() -> None:
    groups: set[int] = set()
    for line in sys.stdin:  # until the launcher, which has the other end, is gone
        number = int(line)
        groups = groups - {-number} if number < 0 else groups | {number}
    for group in groups:
        with contextlib.suppress(OSError):
            os.killpg(group, signal.SIGKILL)


if __name__ == "__main__":
    main()
