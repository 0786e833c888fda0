"""Ends the processes of a group when their launcher is gone, whatever ended it: a small process that waits for that."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from typing import Any


class Warden:
    """Knows process groups, and kills them when this process ends without a word."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(_program(), stdin=subprocess.PIPE, start_new_session=True)
        assert self._process.stdin is not None
        self._pipe = self._process.stdin.fileno()

    def start(self, command: Sequence[str], **how: Any) -> "subprocess.Popen[str]":
        """Starts a command that ends with the launcher, as the leader of a process group of its own.

        It is known before it begins: the launcher may end before it hears that the command has begun.
        """
        return subprocess.Popen(
            _program(str(self._pipe), *command), pass_fds=[self._pipe], start_new_session=True, **how
        )

    def forget(self, group: int) -> None:
        """This group has ended: another may get its number."""
        _say(self._pipe, -group)

    def dismiss(self) -> None:
        """Nothing more will be started. What has not ended is killed, as one whose start was interrupted."""
        self._process.communicate()  # which closes the pipe


def _program(*arguments: str) -> list[str]:
    return [sys.executable, "-I", "-S", __file__, *arguments]


def _say(pipe: int, number: int) -> None:
    with contextlib.suppress(OSError):  # the warden is not there any more
        os.write(pipe, f"{number}\n".encode())  # at once and whole


def begin(pipe: int, command: Sequence[str]) -> None:
    """Makes itself known to the warden and becomes the command, which has not the pipe."""
    _say(pipe, os.getpid())
    os.set_inheritable(pipe, False)
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # which Python ignores, and so would the command
    os.execv(command[0], [*command])


def wait() -> None:
    """Kills the groups that are known when nobody has the other end of standard input any more."""
    groups: set[int] = set()
    for line in sys.stdin:
        number = int(line)
        groups = groups - {-number} if number < 0 else groups | {number}
    for group in groups:
        with contextlib.suppress(OSError):
            os.killpg(group, signal.SIGKILL)


if __name__ == "__main__":
    if sys.argv[1:]:
        begin(int(sys.argv[1]), sys.argv[2:])
    else:
        wait()
