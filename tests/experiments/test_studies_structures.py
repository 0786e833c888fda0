"""The study of the zoo's architectures: it trains what the command trains, and counts networks."""

import dataclasses

import numpy as np
import pytest

from experiments.cli.report import reporting
from experiments.config import Config, DataConfig, TrainConfig
from experiments.data import load_data
from experiments.results.claims import judge
from experiments.results.evidence import Evidence, Row, cell_name
from experiments.studies import structures
from experiments.training import run


def test_a_cell_is_what_the_command_trains(monkeypatch, tmp_path):
    """Two seeds by one program, at each rate; beside runs of their own, whose config has the norm and the rate.

    What they measure within an epoch is left out.
    """
    own = Config(
        data=DataConfig(train_examples=128, eval_examples=64), train=TrainConfig(epochs=2, batch_size=32, eval_every=3)
    )
    monkeypatch.setattr(structures, "marked", lambda: {"digits_cnn": own})
    found = [*structures.run({"config": "digits_cnn", "norm": "example"}, [0, 3])]
    data, want = load_data(own.data), {}
    for factor in (1.0, 0.3):
        for seed in (0, 3):
            config = dataclasses.replace(
                own,
                seed=seed,
                model=dataclasses.replace(own.model, norm="group"),
                optimizer=dataclasses.replace(own.optimizer, learning_rate=0.1 * factor),
            )
            with reporting(0, quiet=True) as report:
                folder = tmp_path / f"{factor}-{seed}"
                records = run.train(config, data, run.program_of(config, data), folder, report)
            want |= {(factor, seed, r["step"]): r["eval/accuracy"] for r in records if r["step"] in (4, 8)}
    assert len(want) == 8
    assert {(m.more["rate"], m.seed, m.step): m.value for m in found} == want


def evidence(accuracies):
    """Of networks by name, (none, batch, example), the same for all seeds; the smaller rate is always worse."""
    return Evidence(
        Row("s", cell_name({"config": name, "norm": norm, "rate": rate}), seed, "accuracy", step, value, "d", "c", "v")
        for name, values in accuracies.items()
        for norm, last in zip(structures.NORMS, values, strict=True)
        for rate, step, value in ((1.0, 10, last / 2), (1.0, 20, last), (0.3, 10, 0.9), (0.3, 20, 0.01))
        for seed in range(3)
    )


@pytest.mark.parametrize(("better", "verdict"), [(7, "confirmed"), (4, "confirmed"), (3, "refuted"), (0, "refuted")])
def test_networks_are_counted(better, verdict):
    names = [*structures.IMAGES]
    found = evidence({n: (0.5, 0.75 if i < better else 0.25, 0.5) for i, n in enumerate(names)})
    judged = judge(structures.CLAIMS[0], found)
    assert judged.verdict == verdict
    assert f"Found: {better} of them, and {7 - better} less accurate" in judged.said


def test_what_may_be_more_than_half_is_within_noise():
    assert structures.most_of(["confirmed", "confirmed", "within noise", "refuted"]) == "within noise"
    assert structures.most_of(["confirmed", "within noise", "refuted", "refuted"]) == "refuted"


def test_the_curve_is_that_of_the_rate_that_ends_best():
    found = evidence({"mlp_digits": (0.5, 0.75, 0.25)})
    np.testing.assert_array_equal(structures.last(found, "mlp_digits", "batch"), [0.75] * 3)
    np.testing.assert_array_equal(structures.first(found, "mlp_digits", "batch"), [0.375] * 3)
    with pytest.raises(LookupError, match="config=vgg_digits norm=batch"):
        structures.last(found, "vgg_digits", "batch")


def test_a_usual_norm_is_one_of_those_that_are_measured():
    assert set(structures.USUAL) == set(structures.NAMES) == {cell["config"] for cell in structures.cells(False)}
    assert {structures.USUAL[n] for n in structures.IMAGES} == {"batch"}
    assert len(structures.cells(False)) == 38
    assert len(structures.cells(True)) == 3
