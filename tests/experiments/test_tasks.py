"""Every task in every layout: the same as the same groups on one device, dropout and all."""

import dataclasses
import functools
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from tensorboardX.proto.event_pb2 import Event

from experiments import matrix, train
from experiments.cli.errors import UserError
from experiments.config import (
    Config,
    DataConfig,
    ModelConfig,
    OptimizerConfig,
    ParallelConfig,
    RegularizersConfig,
    TrainConfig,
)
from experiments.config.file import to_json
from experiments.data import batches, kind_of, load_data
from experiments.models import Job, make_network
from experiments.models.dropout import Noise, by_example
from experiments.results.records import read_metrics
from experiments.tasks import TASKS, task_of
from experiments.training import run, steps
from tests.experiments import tiny

OWN = Path(__file__).with_name("tiny.py")
MODELS = {
    "language_model": ("Tokens", "load"),
    "masked_language_model": ("Tokens", "load"),
    "sequence_to_sequence": ("Pairs", "load"),
    "classification": ("NnxImages", "load_images"),
}


def config_of(task, layout="jit", sync="global", accumulate=1, dtype="float64", **more):
    model, data = MODELS[task]
    return Config(
        task=task,
        data=DataConfig(name=f"{OWN}:{data}", length=5),
        model=ModelConfig(name=f"{OWN}:{model}", dtype=dtype, norm="none" if model == "NnxImages" else "batch"),
        optimizer=OptimizerConfig(learning_rate=0.1, schedule="constant"),
        parallel=ParallelConfig(layout=layout, sync=sync, group_size=2 if sync == "group" else None),
        train=TrainConfig(batch_size=43, accumulate=accumulate, eval_batch_size=7),
        **more,
    )


@functools.cache
def trained(config, devices):
    """Parameters, statistics and sums after four steps of two epochs, and the sums of the held-out examples."""
    data = load_data(config.data)
    program = steps.make_program(config, kind_of(data), 8, jax.devices()[:devices])
    state, sums = program.init(jax.random.key(0)), []
    for order in (np.arange(75), np.arange(75)[::-1]):
        for batch in batches(data.train, config.train.batch_size, order, program.train_share):
            state, new = program.train_step(state, batch)
            sums.append(new)
    held_out = run.evaluate(program, state, data.held_out, config.train.eval_batch_size)
    totals = jax.tree.map(lambda *s: sum(map(float, s)), *held_out)
    return jax.device_get((state.params, state.batch_stats, sums)), totals


# Each task in jit, shard_map and one more; with micro-batches and groups once each. The whole table:
# `python -m experiments.matrix`.
CASES = [
    ("language_model", ("shard_map", "global", 1), 4),
    ("language_model", ("pmap", "group", 1), 4),
    ("masked_language_model", ("shard_map", "group", 2), 4),
    ("masked_language_model", ("vmap", "global", 1), 3),
    ("sequence_to_sequence", ("shard_map", "device", 1), 4),
    ("sequence_to_sequence", ("jit", "global", 1), 8),
    ("classification", ("shard_map", "global", 1), 4),
    ("classification", ("pmap", "global", 2), 2),
]


@pytest.mark.parametrize(("task", "case", "devices"), CASES, ids=str)
def test_a_task_is_the_same_in_every_layout(task, case, devices, x64):
    """Which examples a norm measures together decides; the layout and the number of devices do not."""
    _, sync, accumulate = case
    alone = sync == "global" and accumulate == 1
    reference = trained(config_of(task, "jit", sync, accumulate), 1 if alone else devices)
    found = trained(config_of(task, *case), devices)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-12), found, reference)


def log_softmax(logits):
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def batch_of(*names):
    batch = {name: array[:4] for name, array in tiny.sequences().items() if name in names}
    return {**batch, "mask": np.array([True, True, True, False])}


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("task", TASKS)
def test_a_loss_is_that_of_the_formula(task, train, smoothing, x64):
    """The mean cross entropy of what counts, from its definition; smoothing in training alone."""
    task = task_of(Config(task=task, regularizers=RegularizersConfig(label_smoothing=smoothing)))
    batch = batch_of("tokens", "tokens_mask", "source", "target", "target_mask")
    batch |= {"image": np.zeros((4, 2, 2, 1)), "label": np.array([1, 0, 3, 2])}
    view = task.view(jax.tree.map(jnp.asarray, batch), jax.random.split(jax.random.key(0), 4))
    logits = np.random.default_rng(1).normal(size=(*view.targets.shape, 6))
    sums = task.measure(jnp.asarray(logits), view, train)
    part = smoothing if train else 0
    labels = (1 - part) * np.eye(6)[view.targets] + part / 6
    losses = -(labels * log_softmax(logits)).sum(-1)
    right = logits.argmax(-1) == view.targets
    weight = np.asarray(view.weight)
    np.testing.assert_allclose(sums["loss"], losses[weight].sum(), rtol=1e-12)
    assert sums["correct"] == right[weight].sum()
    assert sums["count"] == weight.sum() > 0
    assert not weight[3].any(), "a row that is no example counts"
    if "whole" in sums:
        assert (sums["whole"], sums["sequences"]) == ((right | ~weight)[:3].all(-1).sum(), 3)


def test_a_causal_model_is_given_the_tokens_before_and_a_masked_one_all_that_are_not_hidden():
    batch = batch_of("tokens", "tokens_mask")
    keys = jax.random.split(jax.random.key(0), 4)
    view = task_of(Config(task="language_model")).view(batch, None)
    np.testing.assert_array_equal(view.inputs[:, 1:], view.targets[:, :-1])
    assert not view.inputs[:, 0].any()
    np.testing.assert_array_equal(view.weight, batch["tokens_mask"] & batch["mask"][:, None])
    masked = task_of(Config(task="masked_language_model"))
    view = masked.view(batch, keys)
    np.testing.assert_array_equal(view.inputs, np.where(view.weight, 0, batch["tokens"]))
    alone = masked.view({name: t[2:3] for name, t in batch.items()}, keys[2:3])
    np.testing.assert_array_equal(alone.weight[0], view.weight[2])  # nothing but its key matters
    many = {"tokens": np.ones((1000, 20), int), "mask": np.ones(1000, bool)}
    hidden = masked.view(many, jax.random.split(jax.random.key(0), 1000)).weight.mean()
    assert abs(hidden - 0.15) < 0.01  # four standard deviations


def test_metrics_are_those_of_sums():
    sums = {"loss": 6.0, "correct": 2.0, "count": 4.0, "whole": 1.0, "sequences": 2.0}
    assert task_of(Config(task="sequence_to_sequence")).means(sums) == {"loss": 1.5, "accuracy": 0.5, "whole": 0.5}
    found = task_of(Config(task="language_model")).means(sums)
    assert found == {"loss": 1.5, "accuracy": 0.5, "perplexity": pytest.approx(np.exp(1.5))}


def test_metrics_of_nothing_that_counts_are_no_numbers():
    nothing = {name: np.zeros(2, np.float32) for name in ("loss", "correct", "count")}
    some = {"loss": np.float32([0, 3]), "correct": np.float32([0, 1]), "count": np.float32([0, 2])}
    first, second = run._metrics(task_of(Config(task="masked_language_model")), "train", [nothing, some])
    assert np.isnan([*first.values()]).all()
    assert second == {"train/loss": 1.5, "train/accuracy": 0.5, "train/perplexity": pytest.approx(np.exp(1.5))}
    assert {type(value) for value in [*first.values(), *second.values()]} == {float}


@pytest.mark.parametrize("rate", [0.3, 1.0])
@pytest.mark.parametrize("shared", [(), (1,)])
def test_dropout_is_flax_s_with_a_mask_for_each_example(rate, shared):
    """Kept values are as large as Flax makes them; a mask depends on the example, the layer, and nothing else."""
    x = np.ones((6, 40, 50))
    noise = Noise(jax.random.key(3), np.arange(6) + 10)

    class Two(nn.Module):
        @nn.compact
        def __call__(self, x):
            return [nn.Dropout(rate, deterministic=False, broadcast_dims=shared)(x) for _ in range(2)]

    def applied(x, noise):
        with by_example(noise):
            return Two().apply({}, x, rngs={"dropout": jax.random.key(3)})

    first, second = map(np.asarray, applied(x, noise))
    kept = first != 0
    np.testing.assert_allclose(first[kept], 1 / (1 - min(rate, 0.3)))
    assert abs(kept.mean() - (1 - rate)) < 0.05
    assert all((kept[:, :1] == kept).all() for _ in shared)
    if rate < 1:
        assert (kept != (second != 0)).any()
        assert all((kept[0] != kept[i]).any() for i in range(1, 6))
    turned = [5, 2]
    np.testing.assert_array_equal(applied(x[turned], Noise(noise.key, noise.example[turned]))[0], first[turned])
    np.testing.assert_array_equal(applied(x, None)[0], x)  # as where statistics are measured anew
    with pytest.raises(ValueError, match=r"each of 6 examples, which must be the first axis .* \(240, 50\)"):
        applied(x.reshape(240, 50), noise)


@pytest.mark.parametrize("api", ["linen", "nnx"])
def test_the_article_s_network_drops_where_it_is_trained_and_nowhere_else(api):
    """With what the other examples of the batch are out of account, but for their norms, which are left out."""
    config = ModelConfig(api=api, norm="none", widths=(2, 3, 64), dropout=0.5)
    network = make_network(config, Job(jax.ShapeDtypeStruct((1, 8, 8, 1), "float32"), 10))
    params, stats = jax.jit(network.init)(jax.random.key(0))
    x, noise = jnp.ones((4, 8, 8, 1)), Noise(jax.random.key(1), jnp.arange(4))

    @jax.jit
    def trained(rows):
        drawn = noise._replace(example=noise.example[rows])
        return network.measure(params, stats, x[rows], mask=jnp.ones(len(rows), bool), noise=drawn)[0]

    all_four = trained(np.arange(4))
    evaluated = network.apply(params, stats, x, train=False, mask=jnp.ones(4, bool))[0]
    assert network.random
    assert len(np.unique(evaluated, axis=0)) == 1
    assert len(np.unique(all_four, axis=0)) == 4
    np.testing.assert_allclose(trained(np.array([3, 1])), all_four[np.array([3, 1])], rtol=1e-5)


def test_a_task_whose_data_or_model_do_not_fit_is_refused():
    digits = load_data(DataConfig(train_examples=50))
    with pytest.raises(
        UserError,
        match=r"`config.task=language_model` needs data with `tokens`, but .*=digits` has"
        r" `image` and `label`; the task can be `classification` with them",
    ):
        steps.make_program(Config(task="language_model"), kind_of(digits), 1)
    text = load_data(DataConfig(name="text"))
    with pytest.raises(UserError, match=r"`config.model.name=article_cnn` takes images, but .* \(n, 32\) of int32"):
        steps.make_program(Config(task="language_model"), kind_of(text), 1)


def test_text_is_all_of_it_in_pieces_and_sequences_are_what_they_are_called():
    data = load_data(DataConfig(name="text", length=50))
    assert data.train["tokens"].shape[1] == 50
    assert data.classes == 1 + len(np.unique(np.concatenate([data.train["tokens"], data.held_out["tokens"]])))
    assert data.train["tokens"].min() > 0
    assert len(data.held_out["tokens"]) == pytest.approx(0.1 * len(data.train["tokens"]) / 0.9, abs=1)
    for name, change in (("copy", list), ("reverse", lambda n: n[::-1]), ("sort", sorted)):
        made = load_data(DataConfig(name=name, length=7, train_examples=20)).train
        np.testing.assert_array_equal(made["source_mask"], made["target_mask"])
        for source, target, mask in zip(*(made[n].tolist() for n in ("source", "target", "source_mask")), strict=True):
            length = sum(mask)
            assert 4 <= length <= 7
            assert target == change(source[:length]) + [0] * (7 - length)
            assert 0 < min(source[:length]) <= max(source) <= 10


def test_a_run_of_another_task_is_interrupted_and_goes_on(tmp_path, capsys):
    """From the command line, in another layout after the interruption: random numbers are those of the steps."""
    config = config_of("masked_language_model", dtype="float32")
    config = dataclasses.replace(config, train=TrainConfig(epochs=2, batch_size=43, eval_batch_size=7))
    (tmp_path / "a.json").write_text(to_json(config))
    train.main([f"--config={tmp_path}/a.json", f"--workdir={tmp_path}/whole", "--tensorboard"])
    said = " ".join(capsys.readouterr().out.split())
    whole = read_metrics(tmp_path / "whole" / "metrics.jsonl")
    assert f"Perplexity on the held-out examples: {whole[-1]['eval/perplexity']:.4f}." in said
    shutil.copytree(tmp_path / "whole", tmp_path / "broken")
    shutil.rmtree(tmp_path / "broken" / "checkpoints" / "4")
    train.main(["--resume", f"--workdir={tmp_path}/broken", "--config.parallel.layout=shard_map", "--tensorboard"])
    again = read_metrics(tmp_path / "broken" / "metrics.jsonl")
    assert [r["step"] for r in again] == [2, 4]
    for name, value in whole[-1].items():
        np.testing.assert_allclose(again[-1][name], value, rtol=1e-5)
    first, second = map(events, sorted((tmp_path / "broken" / "tensorboard").iterdir()))
    expected = [{k: pytest.approx(v, rel=1e-6) for k, v in r.items() if k != "step"} for r in whole]
    assert first[1] == {2: expected[0], 4: expected[1]}
    assert second == (4, {4: {k: pytest.approx(v, rel=1e-5) for k, v in whole[1].items() if k != "step"}})


def events(file):
    """What a file of TensorBoard's holds: from which step it replaces what was before, and scalars by step."""
    content, purged, scalars = file.read_bytes(), None, {}
    while content:
        size = int.from_bytes(content[:8], "little")
        event, content = Event.FromString(content[12 : 12 + size]), content[16 + size :]
        if event.HasField("session_log"):
            purged = event.step
        for value in event.summary.value:
            scalars.setdefault(event.step, {})[value.tag] = value.simple_value
    return purged, scalars


def test_the_matrix_compares_with_the_same_groups_on_one_device(x64):
    class Quiet:
        advance = title = staticmethod(lambda *_: None)

    ((*what, found),) = matrix.found(["classification"], ["vmap"], ["group"], Quiet())
    assert what == ["classification", "group"]
    assert 0 < float(found) < 1e-9
    other = matrix.config_of("classification", "jit", "ghost")
    assert other.model.norm == "ghost"
    assert matrix.reference_of("classification", "group").model.ghost_size == 12
    assert matrix.difference({"a": np.array([1.0, 4.0])}, {"a": np.array([2.0, 2.0])}) == 1
