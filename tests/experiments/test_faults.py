"""The trial of faults, with programs in the place of training that are as quick as they are simple."""

import gc
import sys

import numpy as np
import pytest

from experiments.cli.errors import UserError
from experiments.faults import __main__ as faults
from experiments.faults import flips
from experiments.training import launcher as launch

# Counts to thirty in a file, which is all its state; the other process waits until it is done.
TRAINING = """
import pathlib, time
folder, number = pathlib.Path({folder!r}), {number}
folder.mkdir(exist_ok=True)
file = folder / "config.json"
while number == 1 and not (file.exists() and file.read_text() == "30"):
    time.sleep(0.01)
done = int(file.read_text() or 0) if file.exists() else 0
while number == 0 and done < 30:
    time.sleep(0.01)
    done += 1
    new = folder / "new"
    new.write_text(str(done))
    new.replace(file)
"""
LOSES = "if {number} == 0 and file.exists(): (folder / 'mark').touch()"


def simulate(monkeypatch, program):
    def commands(processes, arguments):
        folder = arguments[-1].removeprefix("--workdir=")
        return [[sys.executable, "-c", program.format(folder=folder, number=i)] for i in range(processes)]

    monkeypatch.setattr(launch, "commands", commands)
    monkeypatch.setattr(faults, "result", lambda folder: {"marks": np.asarray(len([*folder.glob("mark")]))})


def test_kills_are_counted_and_no_run_is_lost(monkeypatch, tmp_path, capsys):
    simulate(monkeypatch, TRAINING)
    faults.main(["--kills=3", f"--workdir={tmp_path}/trial"])
    said = capsys.readouterr().out
    assert "3 kills, 0 of them in the middle of a save: of " in said
    assert "none was lost" in said
    with pytest.raises(UserError, match="already holds a run"):
        faults.main([f"--workdir={tmp_path}/trial"])


def test_a_run_that_ends_otherwise_is_lost(monkeypatch, tmp_path, capsys):
    simulate(monkeypatch, TRAINING.replace("done = ", LOSES + "\ndone = "))
    with pytest.raises(SystemExit, match="1"):  # at the first kill after the file is there
        faults.main(["--kills=100", "--seed=1", f"--workdir={tmp_path}/trial"])
    assert "LOST: " in capsys.readouterr().err


@pytest.mark.parametrize("program", ["raise SystemExit(3)", "{number} or [].pop()"])
def test_a_program_that_fails_by_itself_is_no_kill(monkeypatch, tmp_path, capsys, program):
    simulate(monkeypatch, program)
    with pytest.raises(SystemExit, match="1"):
        faults.main(["--kills=1", f"--workdir={tmp_path}/trial"])
    assert "the undisturbed run failed" in capsys.readouterr().err


@pytest.fixture(scope="module")
def trial(tmp_path_factory):
    return flips.Trial(tmp_path_factory.mktemp("flips"))


@pytest.fixture
def _readers_left_behind():
    """Orbax leaves its readers behind where it meets a damaged array; they say so when they are collected."""
    yield
    gc.collect()


damages = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@damages
@pytest.mark.usefixtures("_readers_left_behind")
def test_flipped_bits_are_never_taken_up_in_silence(monkeypatch, tmp_path, capsys, trial):
    monkeypatch.setattr(flips, "Trial", lambda *_: trial)
    faults.main(["--flips=40", f"--workdir={tmp_path}/trial"])
    said = capsys.readouterr().out
    assert f"{len(trial.files)} files of a run" in said
    assert "the older one, said" in said
    total = sum(trial.found.values(), flips.collections.Counter())
    assert total[flips.WRONG] == 0
    assert min(total[o] for o in (flips.WHOLE, flips.OLDER, flips.REFUSED)) > 0
    assert trial.found[flips.NONE].keys() == {flips.WHOLE}


@damages
@pytest.mark.usefixtures("_readers_left_behind")
def test_bits_that_are_taken_up_in_silence_are_found(monkeypatch, tmp_path, capsys, trial):
    """Another state is expected than what is taken up, as if a bit of an array had changed."""
    monkeypatch.setattr(flips, "Trial", lambda *_: trial)
    monkeypatch.setattr(trial, "_expected", {step: ({}, log) for step, (_, log) in trial._expected.items()})
    with pytest.raises(SystemExit, match="1"):
        faults.main(["--flips=20", f"--workdir={tmp_path}/trial"])
    assert "WRONG: " in capsys.readouterr().err
