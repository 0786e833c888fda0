"""What a run goes on from: whole checkpoints of its own, in a folder that nobody else writes to."""

import dataclasses
import functools
import os
import shutil
import signal

import numpy as np
import orbax.checkpoint as ocp
import pytest

from experiments import compare, train
from experiments.cli.errors import UserError
from experiments.cli.schema import fields
from experiments.config import Config, DataConfig, ModelConfig, TrainConfig
from experiments.config.file import to_json
from experiments.results.files import write_text, write_whole
from experiments.training import run, steps
from experiments.training.checkpoints import FILES, Checkpoints, last_arrays
from experiments.training.lock import only_writer

TINY = Config(
    data=DataConfig(train_examples=50, eval_examples=30),
    model=ModelConfig(widths=(2, 3, 4)),
    train=TrainConfig(epochs=3, batch_size=25, eval_batch_size=30, eval_every=1),
)  # checkpoints at steps 2, 4 and 6, of which the last two are kept


@pytest.fixture(scope="module", autouse=True)
def _compiled_once():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "make_program", functools.cache(steps.make_program))
        patch.setattr(train, "save_curves", lambda path, *_: path.touch())
        yield


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "tiny.json").write_text(to_json(TINY))
    train.main([f"--config={folder}/tiny.json", f"--workdir={folder}/run"])
    return folder / "run"


@pytest.fixture
def workdir(trained, tmp_path):
    """A copy of that run."""
    return shutil.copytree(trained, tmp_path / "run")


def resume(workdir):
    train.main(["--resume", f"--workdir={workdir}"])


def contents(folder):
    """All files in a folder, and what is in them."""
    return {f.relative_to(folder): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


def assert_same_end(workdir, trained):
    assert (workdir / "metrics.jsonl").read_bytes() == (trained / "metrics.jsonl").read_bytes()
    made, expected = (last_arrays(folder / "checkpoints") for folder in (workdir, trained))
    assert made.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(made[name], array)


def flip(file, bit=0):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1 << bit
    file.write_bytes(content)


def largest(folder):
    return max((f for f in folder.rglob("*") if f.is_file()), key=lambda f: f.stat().st_size)


def flipped_arrays(workdir, step):
    flip(largest(workdir / "checkpoints" / str(step) / "state" / "ocdbt.process_0"))


def flipped_record(workdir, step):
    flip(workdir / "checkpoints" / str(step) / "record" / "metadata")


def lost_file(workdir, step):
    largest(workdir / "checkpoints" / str(step) / "state" / "ocdbt.process_0").unlink()


def killed_before_files(workdir, step):
    (workdir / "checkpoints" / str(step) / "files.json").unlink()


def other_arrays(workdir, step):
    """Readable, but not what was saved; and the run was killed before it had the digests of files."""
    killed_before_files(workdir, step)
    folder = workdir / "checkpoints"
    shutil.rmtree(folder / str(step) / "state")
    shutil.copytree(folder / "4" / "state", folder / str(step) / "state")


def flipped_seal(workdir, step):
    """A record of another seed, which is damage, and not another run."""
    killed_before_files(workdir, step)
    file = workdir / "checkpoints" / str(step) / "record" / "metadata"
    file.write_text(file.read_text().replace('"config.seed": 0', '"config.seed": 1'))


def short_log(workdir, step):
    file = workdir / "metrics.jsonl"
    file.write_text("".join(file.read_text().splitlines(keepends=True)[: step - 1]))


def changed_log(workdir, step):
    file = workdir / "metrics.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    lines[step - 1] = lines[step - 1].replace("0", "1", 1)
    file.write_text("".join(lines))


DAMAGE = {
    flipped_arrays: "has another `state/ocdbt.process_0/.*` than was saved",
    flipped_record: "has another `record/metadata` than was saved",
    lost_file: "has another `state/ocdbt.process_0/.*` than was saved",
    other_arrays: "holds another `step` than was saved",
    flipped_seal: "has not the record that was saved",
    short_log: "is beyond the end of `metrics.jsonl`",
    changed_log: "was saved with another `metrics.jsonl`",
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_is_told_and_the_run_goes_on_from_the_older_one(workdir, trained, capsys, damage):
    damage(workdir, 6)
    resume(workdir)
    said = capsys.readouterr().out
    assert f"The checkpoint of step 6 {DAMAGE[damage].partition('.*')[0]}" in said
    assert "deleted, and the run goes on from step 4." in said
    assert "epoch   3 of 3" in said
    assert "epoch   2 of 3" not in said
    assert_same_end(workdir, trained)


def test_a_checkpoint_is_whole_before_the_digests_of_its_files_are_saved(workdir, trained, capsys):
    killed_before_files(workdir, 6)
    resume(workdir)
    assert "epoch" not in capsys.readouterr().out
    assert_same_end(workdir, trained)


@pytest.mark.parametrize("damage", [flipped_arrays, other_arrays, short_log])
def test_nothing_is_touched_where_no_checkpoint_can_be_used(workdir, damage):
    flipped_arrays(workdir, 4)
    damage(workdir, 6)
    before = contents(workdir)
    with pytest.raises(UserError, match=r"No checkpoint in .* can be used: that of step 6 .*; that of step 4 has"):
        resume(workdir)
    assert contents(workdir) == before


def test_a_log_that_is_gone_is_noticed(workdir):
    (workdir / "metrics.jsonl").unlink()
    with pytest.raises(UserError, match=r"that of step 4 is beyond the end of `metrics\.jsonl`"):
        resume(workdir)


@pytest.mark.parametrize(
    ("section", "changes", "named"),
    [
        (None, {"seed": 5}, "`config.seed`"),
        ("train", {"batch_size": 26, "epochs": 4}, "`config.train.batch_size`, `config.train.epochs`"),
        ("optimizer", {"name": "adam"}, "`config.optimizer.name`"),
        ("data", {"shuffle_labels": True}, r"`config.data \(the examples\)`, `config.data.shuffle_labels`"),
    ],
)
def test_checkpoints_of_another_run_are_refused(workdir, section, changes, named):
    part = TINY if section is None else getattr(TINY, section)
    changed = dataclasses.replace(part, **changes)
    other = changed if section is None else dataclasses.replace(TINY, **{section: changed})
    (workdir / "config.json").write_text(to_json(other))
    before = contents(workdir)
    with pytest.raises(UserError, match=f"is of another run, with other values for {named};"):
        resume(workdir)
    assert contents(workdir) == before


def test_a_run_goes_on_that_is_older_than_an_option(tmp_path, trained, monkeypatch):
    """What it does not say had the value that is the default now; with another one it is another run."""

    def older(config):
        return {name: value for name, value in fields(config).items() if name != "config.task"}

    def another(config):
        return fields(config) | ({} if config == Config() else {"config.task": "another"})

    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(run, "fields", older)
        train.main([f"--config={trained.parent}/tiny.json", f"--workdir={folder}"])
        shutil.rmtree(folder / "checkpoints" / "6")
        patch.setattr(run, "fields", another)
        with pytest.raises(UserError, match=r"other values for `config\.task`;"):
            resume(folder)
    resume(folder)
    assert_same_end(folder, trained)


def test_a_run_does_not_go_on_with_other_examples(workdir, monkeypatch):
    def load_data(config):
        data = run_data(config)
        return data._replace(train={**data.train, "label": data.train["label"][::-1]})

    run_data = train.load_data
    monkeypatch.setattr(train, "load_data", load_data)
    with pytest.raises(UserError, match=r"other values for `config.data \(the examples\)`;"):
        resume(workdir)


@pytest.mark.parametrize("left", ["checkpoints", "metrics.jsonl"])
def test_a_folder_with_what_no_run_has_left_is_refused(workdir, tmp_path, left):
    (workdir / "config.json").unlink()
    for other in {"checkpoints", "metrics.jsonl"} - {left}:
        (workdir / other).rename(tmp_path / other)
    before = contents(workdir)
    (tmp_path / "tiny.json").write_text(to_json(TINY))
    for more in ([], ["--resume"]):
        with pytest.raises(UserError, match=f"holds `{left}` of a run, but no `config.json`"):
            train.main([f"--config={tmp_path}/tiny.json", f"--workdir={workdir}", *more])
    assert contents(workdir) == before


@pytest.mark.parametrize("linked", ["checkpoints", "checkpoints/6", "checkpoints/9.orbax-checkpoint-tmp"])
def test_checkpoints_elsewhere_are_neither_used_nor_deleted(workdir, tmp_path, linked):
    elsewhere = tmp_path / "elsewhere"
    if (workdir / linked).exists():
        (workdir / linked).rename(elsewhere)
    else:
        elsewhere.mkdir()
        (elsewhere / "file").touch()
    (workdir / linked).symlink_to(elsewhere)
    before = contents(elsewhere)
    with pytest.raises(UserError, match=f"`{workdir}/{linked}` must be a folder of the run itself, but it is a link"):
        resume(workdir)
    assert contents(elsewhere) == before


def test_a_folder_has_one_writer(workdir):
    before = contents(workdir)
    with only_writer(workdir), pytest.raises(UserError, match=f"Another process writes to `{workdir}`"):
        resume(workdir)
    assert contents(workdir) == before
    resume(workdir)


def test_a_comparison_has_one_writer(tmp_path):
    (tmp_path / "tiny.json").write_text(to_json(TINY))
    argv = [f"--config={tmp_path}/tiny.json", f"--workdir={tmp_path}/all"]
    (tmp_path / "all").mkdir()
    with only_writer(tmp_path / "all"), pytest.raises(UserError, match="Another process writes to"):
        compare.main(argv)
    assert [f.name for f in (tmp_path / "all").iterdir()] == [".lock"]


def test_a_lock_that_is_a_link_is_not_followed(workdir, tmp_path):
    (workdir / ".lock").unlink()
    (workdir / ".lock").symlink_to(tmp_path / "made")
    with pytest.raises(UserError, match="must be a folder that can be written"):
        resume(workdir)
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (ModelConfig(norm="prms", widths=(2, 3, 7)), "cannot take `config.model.widths="),
        (ModelConfig(widths=(2, 60000, 60000)), "must fit the memory of a device"),
    ],
)
def test_a_folder_is_claimed_after_all_that_can_be_refused(tmp_path, model, expected, monkeypatch):
    def cannot(*_):
        raise ValueError("It has 7 features.")

    if model.norm == "prms":
        monkeypatch.setattr("experiments.models._evaluated", cannot)
    (tmp_path / "tiny.json").write_text(to_json(dataclasses.replace(TINY, model=model)))
    argv = [f"--config={tmp_path}/tiny.json", f"--workdir={tmp_path}/run"]
    for main, more in ((train.main, []), (compare.main, [f"--norms={model.norm}"])):
        with pytest.raises(UserError, match=expected):
            main([*argv, *more])
        assert not (tmp_path / "run").exists()


def test_a_checkpoint_counts_on_a_log_that_is_on_the_disk(tmp_path, monkeypatch):
    synced, saved = {}, []
    fsync = os.fsync

    def recorded(handle):
        fsync(handle)
        about = os.fstat(handle)
        synced[about.st_ino] = about.st_size

    class Looks(Checkpoints):
        def save(self, state, log):
            about = (tmp_path / "run" / "metrics.jsonl").stat()
            saved.append(synced.get(about.st_ino) == about.st_size == log.length > 0)
            super().save(state, log)

    monkeypatch.setattr(os, "fsync", recorded)
    monkeypatch.setattr(run, "Checkpoints", Looks)
    (tmp_path / "tiny.json").write_text(to_json(TINY))
    train.main([f"--config={tmp_path}/tiny.json", f"--workdir={tmp_path}/run"])
    assert saved == [True] * 3


def test_an_interrupt_while_a_checkpoint_is_saved_waits_for_it(tmp_path, monkeypatch, capsys, heeds_sigint):
    save = ocp.CheckpointManager.save

    def interrupted(*args, **how):
        signal.raise_signal(signal.SIGINT)
        return save(*args, **how)

    monkeypatch.setattr(ocp.CheckpointManager, "save", interrupted)
    (tmp_path / "tiny.json").write_text(to_json(TINY))
    with pytest.raises(KeyboardInterrupt):
        train.main([f"--config={tmp_path}/tiny.json", f"--workdir={tmp_path}/run"])
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert "is saved up to step 2 of 6." in capsys.readouterr().out
    assert (tmp_path / "run" / "checkpoints" / "2" / FILES).exists()  # what is written last


def test_a_temporary_name_cannot_be_planted(tmp_path):
    (tmp_path / "victim").write_text("mine")
    (tmp_path / f".{os.getpid()}.file").symlink_to(tmp_path / "victim")  # once its name
    write_text(tmp_path / "file", "text")
    assert (tmp_path / "victim").read_text() == "mine"
    assert (tmp_path / "file").read_text() == "text"


def test_a_file_is_its_writers_alone_until_it_is_whole(tmp_path):
    modes = []

    def write(file):
        modes.append(os.fstat(file.fileno()).st_mode & 0o777)

    mask = os.umask(0o027)
    try:
        write_whole(tmp_path / "file", write)
    finally:
        os.umask(mask)
    assert [*modes, (tmp_path / "file").stat().st_mode & 0o777] == [0o600, 0o640]
