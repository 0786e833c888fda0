"""How a program of this package begins and ends: what goes wrong by an accident is one sentence, as a mistake is."""

import contextlib
import errno
import io
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import NoReturn

from experiments.cli import memory
from experiments.cli.errors import UserError, shown

STDOUT = "Standard output cannot be written"
INTERRUPTED = 130  # the status


def run_main(main: Callable[[Sequence[str]], int | None], *signals: int) -> NoReturn:
    """Runs `main` with the arguments of the process and leaves it: with the status that `main` returns, 0 for `None`.

    It is 2 on a `UserError`, and where the machine has no room, no memory or no such file; 130 when interrupted, by
    SIGINT or one of `signals`.
    """
    _interrupted_by(signal.SIGINT, *signals)
    try:
        _check_surroundings(sys.argv[1:])
        status = main(sys.argv[1:])
        sys.stdout.flush()  # here an error can be said; later it could not
    except KeyboardInterrupt:  # what there is to say has been said where it was caught
        _leave(INTERRUPTED)
    except Exception as error:
        said = str(error) if isinstance(error, UserError) else accident(error)
        with contextlib.suppress(OSError):  # standard error may be closed, too
            if said is None:
                traceback.print_exc()
            else:
                print(f"error: {said}", file=sys.stderr)
        _leave(1 if said is None else 2)
    sys.exit(status or 0)


def _interrupted_by(*signals: int) -> None:
    """Makes the first of these signals a `KeyboardInterrupt`; a second one ends the process at once and in silence."""

    def first(*_: object) -> NoReturn:
        for number in signals:
            signal.signal(number, _at_once)
        raise KeyboardInterrupt

    for number in signals:
        if signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup
            signal.signal(number, first)


def _at_once(*_: object) -> NoReturn:
    os._exit(INTERRUPTED)


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """For what must not be left half done: SIGINT waits until it is done; a second one ends the process at once."""
    before, came = signal.getsignal(signal.SIGINT), threading.Event()
    elsewhere = threading.current_thread() is not threading.main_thread()
    if elsewhere or not callable(before):  # nothing would be raised here
        yield
        return

    def wait(*_: object) -> None:
        came.set()
        signal.signal(signal.SIGINT, _at_once)

    signal.signal(signal.SIGINT, wait)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if came.is_set():
            signal.raise_signal(signal.SIGINT)


def accident(error: Exception) -> str | None:
    """The sentence for an error of the machine, not of the program; `None` for all others."""
    text = str(error)
    if isinstance(error, OSError):
        if error.errno == errno.EPIPE:
            return f"{STDOUT}: {error.strerror}."
        where = f": `{shown(str(error.filename))}`" if error.filename is not None else ""
        return f"{error.strerror or shown(text)}{where}."
    if os.strerror(errno.ENOSPC) in text:  # as the libraries that write checkpoints say it
        return f"{os.strerror(errno.ENOSPC)}: {shown(text)}."
    if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in text or "Out of memory" in text:
        return f"There is not enough memory: {shown(text) or 'use smaller sizes'}."
    return None


def _check_surroundings(argv: Sequence[str]) -> None:
    if sys.stdout is None:  # its number would go to the next file that is opened, and output into that file
        raise UserError(f"{STDOUT}: it is closed; send it to a file, or to /dev/null.")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a path or a sign that the terminal cannot show
    for word in argv:
        try:
            word.encode()
        except UnicodeEncodeError as error:
            raise UserError(f"Arguments must be UTF-8, but one is {shown(word)!r}.") from error
    if (said := os.environ.get(memory.VARIABLE, memory.CHOICES[0])) not in memory.CHOICES:
        choices = " or ".join(f"`{choice}`" for choice in memory.CHOICES)
        raise UserError(f"`{memory.VARIABLE}` must be {choices}, but it is {shown(said)!r}.")


def _leave(status: int) -> NoReturn:
    """Leaves the process; at once where there are others, for which an ordinary end would wait, and they for it.

    At once, too, where it is interrupted: threads of XLA may be at work, and an ordinary end takes away what they use.
    """
    jax = sys.modules.get("jax")
    at_once = status == INTERRUPTED or (jax is not None and jax.distributed.is_initialized())
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError, AttributeError):  # closed; the interpreter would say so once more at its end
            at_once = True
    if at_once:
        os._exit(status)
    sys.exit(status)
