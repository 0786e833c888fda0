"""`python -m experiments.doctor`: from the folder of a run to the remedy, and when the training program names it."""

import json
import math

import jax
import pytest

from experiments import doctor, train
from experiments.cli.errors import UserError
from experiments.config import Config, ModelConfig
from experiments.config.arguments import parse
from experiments.data import load_data
from experiments.results.records import MetricsLog
from experiments.training import run
from experiments.training.examination import hint

SMALL = (
    "--config=configs/digits_cnn.py", "--config.train.epochs=1", "--config.data.train_examples=96",
    "--config.data.eval_examples=32", "--config.train.batch_size=16", "--config.train.eval_batch_size=32",
    "--config.model.widths", "2", "2", "4",
)  # fmt: skip


def begun(workdir, *more):
    """A run that has only its first checkpoint."""
    config = parse(train.Arguments, [*SMALL, "--config.model.momentum=0.1", *more], "").config
    data = load_data(config.data)
    program = run.program_of(config, data)
    with (
        run.claim(workdir, config, resume=False),
        MetricsLog(workdir / run.METRICS) as log,
        run.checkpoints_of(workdir, config, data) as checkpoints,
    ):
        checkpoints.save(program.init(jax.random.key(0)), log.mark())


@pytest.mark.parametrize(("more", "values"), [((), 16), (("--config.model.api=nnx", "--config.train.accumulate=2"), 8)])
def test_from_a_run_with_faults_to_the_remedy(tmp_path, capsys, more, values):
    workdir = tmp_path / "run"
    begun(workdir, *more)
    before = {file: file.read_bytes() for file in workdir.rglob("*") if file.is_file()}
    doctor.main([f"--run={workdir}", "--batches=2"])
    said = capsys.readouterr().out.replace("\n", " ")
    assert "Write 0.9 where PyTorch has 0.1" in said
    found = json.loads((workdir / "doctor.json").read_text())
    for code in ("momentum-torch", "never-updated"):
        assert {f["path"] for f in found["findings"] if f["code"] == code} == {f"norm{n}" for n in range(4)}
    assert {row["evidence"]["batches"] for row in found["norms"]} == {2}
    assert {row["evidence"]["values"] for row in found["norms"] if row["path"] == "norm3"} == {values}
    assert (workdir / "doctor.png").read_bytes().startswith(b"\x89PNG")
    assert all(file.read_bytes() == content for file, content in before.items())


def test_the_training_program_names_it(tmp_path, capsys, monkeypatch):
    losses = {"train/loss": 0.1, "eval/loss": 5.0, "train/accuracy": 1.0, "eval/accuracy": 0.1}
    monkeypatch.setattr(run, "train", lambda *_: [{"step": 6, **losses}])
    train.main([*SMALL, f"--workdir={tmp_path / 'run'}"])
    assert f"python -m experiments.doctor --run={tmp_path / 'run'}" in capsys.readouterr().out.replace("\n", "")


@pytest.mark.parametrize(
    ("train_loss", "eval_loss", "norm", "words"),
    [
        (0.1, 0.9, "batch", ""),
        (0.1, 2.0, "batch", "far above that of training"),
        (0.1, math.nan, "batch", "not finite"),
        (math.nan, math.nan, "layer", "not finite"),
        (0.1, math.nan, "none", ""),
        (math.nan, 4.0, "batch", ""),
    ],
)
def test_the_hint(tmp_path, train_loss, eval_loss, norm, words):
    said = hint({"train/loss": train_loss, "eval/loss": eval_loss}, Config(model=ModelConfig(norm=norm)), tmp_path)
    assert words in said
    assert bool(words) == (f"python -m experiments.doctor --run={tmp_path}" in said)


def test_what_is_no_run(tmp_path):
    with pytest.raises(UserError, match="`--run` must be the folder of a run"):
        doctor.main([f"--run={tmp_path}"])
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match=r"There is no checkpoint in .* yet"):
        doctor.main([f"--run={tmp_path}"])
    (tmp_path / "checkpoints" / "3").mkdir(parents=True)
    with pytest.raises(UserError, match="must hold a checkpoint of this run, but none can be read"):
        doctor.main([f"--run={tmp_path}"])
