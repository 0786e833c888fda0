"""Several seeds in one program: each run is what it would be alone, and is kept as if it had been."""

import dataclasses
import functools
import re
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from experiments import compare
from experiments.config import Config, DataConfig, ModelConfig, OptimizerConfig, TrainConfig
from experiments.data import count, epoch_order, kind_of, load_data
from experiments.results.records import read_metrics
from experiments.training import cell, run, steps
from experiments.training.checkpoints import Checkpoints
from experiments.training.stacking import apart, together, training_batches

ROOT = Path(__file__).parents[2]
SEEDS = (3, 4, 7)
DIGITS = Config(
    data=DataConfig(train_examples=50, eval_examples=30),
    model=ModelConfig(name="mlp", dropout=0.2, dtype="float64"),
    optimizer=OptimizerConfig(learning_rate=0.05, schedule="constant"),
    train=TrainConfig(batch_size=20, eval_batch_size=20),
)  # a batch of 10 at the end


def changed(config, **parts):
    return dataclasses.replace(
        config, **{name: dataclasses.replace(getattr(config, name), **values) for name, values in parts.items()}
    )


EVERYTHING = changed(
    DIGITS,
    train={"accumulate": 2},
    regularizers={"average": 0.9, "clip_adaptive": 0.1, "weight_decay": 0.01, "label_smoothing": 0.1},
    eval={"recalibrate": 2},
)


@functools.cache
def program_of(config, devices, seeds):
    data = load_data(config.data)
    return steps.make_program(config, kind_of(data), 50, jax.devices()[:devices], seeds=seeds)


def trained(config, seeds, devices, epochs=2):
    """States and metrics of each seed after some epochs of three steps; several seeds by one program."""
    data = load_data(config.data)
    program = program_of(config, devices, len(seeds) if len(seeds) > 1 else None)
    state = together([program.init(jax.random.key(seed)) for seed in seeds], program)
    for epoch in range(epochs):
        orders = [epoch_order(seed, epoch, count(data.train)) for seed in seeds]
        for batch in training_batches(config, data, program, orders):
            state, sums = program.train_step(state, batch)
    metrics = run._evaluated(config, data, program, state, orders, [sums])
    return list(zip(jax.device_get(apart(state, program)), metrics, strict=True))


def assert_close(made, expected, rtol):
    """In all arrays, relative to the largest entry of each."""
    same = jax.tree.map(
        lambda a, b: np.abs(np.subtract(a, b, dtype=float)).max(initial=0) / max(np.abs(b).max(initial=0), 1e-6),
        made,
        expected,
    )
    assert max(jax.tree.leaves(same)) < rtol


@pytest.mark.parametrize(
    ("config", "devices"),
    [
        (EVERYTHING, 1),
        (changed(DIGITS, model={"api": "nnx"}, parallel={"layout": "shard_map", "sync": "device"}), 2),
    ],
    ids=["everything", "nnx, shard_map"],
)
def test_every_seed_is_what_it_is_alone(config, devices, x64):
    made = trained(config, SEEDS, devices)
    for seed, of_seed in zip(SEEDS, made, strict=True):
        (alone,) = trained(config, [seed], devices)
        assert_close(of_seed, alone, 1e-9)
    assert made[0][1] != made[1][1]


class Stopped:
    """A comparison that is interrupted while it saves the second checkpoint of a seed."""

    def __init__(self, seed):
        self.save, self.seed = Checkpoints.save, seed

    def __call__(self, checkpoints, state, log):
        if checkpoints._made_by["config.seed"] == self.seed and checkpoints.latest:
            raise KeyboardInterrupt
        self.save(checkpoints, state, log)


def logs(folder, seeds=(0, 1, 2)):
    return [read_metrics(folder / f"layer-seed{seed}" / "metrics.jsonl") for seed in seeds]


def test_a_comparison_keeps_every_run_as_if_it_were_alone_and_goes_on(tmp_path, monkeypatch, capsys):
    small = ["--config.data.train_examples=100", "--config.data.eval_examples=20", "--config.train.epochs=3"]
    argv = [f"--config={ROOT}/configs/own.py", "--norms=layer", "--seeds=3", "--config.optimizer.name=sgd", *small]
    compare.main([*argv, f"--workdir={tmp_path}/no", "--together=no"])
    assert "one program" not in capsys.readouterr().out

    with monkeypatch.context() as patched:
        stop = Stopped(seed=1)
        patched.setattr(Checkpoints, "save", lambda *args: stop(*args))
        with pytest.raises(KeyboardInterrupt):
            compare.main([*argv, f"--workdir={tmp_path}/auto"])
    said = capsys.readouterr().out
    assert "layer: 3 seeds run as one program, which was compiled in" in said
    assert f"Interrupted: {tmp_path}/auto/layer-seed0 is saved up to step 4 of 6." in said
    assert f"Interrupted: {tmp_path}/auto/layer-seed1 is saved up to step 2 of 6." in said
    assert "0 of 3 runs are finished." in said

    compare.main(["--resume", f"--workdir={tmp_path}/auto", "--norms=layer", "--seeds=3"])
    said = capsys.readouterr().out
    assert "layer: 2 seeds run as one program" in said  # those that were behind
    for made, alone in zip(logs(tmp_path / "auto"), logs(tmp_path / "no"), strict=True):
        assert [list(r) for r in made] == [list(r) for r in alone]
        np.testing.assert_allclose([[*r.values()] for r in made], [[*r.values()] for r in alone], rtol=1e-5)
    for name in ("layer-seed0", "layer-seed2"):
        files = [{f.name for f in (tmp_path / how / name).iterdir()} for how in ("auto", "no")]
        assert files[0] == files[1]
        configs = [(tmp_path / how / name / "config.json").read_bytes() for how in ("auto", "no")]
        assert configs[0] == configs[1]


@pytest.mark.parametrize(
    ("config", "memory", "reason"),
    [
        (changed(DIGITS, parallel={"layout": "pmap"}), None, "`config.parallel.layout=pmap` trains one at a time"),
        (DIGITS, 1e4, "all at once take 0.0 GB and more"),
        (changed(DIGITS, model={"name": "article_cnn"}), None, "convolutions of several seeds .* slow on the CPU"),
    ],
)
def test_seeds_that_do_not_run_as_one_program_run_one_after_the_other(
    config, memory, reason, monkeypatch, tmp_path, x64
):
    trained, said, config = [], [], changed(config, model={"dropout": None, "widths": (2, 2, 2)})
    monkeypatch.setattr(run, "go_on", lambda runs, *_: trained.append([one.config.seed for one in runs]))
    if memory:
        monkeypatch.setattr(run, "program_of", lambda *_: program_of(config, 8, None))
        monkeypatch.setattr(run, "memory", lambda: memory)
    report = SimpleNamespace(line=said.append, title=lambda _: None, advance=lambda _: None)
    folders = {seed: tmp_path / str(seed) for seed in (0, 1)}
    cell.train_cell("batch", config, folders, load_data(config.data), report, False, "auto", {})
    assert trained == [[0], [1]]
    assert re.fullmatch(rf"batch: one seed after the other, since {reason}.*", said[0])
