"""A model, data and a task of the user's own, by `--config` alone; and what is said where they are not right."""

import dataclasses
import json
import re
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

from bnjax import linen as bnn
from experiments import train
from experiments.cli.errors import UserError
from experiments.config import DataConfig, ModelConfig, OptimizerConfig, ParallelConfig, TrainConfig
from experiments.config.file import load
from experiments.data import batches, kind_of, load_data
from experiments.models import Job, make_network
from experiments.results.records import read_metrics
from experiments.training import run, steps

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "configs" / "own.py"


def test_the_example_learns_and_is_taken_up_from_its_folder_alone(tmp_path, capsys, monkeypatch):
    argv = ["--config.train.epochs=6", f"--workdir={tmp_path}/run", "--config.model.dropout=0.01"]
    monkeypatch.chdir(ROOT)
    train.main(["--config=configs/own.py", *argv])
    said = " ".join(capsys.readouterr().out.split())
    records = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert f"Mean squared error on the held-out points: {records[-1]['eval/loss']:.4f}." in said
    assert records[-1]["eval/loss"] < 0.2  # the variance of the curve is 0.5; the noise alone is 0.01
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (config["task"], config["data"]["name"], config["model"]["name"]) == (
        f"{EXAMPLE}:REGRESSION", f"{EXAMPLE}:load", f"{EXAMPLE}:Net"
    )  # fmt: skip
    monkeypatch.chdir(tmp_path)
    train.main(["--resume", f"--workdir={tmp_path}/run"])
    assert read_metrics(tmp_path / "run" / "metrics.jsonl") == records


CONFIG = """
from experiments.config import *
import flax.linen as nn

class Net(nn.Module):
    pass

def get_config():
    return Config({0})
"""


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("model=ModelConfig(name=nn.Dense)", "`config.model.name` is <class .*Dense.*has no name of its own in"),
        ("task=lambda config: 1", "`config.task` is <function .*define it there, outside of `get_config..`"),
        ("task='nowhere.py:x'", "`config.task` names the file `nowhere.py`, which is not there"),
        ("task=f'{__file__}:missing'", r"`config.task=.*:missing`: the file `.*a.py` has no `missing`"),
        ("task=f'{__file__}:nn'", r"`config.task=.*` must be .*Task.* but it is <module"),
        ("task=f'{__file__}:get_config'", r"`config.task=.*` fails: TypeError: get_config.. takes 0 positional"),
        ("data=DataConfig(name=f'{__file__}:Config')", r"must be a function of a config that returns .* gave Config"),
        ("model=ModelConfig(name=Net)", r"`config.model.name=.*:Net` .* does not take inputs \(n, 8, 8, 1\)"),
    ],
)
def test_what_is_handed_in_wrongly_is_a_sentence(tmp_path, given, expected):
    (tmp_path / "a.py").write_text(CONFIG.format(given))
    with pytest.raises(UserError) as error:
        train.main([f"--config={tmp_path}/a.py", f"--workdir={tmp_path}/run"])
    assert re.search(expected, str(error.value))
    assert not (tmp_path / "run").exists()


def test_a_file_of_one_s_own_that_fails_is_a_sentence(tmp_path):
    (tmp_path / "a.py").write_text("x = 1\nx / 0\n")
    with pytest.raises(UserError, match=r"The file `.*a.py` of `config.data.name` fails in line 2: ZeroDivisionError"):
        load_data(DataConfig(name=f"{tmp_path}/a.py:load"))


def arrays(**more):
    lines = ", ".join(f"{name!r}: np.zeros({shape})" for name, shape in more.items())
    return f"""
import numpy as np
from experiments.data import Data
load = lambda _: Data({{{lines}}}, {{'x': np.zeros(2)}})
"""


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"x": 3, "y": 4}, r"must give arrays of as many examples, but `train` has \{'x': 3, 'y': 4\}"),
        ({"x": 0}, "must give arrays of as many examples"),
        ({"x": 3, "mask": 3}, "must call `mask` otherwise"),
        ({"y": 3}, r"the same arrays to train and held out, but they are \['y'\] and \['x'\]"),
    ],
)
def test_data_that_are_not_right_are_a_sentence(tmp_path, given, expected):
    (tmp_path / "a.py").write_text(arrays(**given))
    with pytest.raises(UserError, match=expected):
        load_data(DataConfig(name=f"{tmp_path}/a.py:load"))


class Plain(nn.Module):
    """With the norm that it is given, or one of its own."""

    classes: int = 10
    norm: object = None
    own: object = bnn.BatchNorm

    @nn.compact
    def __call__(self, x, *, train):
        return nn.Dense(self.classes)(self.own(use_running_average=not train)(x.reshape(len(x), -1)))


def no_norm(classes):
    return Plain(classes)


def flax_norm(classes):
    return Plain(classes, own=nn.BatchNorm)


def too_few():
    return Plain(9)


def greedy(classes, depth):
    return Plain(classes)


class Untrained(nnx.Module):
    def __init__(self, *, rngs):
        pass

    def __call__(self, x):
        return x


JOB = Job(jax.ShapeDtypeStruct((1, 4, 4, 1), "float32"), 10, outputs=(1, 10))


@pytest.mark.parametrize(
    ("name", "batch", "expected"),
    [
        ("no_norm", {"axis_name": "member"}, "has running statistics, but takes no `norm` that knows of the other"),
        ("flax_norm", {}, "has a batch norm that does not hand out what it measures, as Flax's"),
        ("too_few", {}, r"must return outputs \(n, 10\) of float32 for inputs .* of float32, but they are \(n, 9\)"),
        ("greedy", {}, "needs `depth`, which is not among what it can be given: `norm`, `rngs`, `classes`"),
        ("Untrained", {}, "its `__call__` must take `train`"),
        ("JOB", {}, "must be a Flax module, or a function that makes one"),
    ],
)
def test_a_model_that_does_not_fit_is_a_sentence(name, batch, expected):
    with pytest.raises(UserError, match=expected):
        make_network(ModelConfig(name=f"{__file__}:{name}"), JOB, batch)


def test_a_norm_that_keeps_more_than_moments_sits_in_a_model():
    assert not make_network(ModelConfig(name="mlp", norm="renorm"), JOB).hands_out


def test_what_a_model_has_not_is_refused_and_not_left_out():
    with pytest.raises(UserError, match=r"takes no `dropout`; leave `config.model.dropout` out"):
        make_network(ModelConfig(name=f"{__file__}:no_norm", dropout=0.5), JOB)
    with pytest.raises(UserError, match=r"has no sizes; write `config.model.widths`"):
        make_network(ModelConfig(size="small"), JOB)
    with pytest.raises(UserError, match=r"`norm` 'instance' cannot sit at features .* Choose one of none, batch"):
        make_network(ModelConfig(name="mlp", norm="instance"), JOB)
    with pytest.raises(UserError, match=r"`config.model.api=nnx` must be one of `article_cnn`, `mlp`, .*'vgg'"):
        make_network(ModelConfig(name="vgg", api="nnx"), JOB)


@pytest.mark.parametrize("name", ["own", "own_nnx"])
def test_a_model_of_one_s_own_is_the_same_on_eight_devices(name, x64):
    """With batch norm, dropout, and batches that the devices do not divide.

    Not with Adam: it makes steps of the gradients of biases before a batch norm, which are nothing but rounding.
    """
    given = load(str(ROOT / "configs" / f"{name}.py"))
    model = dataclasses.replace(given.model, dtype="float64", dropout=0.2)
    data = load_data(dataclasses.replace(given.data, train_examples=100, eval_examples=30))

    def trained(layout, devices):
        parallel = ParallelConfig(layout=layout)
        config = dataclasses.replace(
            given, model=model, optimizer=OptimizerConfig(), parallel=parallel, train=TrainConfig(batch_size=43)
        )
        program = steps.make_program(config, kind_of(data), 3, jax.devices()[:devices])
        state = program.init(jax.random.key(0))
        for batch in batches(data.train, 43, share=program.train_share):
            state, _ = program.train_step(state, batch)
        sums = run.evaluate(program, state, data.held_out, 20)
        return jax.device_get((state.params, state.batch_stats)), sum(float(s["loss"]) for s in sums)

    made, alone = trained("shard_map", 8), trained("jit", 1)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12), made, alone)


def test_a_config_can_be_read_twice():
    assert load(str(EXAMPLE)) == load(str(EXAMPLE))
