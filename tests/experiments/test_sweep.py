"""Sweeps: which runs there are, that each is run once, and what is left when one is interrupted or fails."""

import csv
import itertools
import json
import os
import re
import signal
import sys
import threading
import time

import pytest

from experiments import marks, study, sweep
from experiments.cli.errors import UserError
from experiments.cli.report import reporting
from experiments.training import cluster, jobs
from experiments.training.jobs import Job
from tests.kit.compiling import environment

DIGITS = "--config=configs/digits_cnn.py"
TINY = [
    DIGITS, "--config.data.train_examples=32", "--config.data.eval_examples=16", "--config.train.epochs=1",
    "--config.train.batch_size=16", "--config.model.widths=2,2,2",
]  # fmt: skip
# A run that takes no time: it counts how often it was started, and how many there are at once.
PRETENDED = """
import json, pathlib, sys, time
folder = pathlib.Path(sys.argv[1])
resumed, name = sys.argv[2] == "True", folder.name
(folder / "config.json").write_text("{}")
with (folder.parent / "starts").open("a") as file:
    file.write(name + (" again" if resumed else "") + "\\n")
    file.flush()
time.sleep(float(sys.argv[3]))
print("said by", name)
with (folder.parent / "starts").open("a") as file:
    file.write("end\\n")
sys.exit(3 if "fails" in name else 0)
"""


@pytest.fixture
def pretended(monkeypatch):
    """Makes runs that only pretend to train, each for so many seconds."""

    def of_seconds(seconds):
        def command(job):
            resumed = (job.folder / "config.json").exists()
            return [sys.executable, "-c", PRETENDED, str(job.folder), str(resumed), str(seconds)]

        monkeypatch.setattr(Job, "command", property(command))

    return of_seconds


def runs(folder, *names):
    return [Job(name, (f"--config={name}",), folder / name) for name in names]


def test_every_combination_is_a_run_with_a_name_of_its_own(tmp_path):
    grid = sweep.grid_of(["config.model.norm=none", "batch", "config.seed=3", "4"])
    lines = [["--config.train.epochs=1"], ["--config.train.epochs=2", "--config.model.api=nnx"]]
    found = sweep.jobs_of(lines, grid, [DIGITS], tmp_path)
    assert len({job.folder for job in found}) == 8
    assert found[0].arguments == (DIGITS, "--config.train.epochs=1", "--config.model.norm=none", "--config.seed=3")
    assert found[-1].name == "train.epochs=2,model.api=nnx,model.norm=batch,seed=4"
    long = sweep.name_of([f"--config.data.directory={'x' * 300}", "--config.seed=1"])
    other = sweep.name_of([f"--config.data.directory={'x' * 300}", "--config.seed=2"])
    assert long != other
    assert max(len(long), len(other)) <= sweep.LONGEST_NAME


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--grid=config.model.norms=none", "--", DIGITS], "`config.model.norms` is none. Did you mean"),
        (["--grid=none", "--", DIGITS], "must be `field=value,value`"),
        (["--grid", "config.seed=0,1", "config.seed=2", "--", DIGITS], "`config.seed` is there twice"),
        (["--grid=config.seed=0,0", "--", DIGITS], "`seed=0` is there twice"),
        (["--grid=config.train.epochs=1,0", "--", DIGITS], "`config.train.epochs` must be at least 1"),
        (["--grid=config.seed=0"], "`--config` must name a config file"),
        (["--grid=config.seed=0", DIGITS], f"`{DIGITS}` is an argument of all runs; write it behind `--`"),
        (["--runs=nowhere.txt", "--", DIGITS], "there is no `nowhere.txt`"),
    ],
)
def test_what_is_wrong_is_said_before_any_run(words, said, tmp_path):
    folder = tmp_path / "sweep"
    with pytest.raises(UserError, match=re.escape(said)):
        sweep.main([f"--workdir={folder}", *words])
    assert not folder.exists()


def test_a_folder_that_is_not_empty_needs_resume(tmp_path):
    (tmp_path / "mine").touch()
    with pytest.raises(UserError, match="add `--resume`"):
        sweep.main([f"--workdir={tmp_path}", "--", DIGITS])


def test_what_is_continued_must_be_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(marks, "marked", dict)
    for main, words in ((sweep.main, ["--grid=none"]), (marks.main, []), (study.main, ["gradients", "--only=none"])):
        with pytest.raises(UserError, match="`--resume` needs `--workdir`"):
            main([*words, "--resume"])
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("where", "said"), [("slurm", "`--where=slurm` cannot run the jobs"), ("local", "needs the package `submitit`")]
)
@pytest.mark.parametrize(
    ("program", "words"), [(sweep, ["--grid=config.seed=5", "--", DIGITS]), (study, ["efficiency", "--quick"])]
)
def test_a_cluster_that_is_not_there_is_refused_before_anything_is_written(
    tmp_path, monkeypatch, where, said, program, words
):
    monkeypatch.setenv("PATH", "")  # no `srun`
    if where == "local":
        monkeypatch.setitem(sys.modules, "submitit", None)  # as if it were not installed
    name = words[:1] if program is study else []
    with pytest.raises(UserError, match=said):
        program.main([*name, f"--where={where}", f"--workdir={tmp_path / 'made'}", *words[len(name) :]])
    assert not (tmp_path / "made").exists()


def test_so_many_at_once_and_what_is_finished_is_not_run_again(tmp_path, pretended):
    pretended(0.3)
    found, ended = runs(tmp_path, "a", "b", "c", "d-fails"), []
    jobs.run_here(found, 2, lambda job, status: ended.append((job.name, status)))
    assert sorted(ended) == [("a", 0), ("b", 0), ("c", 0), ("d-fails", 3)]
    starts = (tmp_path / "starts").read_text().split("\n")[:-1]
    assert max(itertools.accumulate(-1 if line == "end" else 1 for line in starts)) == 2
    assert [job.seconds is not None for job in found] == [True, True, True, False]
    assert all(0 < job.cpu_seconds < job.seconds for job in found[:3])  # they sleep
    assert found[3].last_words == "said by d-fails"
    with pytest.raises(UserError, match="a run with other arguments"):
        _ = found[0]._replace(arguments=("--config=b",)).seconds
    before = {job.name: (job.folder / jobs.FINISHED).stat().st_mtime_ns for job in found[:3]}
    jobs.run_here([job for job in found if job.seconds is None], 2, lambda *_: None)
    assert {job.name: (job.folder / jobs.FINISHED).stat().st_mtime_ns for job in found[:3]} == before
    assert (tmp_path / "starts").read_text().split("\n")[-3] == "d-fails again"


def test_how_each_run_ended_is_said_and_how_many_failed(tmp_path, pretended, capsys):
    pretended(0)
    found = runs(tmp_path, "a", "b-fails")
    with reporting(2) as report:
        assert cluster.run_left(found, report, tmp_path) == 1
        assert cluster.run_left(found[:1], report, tmp_path) == 0
    assert [line.split(" in ")[0] for line in capsys.readouterr().out.splitlines()] == [
        "2 runs", "a: said by a", "b-fails: failed: said by b-fails", "1 of 2 runs failed; what each said is", "1 runs"
    ]  # fmt: skip


def test_interrupted_it_interrupts_its_runs(tmp_path, pretended, heeds_sigint):
    pretended(600)
    (found,) = runs(tmp_path, "a")

    def interrupt():
        while not (tmp_path / "starts").exists() or not (tmp_path / "starts").read_text():
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt):
        jobs.run_here([found], 1, lambda *_: None)
    assert found.seconds is None
    assert "KeyboardInterrupt" in (found.folder / jobs.LOG).read_text()  # it was asked, not killed


@pytest.mark.parametrize("word", ["--workdir=here", "--resume"])
def test_a_folder_is_given_to_the_sweep_and_not_to_its_runs(tmp_path, word):
    with pytest.raises(UserError, match="write them in front of `--`"):
        sweep.main(["--grid=config.seed=5", f"--workdir={tmp_path / 'sweep'}", "--", *TINY, word])
    assert not (tmp_path / "sweep").exists()


def test_a_cluster_runs_them_too(tmp_path, monkeypatch):
    """By submitit's executor without a cluster; and the table has what the run's own log has."""
    for name, value in environment().items():
        monkeypatch.setenv(name, value)
    assert sweep.main(["--grid=config.seed=5", "--where=local", f"--workdir={tmp_path / 'sweep'}", "--", *TINY]) == 0
    (row,) = csv.DictReader((tmp_path / "sweep" / "table.csv").read_text().splitlines())
    last = json.loads((tmp_path / "sweep" / "seed=5" / "metrics.jsonl").read_text().splitlines()[-1])
    assert float(row["eval/loss"]) == last["eval/loss"]
    assert float(row["seconds"]) > 0
    assert (tmp_path / "sweep" / "seed=5" / "curves.png").exists()
