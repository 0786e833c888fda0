"""How programs end: an accident of the machine is a sentence and status 2, a fault of ours a traceback and status 1."""

import errno
import io
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.cli.errors import UserError
from experiments.cli.program import run_main
from experiments.cli.report import reporting

ROOT = Path(__file__).parents[2]


def ended(monkeypatch, capsys, error):
    """The status and what is said by a program that fails so."""

    def main(_):
        raise error

    monkeypatch.setattr("sys.argv", ["program"])
    with pytest.raises(SystemExit) as end:
        run_main(main)
    return end.value.code, capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (UserError("So it is."), "error: So it is.\n"),
        (OSError(errno.ENOSPC, "No space left on device"), "error: No space left on device.\n"),
        (OSError(errno.EDQUOT, "Disk quota exceeded", "runs/a"), "error: Disk quota exceeded: `runs/a`.\n"),
        (FileNotFoundError(errno.ENOENT, "No such file", "a" * 900), "error: No such file: `" + "a" * 98 + "..."),
        (BrokenPipeError(errno.EPIPE, "Broken pipe"), "error: Standard output cannot be written: Broken pipe.\n"),
        (ValueError("RESOURCE_EXHAUSTED: x/0: No space left on device"), "error: No space left on device: RESO"),
        (MemoryError(), "error: There is not enough memory"),
        (RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes"), "error: There is not enough memory"),
    ],
)
def test_an_accident_is_a_sentence(monkeypatch, capsys, error, words):
    status, said = ended(monkeypatch, capsys, error)
    assert status == 2
    assert said.startswith(words)
    assert said.count("\n") == 1


def test_a_fault_of_the_program_keeps_its_traceback(monkeypatch, capsys):
    status, said = ended(monkeypatch, capsys, KeyError("a"))
    assert status == 1
    assert said.startswith("Traceback")


def start(code, **how):
    # A shell's job in the background begins with SIGINT ignored, and so does all that it starts.
    heard = "import signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)"
    program = f"{heard}\nfrom experiments.cli.program import run_main\n{code}\nrun_main(main)"
    how = {"stderr": subprocess.PIPE, "text": True, "cwd": ROOT, **how}
    return subprocess.Popen([sys.executable, "-c", program], **how)


PRINTS = "def main(_):\n  print('a')"


def test_output_that_cannot_be_written_is_a_sentence():
    read, write = os.pipe()
    os.close(read)  # as `| head -0` leaves it
    with start(PRINTS, stdout=write) as program:
        said = program.communicate(timeout=60)[1]
    os.close(write)
    assert (program.returncode, said) == (2, "error: Standard output cannot be written: Broken pipe.\n")
    closed = f"import sys\nsys.stdout = None\n{PRINTS}"  # as Python has it after `>&-`
    with start(closed) as program:
        said = program.communicate(timeout=60)[1]
    assert program.returncode == 2
    assert "it is closed" in said


WAITS = """
import time
def main(_):
  try: say()
  finally: say()
def say():
  print(flush=True)
  time.sleep(600)
"""
HOLDS_BACK = """
import time
from experiments.cli.program import uninterrupted
def main(_):
  with uninterrupted():
    signal.alarm(60)  # a failure would wait for ever
    first = signal.getsignal(signal.SIGINT)
    print(flush=True)
    while signal.getsignal(signal.SIGINT) is first: time.sleep(0.01)
    print(flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize("code", [WAITS, HOLDS_BACK], ids=["raised", "held back"])
def test_a_second_interrupt_is_as_quiet_as_the_first(code):
    with start(code, stdout=subprocess.PIPE) as program:
        for _ in range(2):
            program.stdout.readline()
            program.send_signal(signal.SIGINT)
        try:
            said = program.communicate(timeout=60)[1]
        finally:
            program.kill()  # or a failure would wait for it
    assert (program.returncode, said) == (130, "")


COMPILES = """
import threading, time, jax, jax.numpy as jnp
def slow(x):
  for i in range(300): x = jnp.tanh(x @ x) + i
  return x
def main(_):
  lowered = jax.jit(slow).lower(jnp.ones((50, 50)))
  threading.Thread(target=lowered.compile, daemon=True).start()
  time.sleep(0.05)
  print("interrupted")
  raise KeyboardInterrupt
"""


def test_an_interrupt_while_xla_is_at_work_is_no_crash():
    with start(COMPILES, stdout=subprocess.PIPE) as program:
        assert program.communicate(timeout=120)[0] == "interrupted\n"
    assert program.returncode == 130


def test_brackets_in_a_path_are_no_markup(monkeypatch):
    terminal = io.StringIO()
    monkeypatch.setattr("sys.stdout", terminal)
    monkeypatch.setenv("FORCE_COLOR", "1")  # as a terminal
    with reporting(2) as report:
        report.title("Training in a[/b]c")
        report.line("saved in a[/b]c")
    assert "Training in a[/b]c" in terminal.getvalue()
    assert "saved in a[/b]c" in terminal.getvalue()
