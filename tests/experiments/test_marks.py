"""The configs that have a mark: each is of a model of the zoo, fits its data, and reached its mark when it was run."""

import dataclasses
import json
import re

import jax
import numpy as np
import pytest

from experiments import marks, train
from experiments.cli.errors import UserError
from experiments.config import Config
from experiments.config.file import load, to_json
from experiments.data import load_data
from experiments.models import MODELS
from experiments.results import config_page, evidence
from experiments.results.config_page import FILE, digest, marked
from experiments.training import cluster
from experiments.training.lock import only_writer
from experiments.training.run import program_of

CONFIGS = marked()
MEASURED = evidence.load(FILE)
SEEDS = [0, 1, 2]


def answers(held_out):
    """Every answer of the held-out examples, read from the data alone."""
    if "label" in held_out:
        return held_out["label"]
    name = "target" if "target" in held_out else "tokens"
    return held_out[name][held_out.get(f"{name}_mask", np.ones(held_out[name].shape, bool))]


def test_every_model_has_a_config():
    assert {config.model.name for config in CONFIGS.values()} == set(MODELS)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_fits_its_data_and_its_mark_is_halfway_from_chance_to_perfect(name):
    config = CONFIGS[name]
    data = load_data(config.data)
    params = jax.eval_shape(program_of(config, data).init, jax.random.key(0)).params
    own = {"config": name, "norm": "own"}
    assert set(MEASURED.values("parameters", own)) == {sum(np.prod(p.shape) for p in jax.tree.leaves(params))}
    _, counts = np.unique(answers(data.held_out), return_counts=True)
    chance, frequent = 1 / len(counts), counts.max() / counts.sum()
    assert config.mark >= (1 + chance) / 2
    assert config.mark > 2 * frequent
    for metric, value in (("chance", chance), ("most frequent", frequent)):
        np.testing.assert_allclose(MEASURED.values(metric, own), value, rtol=1e-5)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_reached_its_mark_within_two_minutes(name):
    own, none = ({"config": name, "norm": norm} for norm in ("own", "none"))
    assert {row.digest for row in MEASURED.select({"config": name})} == {digest(CONFIGS[name])}, "measure it again"
    assert [list(MEASURED.by_seed("accuracy", norm)) for norm in (own, none)] == [SEEDS, [0]]
    assert sorted(MEASURED.values("accuracy", own))[1] > CONFIGS[name].mark
    assert max(MEASURED.values("cpu seconds", own)) <= 120


def test_a_digest_is_of_what_is_trained_alone():
    one = Config(mark=0.5)
    same = [dataclasses.replace(one, seed=3), dataclasses.replace(one, mark=0.6)]
    assert {digest(config) for config in same} == {digest(one)}
    assert digest(dataclasses.replace(one, task="language_model")) != digest(one)


# The command


@pytest.fixture
def finished(monkeypatch, tmp_path):
    """Runs of one config that only pretend to train: by norm and seed, their accuracy and seconds."""
    config = dataclasses.replace(load("configs/digits_cnn.py"), mark=0.5)
    monkeypatch.setattr(marks, "marked", lambda: {"digits_cnn": config})
    monkeypatch.setattr(marks, "FILE", tmp_path / "configs.csv")
    done = {"own": {0: (0.7, 9.2), 1: (0.6, 30.0), 2: (0.4, 8.0)}, "none": {0: (0.3, 7.0)}}

    def run_here(jobs, at_once, ended):
        for job in jobs:
            norm, seed = re.search(r"norm=(\w+),seed=(\d)", job.name).groups()
            model = dataclasses.replace(config.model, norm="none") if norm == "none" else config.model
            accuracy, seconds = done[norm][int(seed)]
            job.folder.mkdir(parents=True)
            (job.folder / "config.json").write_text(to_json(dataclasses.replace(config, model=model, seed=int(seed))))
            record = {"step": 7, "train/loss": 1.0, "eval/loss": 1.0, "eval/accuracy": accuracy}
            (job.folder / "metrics.jsonl").write_text(json.dumps(record) + "\n")
            job.finish(2 * seconds, seconds)
            ended(job, 0)

    monkeypatch.setattr(cluster, "run_here", run_here)
    return done


def test_the_command_writes_what_the_runs_gave(finished, tmp_path):
    argv = [f"--workdir={tmp_path / 'runs'}", "--write"]
    assert marks.main(argv) == 0
    result = config_page.result_of("digits_cnn", evidence.load(tmp_path / "configs.csv"))
    assert str(result.accuracies) == "0.6000 (0.4000 to 0.7000)"
    assert result.without == 0.3
    assert (result.seconds, result.cpu_seconds) == (60, 30)
    with pytest.raises(UserError, match="add `--resume`"):
        marks.main(argv)
    with pytest.raises(UserError, match=r"`--names` must be one of .* it is 'other'"):
        marks.main([*argv, "--names=other", "--resume"])


def test_an_interrupted_run_begins_again_so_that_its_time_is_that_of_the_whole(finished, tmp_path):
    left = marks.Run("digits_cnn", "own", 1).job(tmp_path / "runs").folder
    left.mkdir(parents=True)
    (left / "config.json").write_text("{}")
    argv = [f"--workdir={tmp_path / 'runs'}", "--resume"]
    with only_writer(left), pytest.raises(UserError, match="Another process writes to"):
        marks.main(argv)
    assert marks.main(argv) == 0  # the runs that are pretended make their folders, and fail where there is one


@pytest.mark.parametrize(("own", "status"), [((0.5, 9.0), 0), ((0.4999, 9.0), 1), ((0.7, 121.0), 1)])
def test_a_result_that_falls_short_is_a_status(finished, tmp_path, own, status):
    finished["own"] = dict.fromkeys(SEEDS, own)
    assert marks.main([f"--workdir={tmp_path / 'runs'}"]) == status
    assert not (tmp_path / "configs.csv").exists()


def test_runs_of_another_config_are_refused(finished, tmp_path, monkeypatch):
    argv = [f"--workdir={tmp_path / 'runs'}", "--resume"]
    marks.main(argv)
    changed = dataclasses.replace(load("configs/digits_cnn.py"), mark=0.5, task="language_model")
    monkeypatch.setattr(marks, "marked", lambda: {"digits_cnn": changed})
    with pytest.raises(UserError, match=r"`configs/digits_cnn.py` has changed since"):
        marks.main(argv)


def test_a_mark_needs_an_accuracy(tmp_path):
    with pytest.raises(UserError, match=r"`config.mark` is an accuracy, but `config.task=.*` measures `loss`"):
        train.main(["--config=configs/own.py", "--config.mark=0.5", f"--workdir={tmp_path / 'run'}"])
    assert not (tmp_path / "run").exists()
