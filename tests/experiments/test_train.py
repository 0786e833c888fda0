"""The training program from its command line to its files: what it learns, writes, traces, and takes up again."""

import collections
import dataclasses
import functools
import json
import math
import shutil
from types import SimpleNamespace
from unittest import mock

import chex
import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from experiments import train
from experiments.cli.errors import UserError
from experiments.config import Config, DataConfig, ModelConfig, TrainConfig
from experiments.config.file import load, to_json
from experiments.data import batches, load_data
from experiments.models import Job
from experiments.results.files import write_whole
from experiments.results.records import KEYS, MetricsLog, read_metrics
from experiments.training import run, steps

TINY = Config(
    data=DataConfig(train_examples=50, eval_examples=30),
    model=ModelConfig(widths=(2, 3, 4)),
    train=TrainConfig(epochs=3, batch_size=16, eval_batch_size=8, eval_every=3),
)  # 4 steps an epoch, the last batch padded; records at steps 3, 4, 7, 8, 11, 12
STEPS = [3, 4, 7, 8, 11, 12]


@pytest.fixture
def config_file(tmp_path):
    return functools.partial(_config_file, tmp_path)


def _config_file(folder, config):
    file = folder / "tiny.json"
    file.write_text(to_json(config))
    return f"--config={file}"


def checkpoint(workdir):
    """The last checkpoint, read by orbax alone."""
    last = max((workdir / "checkpoints").iterdir(), key=lambda folder: int(folder.name))
    return int(last.name), ocp.StandardCheckpointer().restore((last / "state").absolute())


make_program = functools.cache(steps.make_program)


@pytest.fixture
def compiled_once(compile_quickly, monkeypatch):
    """Programs that several tests use are compiled once."""
    monkeypatch.setattr(run, "make_program", make_program)


@pytest.mark.parametrize("api", ["linen", "nnx"])
def test_a_run_traces_each_step_once_and_leaves_its_files(
    compile_quickly, monkeypatch, tmp_path, config_file, capsys, api
):
    traces = collections.Counter()
    chex.clear_trace_counter()

    def counted(step):
        @functools.wraps(step)
        def traced(*args, **more):
            traces[step.__name__] += 1
            return step(*args, **more)

        return chex.assert_max_traces(traced, n=1)

    monkeypatch.setattr(steps, "train_step", counted(steps.train_step))
    monkeypatch.setattr(steps, "eval_step", counted(steps.eval_step))
    config = dataclasses.replace(TINY, model=dataclasses.replace(TINY.model, api=api))
    train.main([config_file(config), f"--workdir={tmp_path}/run"])

    assert traces == {"train_step": 1, "eval_step": 1}
    workdir = tmp_path / "run"
    files = {f.name for f in workdir.iterdir()}
    assert files == {"metrics.jsonl", "config.json", "checkpoints", "curves.png", ".lock"}
    records = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in records] == STEPS
    assert all(tuple(r) == KEYS for r in records)
    assert load(str(workdir / "config.json")) == config
    assert (workdir / "curves.png").read_bytes().startswith(b"\x89PNG")
    step, saved = checkpoint(workdir)
    assert step == saved["step"] == 12
    said = capsys.readouterr().out
    assert "epoch   3 of 3  step     12" in said
    assert f"Accuracy on the held-out examples: {records[-1]['eval/accuracy']:.4f}" in said


def test_a_metrics_line_is_what_the_checkpoint_is_worth(compiled_once, tmp_path, config_file):
    """Every held-out example counted once, in padded batches, against all of them at once in one plain batch."""
    train.main([config_file(TINY), f"--workdir={tmp_path}/run"])
    _, saved = checkpoint(tmp_path / "run")
    data = load_data(TINY.data)
    network = steps.make_network(TINY.model, Job(np.zeros((1, 8, 8, 1), np.float32), 10))
    apply = jax.jit(functools.partial(network.apply, train=False))
    logits, _ = apply(saved["params"], saved["batch_stats"], data.held_out["image"], mask=np.ones(30, bool))
    logits = np.asarray(logits, np.float64)
    log_probability = (logits - np.log(np.exp(logits).sum(-1, keepdims=True)))[np.arange(30), data.held_out["label"]]
    last = read_metrics(tmp_path / "run" / "metrics.jsonl")[-1]
    np.testing.assert_allclose(last["eval/loss"], -log_probability.mean(), rtol=1e-5)
    np.testing.assert_allclose(last["eval/accuracy"], (logits.argmax(-1) == data.held_out["label"]).mean(), rtol=1e-6)


class Interrupt:
    """Stands for `make_program`: the program's training step is interrupted at the `n`-th call."""

    def __init__(self, n):
        self.calls, self.n = 0, n

    def __call__(self, *args):
        program = make_program(*args)

        def train_step(state, batch):
            self.calls += 1
            if self.calls == self.n:
                raise KeyboardInterrupt
            return program.train_step(state, batch)

        return program._replace(train_step=train_step)


def test_an_interrupted_run_continues_as_if_undisturbed(compiled_once, monkeypatch, tmp_path, config_file, capsys):
    argv = [config_file(TINY)]
    train.main([*argv, f"--workdir={tmp_path}/whole"])
    workdir = tmp_path / "broken"
    with monkeypatch.context() as patched:
        patched.setattr(run, "make_program", Interrupt(8))  # the last step of the second epoch, after a record at 7
        with pytest.raises(KeyboardInterrupt):
            train.main([*argv, f"--workdir={workdir}"])
    said = capsys.readouterr().out
    assert f"Interrupted: {workdir} is saved up to step 4 of 12." in said
    assert f"python -m experiments.train --resume --workdir={workdir}" in said
    assert [r["step"] for r in read_metrics(workdir / "metrics.jsonl")] == STEPS[:3]
    with (workdir / "metrics.jsonl").open("a") as file:
        file.write('{"step": 8, "train/lo')  # as a killed process leaves it
    (workdir / "checkpoints" / "8.orbax-checkpoint-tmp").mkdir()

    train.main(["--resume", f"--workdir={workdir}"])
    assert (workdir / "metrics.jsonl").read_bytes() == (tmp_path / "whole" / "metrics.jsonl").read_bytes()
    (step, resumed), (whole_step, whole) = checkpoint(workdir), checkpoint(tmp_path / "whole")
    assert step == whole_step == 12
    jax.tree.map(np.testing.assert_array_equal, resumed, whole)


def test_every_epoch_takes_every_example_once_in_an_order_of_its_own(compiled_once, monkeypatch, tmp_path, config_file):
    seen = []

    def recording(*args):
        program = make_program(*args)

        def train_step(state, batch):
            seen.append(batch["image"][batch["mask"]])
            return program.train_step(state, batch)

        return program._replace(train_step=train_step)

    monkeypatch.setattr(run, "make_program", recording)
    train.main([config_file(TINY), f"--workdir={tmp_path}/run"])
    epochs = [np.concatenate(seen[i : i + 4]).reshape(-1, 64).tolist() for i in (0, 4, 8)]
    examples = load_data(TINY.data).train["image"].reshape(-1, 64).tolist()
    assert all(sorted(epoch) == sorted(examples) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]


def test_a_training_step_takes_over_the_memory_of_the_state(compiled_once):
    data = load_data(TINY.data)
    program = run.program_of(TINY, data)
    state = program.init(jax.random.key(0))
    program.train_step(state, next(batches(data.train, 16)))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state))


def test_a_run_interrupted_before_its_first_checkpoint_starts_again(
    compiled_once, monkeypatch, tmp_path, config_file, capsys
):
    argv = [config_file(TINY), f"--workdir={tmp_path}/run", "--resume"]
    with monkeypatch.context() as patched:
        patched.setattr(run, "make_program", Interrupt(1))
        with pytest.raises(KeyboardInterrupt):
            train.main(argv)
    said = f"There is no run in {tmp_path}/run yet: one begins."
    assert said in capsys.readouterr().out
    with monkeypatch.context() as patched:
        patched.setattr(train, "save_curves", mock.Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            train.main(argv)
    shown = capsys.readouterr().out
    assert said not in shown
    assert f"To continue: python -m experiments.train --resume --workdir={tmp_path}/run" in shown
    train.main(argv)
    assert (tmp_path / "run" / "curves.png").exists()
    assert [r["step"] for r in read_metrics(tmp_path / "run" / "metrics.jsonl")] == STEPS


def test_a_full_disk_ends_a_run_with_a_sentence_and_it_continues(compiled_once, monkeypatch, tmp_path, config_file):
    usage = iter([10**9, 10, 10**9, 10**9])
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=next(usage)))
    with pytest.raises(UserError, match=r"No space left on device: .* takes \d+ bytes, but 10 are free"):
        train.main([config_file(TINY), f"--workdir={tmp_path}/run"])
    assert checkpoint(tmp_path / "run")[0] == 4
    train.main(["--resume", f"--workdir={tmp_path}/run"])
    assert checkpoint(tmp_path / "run")[0] == 12


def claim(*args, resume):
    with run.claim(*args, resume):
        pass


def test_a_run_folder_belongs_to_one_config(tmp_path):
    claim(tmp_path / "run", TINY, resume=False)
    claim(tmp_path / "run", TINY, resume=True)
    with pytest.raises(UserError, match=r"already holds a run; add `--resume`"):
        claim(tmp_path / "run", TINY, resume=False)
    other = dataclasses.replace(TINY, seed=1, train=TrainConfig(epochs=9))
    with pytest.raises(UserError, match=r"other values for `config.seed`, `config.train.epochs`"):
        claim(tmp_path / "run", other, resume=True)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="must be a folder that can be written"):
        claim(tmp_path / "file" / "run", TINY, resume=False)


def test_what_is_not_finite_comes_back_from_the_log_as_it_was(tmp_path):
    """And JSON has no other words for it: `NaN` and `Infinity` are none of its own."""
    record = dict.fromkeys(KEYS, 1.0) | {"train/loss": math.nan, "eval/loss": math.inf, "eval/score": -math.inf}
    with MetricsLog(tmp_path / "metrics.jsonl") as log:
        log.add(record)
    line = json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=pytest.fail)
    assert line["train/loss"] is None
    (read,) = read_metrics(tmp_path / "metrics.jsonl")
    np.testing.assert_equal(read, record)
    with MetricsLog(tmp_path / "metrics.jsonl", (tmp_path / "metrics.jsonl").stat().st_size) as log:
        np.testing.assert_equal(log.records, [record])


GOOD = json.dumps(dict.fromkeys(KEYS, 1))


@pytest.mark.parametrize(
    "text",
    [
        b'{"step": 1}', b"\xff", b"3", b"[" * 100_000, b"not json", GOOD.replace('"step": 1', '"step": "1"').encode(),
        GOOD.replace('"step": 1', '"step": null').encode(), GOOD.replace('"step": 1', '"step": 0').encode(),
        GOOD.replace('"step": 1', '"step": 1e999').encode(),
        GOOD.replace('loss": 1', 'loss": true').encode(), GOOD.replace('loss": 1', f'loss": {10**400}').encode(),
        f"{GOOD}\n{GOOD}".encode(),
    ],
)  # fmt: skip
def test_a_log_of_something_else_is_refused(tmp_path, text):
    (tmp_path / "metrics.jsonl").write_bytes(text + b"\n")
    with pytest.raises(UserError, match="is not a log of this program"):
        read_metrics(tmp_path / "metrics.jsonl")


def test_a_run_whose_folder_is_deleted_ends_with_a_sentence(tmp_path):
    record = dict.fromkeys(KEYS, 1)
    with MetricsLog(tmp_path / "run" / "metrics.jsonl", write=False) as log:
        log.add(record)  # another process writes
    (tmp_path / "run").mkdir()
    with MetricsLog(tmp_path / "run" / "metrics.jsonl") as log:
        log.add(record)
        shutil.rmtree(tmp_path / "run")
        with pytest.raises(UserError, match="is gone: its folder was moved or deleted"):
            log.add(record)


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    def fails(file):
        file.write(b"half")
        raise OSError("disk full")

    (tmp_path / "file").write_text("before")
    with pytest.raises(OSError, match="disk full"):
        write_whole(tmp_path / "file", fails)
    assert [(f.name, f.read_text()) for f in tmp_path.iterdir()] == [("file", "before")]


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """Trains as `configs/digits_cnn.py` says; what is compiled serves every run, data and seed."""
    base = load("configs/digits_cnn.py")
    program = run.program_of(base, load_data(base.data))

    class Quiet:
        advance = line = record = staticmethod(lambda *_: None)

    def final_accuracy(epochs=base.train.epochs, **changes):
        config = dataclasses.replace(base, train=dataclasses.replace(base.train, epochs=epochs), **changes)
        workdir = tmp_path_factory.mktemp("digits")
        return run.train(config, load_data(config.data), program, workdir, Quiet())[-1]["eval/accuracy"]

    return final_accuracy


def test_the_default_run_learns_the_digits(digits):
    """With another seed than its own, which `.ci/run` trains as the README says."""
    assert digits(seed=1) >= 0.97


def test_nothing_is_learned_from_shuffled_labels(digits):
    """In two epochs, after which the right ones are learned already."""
    assert digits(2) > 0.8
    assert digits(2, data=DataConfig(shuffle_labels=True)) < 0.2
