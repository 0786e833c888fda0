"""The studies: what they average, and what they call accuracy."""

import dataclasses

import jax
import numpy as np
import pytest

from experiments.config import DataConfig, ModelConfig, TrainConfig
from experiments.data import load_data
from experiments.studies import averaged_weights
from experiments.training import run

STEPS, FROM = 7, 3


@pytest.fixture
def tiny(monkeypatch):
    """Seven steps over two epochs, averaged from the fourth on."""
    monkeypatch.setattr(averaged_weights, "STEPS", STEPS)
    monkeypatch.setattr(averaged_weights, "SWA_FROM", FROM)
    return dataclasses.replace(
        averaged_weights.config_of(0.9),
        data=DataConfig(train_examples=50, eval_examples=30),
        model=ModelConfig(widths=(2, 3, 4)),
        train=TrainConfig(batch_size=16),
    )


def test_the_averages_are_those_of_all_steps_written_out(tiny):
    data = load_data(tiny.data)
    program = run.program_of(tiny, data)
    states = [program.init(jax.random.key(tiny.seed))]

    def recorded(state, batch):
        new, sums = program.train_step(state, batch)
        states.append(jax.tree.map(np.copy, new))
        return new, sums

    first = jax.tree.map(np.copy, states.pop())
    state, found = averaged_weights.trained(tiny, data, program._replace(train_step=recorded))
    assert int(state.step) == STEPS == len(states)
    last, ema, swa = found.values()
    decay = averaged_weights.EMA_DECAY
    shares = [decay**STEPS, *((1 - decay) * decay ** (STEPS - i) for i in range(1, STEPS + 1))]
    for field in ("params", "batch_stats"):
        trees = [getattr(s, field) for s in (first, *states)]
        jax.tree.map(np.testing.assert_array_equal, getattr(last, field), trees[-1])
        for average, weights in ((ema, shares), (swa, [0] * (FROM + 1) + [1 / (STEPS - FROM)] * (STEPS - FROM))):
            want = jax.tree.map(lambda *leaves, w=weights: np.tensordot(w, np.float64(leaves), 1), *trees)
            jax.tree.map(
                lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), getattr(average, field), want
            )


def test_the_accuracies_are_of_three_kinds_of_statistics(tiny):
    data = load_data(tiny.data)
    found = averaged_weights.accuracies(tiny, data, run.program_of(tiny, data))
    assert list(found) == list(averaged_weights.WEIGHTS)
    for values in found.values():
        right = 30 * np.array(values)
        assert right.shape == (3,)
        np.testing.assert_allclose(right, right.round(), atol=1e-5)
    assert found["last"][0] == found["last"][1]


def test_one_pass_over_one_batch_is_exact():
    assert max(averaged_weights.one_pass_errors(1024)) < 1e-5 < averaged_weights.one_pass_errors(16)[4]
