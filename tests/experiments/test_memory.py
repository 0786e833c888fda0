"""Freed memory is kept: what is asked of the C library, where it is not asked, and that page faults are gone."""

import ctypes
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

from experiments import memory as command
from experiments.cli.errors import UserError
from experiments.cli.memory import VARIABLES, keep_freed_memory
from experiments.cli.program import run_main
from experiments.data.idx import read_pair
from experiments.measure.compile import records_of
from experiments.training import launcher

ROOT = Path(__file__).parents[2]
# From glibc's <malloc.h> and mallopt(3).
M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8
WANTED = [(M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, -1), (M_ARENA_MAX, 1)]

# In the place of ctypes: a glibc that prints what it is told.
FAKE = """
import ctypes

class CDLL:
    def __init__(self, name): pass
    def gnu_get_libc_version(self): pass
    def mallopt(self, *told):
        print(list(told))
        return 1

ctypes.CDLL = CDLL
"""


@pytest.fixture
def told(monkeypatch):
    """What the C library is told by this process, on a machine with a glibc that knows all of it."""
    found = []

    class Glibc:
        def __init__(self, name):
            assert name is None

        def gnu_get_libc_version(self):
            raise AssertionError

        def mallopt(self, number, value):
            found.append((number, value))
            return 1

    monkeypatch.setattr(ctypes, "CDLL", Glibc)
    monkeypatch.setattr(sys, "platform", "linux")
    return found


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"EXPERIMENTS_MEMORY": "kept"},
        {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"},
        {"GLIBC_TUNABLES": "glibc.cpu.x86_ibt=on"},
        {"LD_PRELOAD": "/usr/lib/libfaketime.so"},
    ],
    ids=str,
)
def test_freed_memory_is_kept(monkeypatch, told, environment):
    monkeypatch.setattr(os, "environ", environment)
    assert keep_freed_memory()
    assert told == WANTED


@pytest.mark.parametrize(
    "environment",
    [
        {"EXPERIMENTS_MEMORY": "fresh"},
        {"MALLOC_ARENA_MAX": "2"},
        {"MALLOC_MMAP_THRESHOLD_": "1048576"},
        {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1:glibc.malloc.trim_threshold=131072"},
        {"LD_PRELOAD": "/usr/lib/x86_64-linux-gnu/libjemalloc.so.2"},
    ],
    ids=str,
)
def test_what_the_user_says_of_memory_wins(monkeypatch, told, environment):
    monkeypatch.setattr(os, "environ", environment)
    assert not keep_freed_memory()
    assert told == []


@pytest.mark.parametrize("system", ["darwin", "win32", "linux"])
def test_other_c_libraries_are_told_nothing(monkeypatch, told, system):
    monkeypatch.setattr(os, "environ", {})
    monkeypatch.setattr(sys, "platform", system)
    if system == "linux":  # as with musl, which has no `mallopt` either
        monkeypatch.setattr(ctypes, "CDLL", lambda _: object())
    assert not keep_freed_memory()
    assert told == []


def test_another_choice_is_a_sentence(monkeypatch, capsys):
    monkeypatch.setenv("EXPERIMENTS_MEMORY", "huge")
    monkeypatch.setattr(sys, "argv", ["program"])
    with pytest.raises(SystemExit) as end:
        run_main(lambda _: None)
    assert end.value.code == 2
    assert "`EXPERIMENTS_MEMORY` must be `kept` or `fresh`, but it is 'huge'." in capsys.readouterr().err


@pytest.fixture
def elsewhere(monkeypatch, tmp_path):
    """A folder whose modules processes can import, and where they find the glibc that prints what it is told."""
    (tmp_path / "sitecustomize.py").write_text(FAKE)
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{tmp_path}")
    return tmp_path


def said(arguments):
    """What a process says, the user having said nothing of memory."""
    environment = {"PYTHONPATH": os.environ["PYTHONPATH"]}
    return subprocess.run(
        [sys.executable, *arguments], env=environment, cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout


IN_FULL = "".join(f"[{number}, {value}]\n" for number, value in WANTED)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nothing is told")
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["-m", "experiments.cli.errors"], IN_FULL),
        (["-W", "ignore", "-mexperiments.cli.errors", "-m", "x"], IN_FULL),
        (["-c", "import experiments", "-m", "experiments.train"], ""),
        (["-c", "import sys; sys.argv = ['x']; import experiments", "experiments.train"], ""),
        (["-m", "package.module"], ""),
    ],
)
def test_commands_keep_memory_and_no_other_process_that_imports_the_package(elsewhere, arguments, words):
    (elsewhere / "package").mkdir()
    (elsewhere / "package" / "__init__.py").write_text("import experiments")
    (elsewhere / "package" / "module.py").write_text("")
    assert said(arguments) == words


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nothing is told")
def test_processes_that_a_command_starts_keep_memory(elsewhere):
    """They are commands themselves."""
    with tempfile.TemporaryFile("w+") as errors:
        assert list(map(tuple, records_of("experiments.cli.errors", {}, sys.executable, {}, errors))) == WANTED
    assert [c[:3] for c in launcher.commands(2, [])] == [[sys.executable, "-m", "experiments.train"]] * 2


FAULTS = """
import resource
from experiments.cli.memory import keep_freed_memory

assert keep_freed_memory()
bytearray(2**26)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(2):
    bytearray(2**26)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's own effect")
def test_an_array_takes_the_pages_of_the_last_one(monkeypatch):
    """Two arrays of 64 MB are 32768 page faults where their memory is fresh."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    assert int(said(["-c", FAULTS])) < 1000


RUN = command.Run(wall=1.0, user=2.0, system=3.0, faults=4000, peak=5_000_000, metrics="{}")


@pytest.fixture
def runs(monkeypatch, tmp_path):
    """Runs in the place of training: as they are set, each costs more than the last one."""
    document, made = tmp_path / "cpu.md", []
    document.write_text(command.DOCUMENT.read_text())

    def train(data, setting):
        assert {f.name for f in data.iterdir()} >= {"train-images-idx3-ubyte", "t10k-labels-idx1-ubyte"}
        made.append(setting)
        return RUN._replace(wall=float(len(made)))

    monkeypatch.setattr(command, "DOCUMENT", document)
    monkeypatch.setattr(command, "train", train)
    return made, document


def test_the_settings_take_turns_and_their_medians_are_written(runs, capsys):
    made, document = runs
    command.main(["--steps=1", "--rounds=3", "--write"])
    settings = list(command.SETTINGS.values())
    assert made == 3 * settings
    between = command.MARKERS.split(document.read_text())[1]
    assert between in capsys.readouterr().out
    for number, name in enumerate(command.SETTINGS):
        assert f"| {name} | {len(settings) + number + 1} | 2.0 | 3.0 | 4 | 5 |" in between
    assert command.SETTINGS["the three variables"].items() >= VARIABLES.items()


def test_a_whole_epoch_has_a_table_of_its_own(runs, monkeypatch):
    made, document = runs
    counts = {}
    monkeypatch.setattr(command, "write_images", lambda folder, part, count: counts.setdefault(part, count))
    monkeypatch.setattr(command, "train", lambda data, setting: RUN._replace(wall=float(made.append(setting) or 7)))
    before = command.MARKERS.split(document.read_text())[1]
    command.main(["--epoch", "--rounds=2", "--write"])
    assert counts["train"] == 60_000
    assert made == [command.SETTINGS["nothing"], {}] * 2
    text = document.read_text()
    assert command.MARKERS.split(text)[1] == before
    assert "60,000 images" in command.EPOCH_MARKERS.split(text)[1]
    assert "| by the program itself | 7 | 2.0 | 3.0 | 4 | 5 |" in command.EPOCH_MARKERS.split(text)[1]


def test_runs_that_end_otherwise_are_an_error(runs, monkeypatch):
    _, document = runs
    before = document.read_text()
    metrics = iter("aab" + "a" * 99)
    monkeypatch.setattr(command, "train", lambda *_: RUN._replace(metrics=next(metrics)))
    with pytest.raises(SystemExit, match="did not end with the same metrics"):
        command.main(["--steps=1", "--rounds=1", "--write"])
    assert document.read_text() == before


def test_the_page_names_the_three_variables():
    line = " ".join(f"{name}={value}" for name, value in VARIABLES.items())
    assert f"export {line}\n" in command.DOCUMENT.read_text()
    assert "nothing" in command.MARKERS.split(command.DOCUMENT.read_text())[1]


@pytest.mark.skipif(sys.platform != "linux", reason="its numbers are Linux's")
def test_a_run_sees_what_is_set_and_nothing_else_and_says_what_it_cost(monkeypatch, tmp_path):
    """With 64 MB touched, it has used as much, in 16384 page faults of 4 KB; huge ones are fewer."""
    seen = {}

    def start(arguments, *, env, **how):
        seen.update(env)
        (folder,) = (a.removeprefix("--workdir=") for a in arguments if a.startswith("--workdir="))
        program = f"import os; b'x' * 2**26; os.mkdir({folder!r}); open({folder + '/metrics.jsonl'!r}, 'w').write('m')"
        return popen([sys.executable, "-c", program], env=env, **how)

    popen = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", start)
    for name in ("MALLOC_ARENA_MAX", "GLIBC_TUNABLES", "LD_PRELOAD", "EXPERIMENTS_MEMORY"):
        monkeypatch.setenv(name, "")
    run = command.train(tmp_path, {"MALLOC_MMAP_MAX_": "7"})
    settings = {n: v for n, v in seen.items() if n.startswith("MALLOC") or n in ("GLIBC_TUNABLES", "LD_PRELOAD")}
    assert settings == {"MALLOC_MMAP_MAX_": "7"}
    assert "EXPERIMENTS_MEMORY" not in seen
    assert run.metrics == "m"
    assert run.peak > 2**26
    assert run.faults > 0
    assert 0 < run.user + run.system < 60 > run.wall > 0


def test_the_images_are_idx_files(tmp_path):
    command.write_images(tmp_path, "t10k", 3)
    images, labels = read_pair(tmp_path, "t10k")
    assert images.shape == (3, 28, 28)
    assert labels.shape == (3,)
    assert len(np.unique(images)) > 100


def test_training_that_fails_is_a_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(UserError, match="ended with status 1"):
        command.train(tmp_path, {})
