"""Regularizers: each against its formula in numpy, and all of them in a run that is taken up."""

import dataclasses
import functools
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import train
from experiments.cli.errors import UserError
from experiments.config import (
    Config,
    DataConfig,
    EvalConfig,
    ModelConfig,
    OptimizerConfig,
    RegularizersConfig,
    TrainConfig,
)
from experiments.config.file import to_json
from experiments.data import batches, epoch_order, load_data
from experiments.training import recalibration, run, steps
from experiments.training.checkpoints import last_arrays
from experiments.training.optimizer import make_optimizer

RATE = 0.5
RANDOM = np.random.default_rng(0)
PARAMS = {
    "dense": {"kernel": RANDOM.normal(size=(3, 4)), "bias": RANDOM.normal(size=4)},
    "norm": {"scale": RANDOM.normal(size=4), "bias": RANDOM.normal(size=4)},
}
GRADIENTS = jax.tree.map(lambda p: RANDOM.normal(size=p.shape), PARAMS)
EVERYTHING = jax.tree.map(lambda _: 1, PARAMS)
NO_NORMS = {"dense": EVERYTHING["dense"], "norm": {"scale": 0, "bias": 0}}


def tree(f, *trees):
    return jax.tree.map(f, *trees)


def clipped(gradients, most):
    norm = np.sqrt(sum((g**2).sum() for g in jax.tree.leaves(gradients)))
    return tree(lambda g: g * min(1, most / norm), gradients)


def by_unit(g, p, part):
    """Each column of a matrix is a unit, and so is a bias (arXiv:2102.06171)."""
    axes = (0,) if g.ndim == 2 else None
    own = np.maximum(np.sqrt((p**2).sum(axes, keepdims=True)), 1e-3)
    norm = np.sqrt((g**2).sum(axes, keepdims=True))
    return np.where(norm > part * own, g * part * own / norm, g)


@pytest.mark.parametrize(
    ("given", "gradients", "decay"),  # what the optimizer is to be given, and what is to be taken away beside its step
    [
        ({"l1": 0.3}, lambda: tree(lambda g, p, r: g + r * 0.3 * np.sign(p), GRADIENTS, PARAMS, NO_NORMS), 0),
        ({"l2": 0.3}, lambda: tree(lambda g, p, r: g + r * 0.3 * p, GRADIENTS, PARAMS, NO_NORMS), 0),
        (
            {"l1": 0.2, "l2": 0.3, "decay_norms": True, "clip_norm": 1.5},
            lambda: clipped(tree(lambda g, p: g + 0.2 * np.sign(p) + 0.3 * p, GRADIENTS, PARAMS), 1.5),
            0,
        ),
        ({"clip_norm": 1e3}, lambda: GRADIENTS, 0),
        ({"clip_adaptive": 0.4}, lambda: tree(lambda g, p: by_unit(g, p, 0.4), GRADIENTS, PARAMS), 0),
        ({"weight_decay": 0.3}, lambda: GRADIENTS, 0.3),
        ({"weight_decay": 0.3, "clip_norm": 1.5}, lambda: clipped(GRADIENTS, 1.5), 0.3),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_a_step_is_that_of_the_formula(name, given, gradients, decay, x64):
    config = OptimizerConfig(name=name, learning_rate=RATE, schedule="constant")
    optimizer = make_optimizer(config, 10, RegularizersConfig(**given))
    updates, _ = jax.jit(lambda g, p: optimizer.update(g, optimizer.init(p), p))(GRADIENTS, PARAMS)
    # The first step: Nesterov's momentum adds 0.9; Adam divides a gradient by its size.
    ahead = tree(lambda g: 1.9 * g if name == "sgd" else g / (np.abs(g) + 1e-8), gradients())
    expected = tree(lambda a, p, r: -RATE * (a + decay * r * p), ahead, PARAMS, NO_NORMS)
    tree(functools.partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-9), updates, expected)


@pytest.mark.parametrize("api", ["linen", "nnx"])
def test_norms_of_both_apis_are_left_out(api, x64):
    """With gradients of zero, decay alone moves the weights."""
    config = Config(model=ModelConfig(api=api, widths=(2, 3, 4)), regularizers=RegularizersConfig(weight_decay=0.5))
    program = run.program_of(config, load_data(config.data))
    params = jax.device_get(program.init(jax.random.key(0)).params)
    params = tree(lambda p: np.ones_like(p), params)
    optimizer = make_optimizer(config.optimizer, 10, config.regularizers)
    updates, _ = optimizer.update(tree(np.zeros_like, params), optimizer.init(params), params)
    moved = {name: {n: bool(np.any(u)) for n, u in of.items()} for name, of in updates.items()}
    assert moved.pop("conv1") == {"kernel": True, "bias": True}
    assert all(any(of.values()) == (not name.startswith("norm")) for name, of in moved.items())


TINY = Config(
    data=DataConfig(train_examples=50, eval_examples=30),
    model=ModelConfig(widths=(2, 3, 4)),
    optimizer=OptimizerConfig(name="adam", learning_rate=0.01),
    regularizers=RegularizersConfig(
        label_smoothing=0.1, l1=1e-4, l2=1e-4, weight_decay=0.1, clip_norm=1.0, clip_adaptive=0.5, average=0.7
    ),
    train=TrainConfig(epochs=2, batch_size=16, eval_batch_size=30),
    eval=EvalConfig(recalibrate=3),
)  # 4 steps an epoch


def test_a_run_with_all_of_them_averages_its_weights_and_is_taken_up(monkeypatch, tmp_path, capsys):
    """What is logged for averaged weights is what they are worth with statistics of their own."""
    monkeypatch.setattr(run, "make_program", functools.cache(steps.make_program))
    (tmp_path / "a.json").write_text(to_json(TINY))
    train.main([f"--config={tmp_path}/a.json", f"--workdir={tmp_path}/run"])
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    said = " ".join(capsys.readouterr().out.split())
    assert f"with averaged weights {records[-1]['averaged/accuracy']:.4f}" in said

    data = load_data(TINY.data)
    program = run.program_of(TINY, data)
    state = program.init(jax.random.key(0))
    average = jax.device_get(state.params)
    for epoch in range(2):
        order = epoch_order(0, epoch, 50)
        for batch in batches(data.train, 16, order):
            state, _ = program.train_step(state, batch)
            average = tree(
                lambda a, p: 0.7 * np.float64(a) + 0.3 * np.float64(p), average, jax.device_get(state.params)
            )
    tree(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6), jax.device_get(state.average), average)
    state = state._replace(params=tree(lambda a: jnp.asarray(a, jnp.float32), average))
    own = recalibration.recalibrated(program.measure_step, state, list(batches(data.train, 16, order))[:3])
    sums = jax.device_get(run.evaluate(program, own, data.held_out, 30))
    np.testing.assert_allclose(records[-1]["averaged/loss"], sums[0]["loss"] / 30, rtol=1e-4)
    assert records[-1]["averaged/loss"] != pytest.approx(records[-1]["recalibrated/loss"], rel=1e-3)

    arrays = last_arrays(tmp_path / "run" / "checkpoints")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "8")
    train.main(["--resume", f"--workdir={tmp_path}/run"])
    assert (tmp_path / "run" / "metrics.jsonl").read_text().splitlines() == lines
    again = last_arrays(tmp_path / "run" / "checkpoints")
    assert any("average" in name for name in arrays)
    assert arrays.keys() == again.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(again[name], array)


def test_averaged_weights_without_statistics_of_their_own_are_refused():
    plain = dataclasses.replace(TINY, eval=EvalConfig())
    with pytest.raises(UserError, match=r"`config.regularizers.average=0.7` .*`--config.eval.recalibrate=10`"):
        recalibration.check(plain)
    renorm = dataclasses.replace(plain, model=ModelConfig(norm="renorm"))
    with pytest.raises(UserError, match=r"`config.model.norm=renorm` .*another norm"):
        recalibration.check(renorm)
    recalibration.check(dataclasses.replace(plain, model=ModelConfig(norm="layer")))
