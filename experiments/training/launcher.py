"""Processes that live and die together, on this machine."""

import contextlib
import os
import queue
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from typing import IO

from experiments.cli.program import INTERRUPTED
from experiments.training.warden import Warden

# What Gloo prints whenever processes meet. Its threads print piece by piece, so that pieces of two messages mix.
PIECE = r"\[Gloo\] Rank | is connected to | peer ranks\. |Expected number of connected peer ranks is : "
CHATTER = re.compile(rf"^(?:\d*(?:(?:{PIECE})\d*)+|\d*$)")
PATIENCE = 5  # seconds for the processes to say goodbye when they are interrupted
MOMENT = 2  # seconds within which two deaths are one event


class Group:
    """Processes that live and die together, each the leader of a process group of its own."""

    def __init__(self, commands: Sequence[Sequence[str]], out: IO[str] | None = None, errors: IO[str] | None = None):
        """Starts them. What they say goes to `out` and `errors`, by default where this process says it."""
        self._ended: queue.Queue[int] = queue.Queue()
        self._warden = Warden()
        pipe = subprocess.PIPE
        self.processes = [self._warden.start(c, stdout=pipe, stderr=pipe, text=True) for c in commands]
        self._forwarders = [
            threading.Thread(target=_forward, args=(f"[{i}] ", source, target), daemon=True)
            for i, p in enumerate(self.processes)
            for source, target in ((p.stdout, out or sys.stdout), (p.stderr, errors or sys.stderr))
        ]
        self._watchers = [threading.Thread(target=self._watch, args=(i,), daemon=True) for i in range(len(commands))]
        for thread in (*self._forwarders, *self._watchers):
            thread.start()

    def wait(self) -> tuple[int, int] | None:
        """Waits until one fails, and returns its number and its status; or until all are done.

        Where one was killed and others failed within a moment, it is the one that was killed: they lost it, and their
        ends may be seen before its own.
        """
        for left in reversed(range(len(self.processes))):
            i = self._ended.get()
            if self.processes[i].returncode:
                cause = self._cause(i, left)
                return cause, self.processes[cause].returncode
        return None

    def interrupt(self) -> None:
        """Asks all of them to stop, and gives them time to say where they are."""
        self._signal(signal.SIGINT)
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end and any(p.poll() is None for p in self.processes):
            time.sleep(0.05)

    def kill(self) -> None:
        """Ends all at once, with what they started. Nothing milder is heard by one that waits for another."""
        self._signal(signal.SIGKILL)
        for thread in self._watchers:
            thread.join()
        for thread in self._forwarders:
            thread.join(timeout=10)  # what is left to say; not for ever, if a process beyond the group holds the pipe
        self._warden.dismiss()

    def _watch(self, i: int) -> None:
        self.processes[i].wait()
        self._warden.forget(self.processes[i].pid)
        self._ended.put(i)

    def _cause(self, first: int, left: int) -> int:
        """The first that failed, or one of those `left` that is found to be killed within a moment."""
        seen, end = first, time.monotonic() + MOMENT
        with contextlib.suppress(queue.Empty):
            while not self._was_killed(seen) and left:
                seen, left = self._ended.get(timeout=max(0.0, end - time.monotonic())), left - 1
        return seen if self._was_killed(seen) else first

    def _was_killed(self, i: int) -> bool:
        """From outside, or by a fault of its own; one that aborts does so where it has lost another, too."""
        status = self.processes[i].returncode
        return status < 0 and status != -signal.SIGABRT

    def _signal(self, number: int) -> None:
        for process in self.processes:
            try:
                os.killpg(process.pid, number)
            except ProcessLookupError:
                continue


def _forward(prefix: str, source: IO[str], target: IO[str]) -> None:
    with source:
        for line in source:
            if said := CHATTER.sub("", line.rstrip("\n")):
                target.write(prefix + said + "\n")
                target.flush()


def commands(processes: int, arguments: Sequence[str]) -> list[list[str]]:
    """The command of every process of a new group that trains."""
    train = [sys.executable, "-m", "experiments.train", *arguments]
    group = [f"--distributed.coordinator=127.0.0.1:{free_port()}", f"--distributed.num_processes={processes}"]
    return [[*train, *group, f"--distributed.process_id={i}"] for i in range(processes)]


def run(commands: Sequence[Sequence[str]]) -> int:
    """Runs the commands as one group and returns the status: 0, or that of the first process that failed."""
    group = Group(commands)
    print(f"Process ids: {', '.join(str(p.pid) for p in group.processes)}", flush=True)
    try:
        failed = group.wait()
    except KeyboardInterrupt:
        group.interrupt()
        return INTERRUPTED
    finally:
        group.kill()
    if failed is None:
        return 0
    i, status = failed
    how = f"was killed by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
    print(
        f"error: process {i} of {len(commands)} (pid {group.processes[i].pid}) {how}; the others were ended.",
        file=sys.stderr,
    )
    if status != 2:  # not by the user's hand
        print(
            "Give the same command with `--resume` and its `--workdir` to go on from the last checkpoint.",
            file=sys.stderr,
        )
    return 128 - status if status < 0 else status


def free_port() -> int:
    """A port of the loopback address that nobody listens on."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])
