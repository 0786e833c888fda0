"""`config.eval.recalibrate`: a second evaluation, by the statistics of some batches; the run stays as it is."""

import dataclasses
import functools
import itertools
import json

import jax
import numpy as np
import pytest

from bnjax import linen as bnn
from experiments import train
from experiments.cli.errors import UserError
from experiments.config import Config, DataConfig, EvalConfig, ModelConfig, ParallelConfig, TrainConfig
from experiments.config.file import to_json
from experiments.data import batches, check_sizes, epoch_order, load_data
from experiments.models import Job
from experiments.results.records import KEYS, MORE, read_metrics
from experiments.results.summary import Summary
from experiments.tasks import classes, classification
from experiments.training import recalibration, run, steps
from experiments.training.checkpoints import last_arrays
from tests.experiments.test_layouts import KIND, SIZE, Net, config, distance, examples, initial, program_of

TINY = Config(
    data=DataConfig(train_examples=50, eval_examples=30),
    model=ModelConfig(widths=(2, 3, 4)),
    train=TrainConfig(epochs=2, batch_size=16, eval_batch_size=30, eval_every=3),
)  # 4 steps an epoch, records at steps 3, 4, 7, 8


@functools.cache
def population(dtype):
    """The statistics of all examples, two batches, as Flax measures each batch and float64 puts them together."""
    state = initial(dtype, "linen")
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    means, variances, counts = [], [], []
    for start in range(0, len(examples()["label"]), SIZE):
        image = examples()["image"][start : start + SIZE].astype(dtype)
        _, new = Net(arguments={"momentum": 0.0}).apply(variables, image, True, mutable=["batch_stats"])
        means.append({name: np.float64(norm["mean"]) for name, norm in new["batch_stats"].items()})
        variances.append({name: np.float64(norm["var"]) for name, norm in new["batch_stats"].items()})
        counts.append(len(image))
    pooled = {}
    for name in means[0]:
        mean = np.average([m[name] for m in means], axis=0, weights=counts)
        between = np.average([(m[name] - mean) ** 2 for m in means], axis=0, weights=counts)
        pooled[name] = {"mean": mean, "var": np.average([v[name] for v in variances], axis=0, weights=counts) + between}
    return pooled


def recalibrated(config):
    """The statistics after two batches, the second one not full."""
    program, _ = program_of(config)
    state = initial(config.model.dtype, "linen")
    before = jax.tree.map(np.copy, state)
    in_turn = batches(examples(), SIZE, share=program.train_share)
    new = recalibration.recalibrated(program.measure_step, state, in_turn)
    jax.tree.map(np.testing.assert_array_equal, (before, before.params), (state, new.params))
    return jax.device_get(new.batch_stats)


@pytest.mark.parametrize(
    "case", [("jit",), ("shard_map",), ("vmap",), ("pmap",), ("jit", "global", 2), ("pmap", "group")], ids=str
)
def test_the_statistics_are_those_of_all_examples_in_every_layout(case, x64):
    """Of micro-batches, or groups of devices, each norm but the first sees what those were normalized by."""
    found, want = recalibrated(config(*case)), population("float64")
    exact = found if case[1:] in ((), ("global",)) else {"norm0": found["norm0"]}
    assert distance(exact, {name: want[name] for name in exact}) < 1e-9
    assert distance(found, want) < 0.1


def test_the_library_s_recalibrate_finds_the_same():
    """To 1e-6: both are float32, about another pivot."""
    found = recalibrated(config(dtype="float32"))
    state = initial("float32", "linen")
    model = Net(bnn.BatchNorm, {"momentum": 0.8})
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    want, report = bnn.recalibrate(
        model,
        variables,
        list(batches(examples(), SIZE)),
        call=lambda m, batch: m(batch["image"], False),
        valid=lambda batch: batch["mask"],
    )
    assert report.done == ("norm0", "norm1")
    assert distance(found, want) < 1e-6


class Interrupt:
    """Stands for `make_program`: the program's training step is interrupted at the `n`-th call."""

    def __init__(self, make, n):
        self.make, self.left = make, n

    def __call__(self, *args):
        program = self.make(*args)

        def train_step(state, batch):
            self.left -= 1
            if not self.left:
                raise KeyboardInterrupt
            return program.train_step(state, batch)

        return program._replace(train_step=train_step)


@pytest.mark.parametrize(("api", "layout"), [("linen", "jit"), ("nnx", "shard_map"), ("linen", "pmap")])
def test_a_run_stays_as_it_is_and_is_taken_up(monkeypatch, tmp_path, capsys, api, layout):
    make = functools.cache(steps.make_program)
    monkeypatch.setattr(run, "make_program", make)
    plain = dataclasses.replace(TINY, model=ModelConfig(name="mlp", api=api), parallel=ParallelConfig(layout=layout))

    def of(name, config, *more):
        (tmp_path / f"{name}.json").write_text(to_json(config))
        train.main([f"--config={tmp_path / name}.json", f"--workdir={tmp_path / name}", *more])
        return [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]

    again = dataclasses.replace(plain, eval=EvalConfig(recalibrate=2))
    without, with_it = of("plain", plain), of("again", again)
    said = capsys.readouterr().out
    assert [tuple(r) for r in with_it] == [KEYS + MORE] * 4
    assert [{k: r[k] for k in KEYS} for r in with_it] == without
    assert all(r["eval/loss"] != r["recalibrated/loss"] for r in with_it)
    assert f"recalibrated loss {with_it[-1]['recalibrated/loss']:7.4f}" in " ".join(said.split("\n"))
    assert f"with recalibrated statistics {with_it[-1]['recalibrated/accuracy']:.4f}" in " ".join(said.split())
    arrays, others = (last_arrays(tmp_path / name / "checkpoints") for name in ("plain", "again"))
    assert arrays.keys() == others.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, others[name])

    with monkeypatch.context() as patched:
        patched.setattr(run, "make_program", Interrupt(make, 7))
        with pytest.raises(KeyboardInterrupt):
            of("broken", again)
    assert of("broken", again, "--resume") == with_it


def test_what_is_logged_is_what_the_statistics_are_worth(tmp_path):
    """From the checkpoint, and the first batches of the epoch, put together here."""
    one = dataclasses.replace(TINY, eval=EvalConfig(recalibrate=3), train=TrainConfig(epochs=1, batch_size=16))
    (tmp_path / "tiny.json").write_text(to_json(one))
    train.main([f"--config={tmp_path}/tiny.json", f"--workdir={tmp_path}/run"])
    data = load_data(one.data)
    like = run.program_of(one, data).init(jax.random.key(0))
    with run.checkpoints_of(tmp_path / "run", one, data) as checkpoints:
        saved = checkpoints.restore(like, tmp_path / "run" / "metrics.jsonl", print).state
    network = steps.make_network(one.model, Job(np.zeros((1, 8, 8, 1), np.float32), 10))

    def of_batch(batch):
        _, new = network.apply(saved.params, saved.batch_stats, batch["image"], train=True, mask=np.ones(16, bool))
        return jax.tree.map(lambda n, old: (n - 0.9 * old) / 0.1, new, saved.batch_stats)

    first = itertools.islice(batches(data.train, 16, epoch_order(one.seed, 0, 50)), 3)
    measured = [of_batch(batch) for batch in first]
    stats = {}
    for name in measured[0]:
        means, variances = (np.stack([m[name][field] for m in measured]) for field in ("mean", "var"))
        stats[name] = {"mean": means.mean(0), "var": variances.mean(0) + means.var(0)}
    logits, _ = network.apply(saved.params, stats, data.held_out["image"], train=False, mask=np.ones(30, bool))
    sums = classes.measure(logits, classification.view({**data.held_out, "mask": np.ones(30, bool)}))
    last = read_metrics(tmp_path / "run" / "metrics.jsonl")[-1]
    np.testing.assert_allclose(last["recalibrated/loss"], sums["loss"] / 30, rtol=1e-5)
    assert abs(last["eval/loss"] / last["recalibrated/loss"] - 1) > 0.01


@pytest.mark.parametrize("norm", ["none", "layer", "renorm", "dbn"])
def test_a_model_without_batch_norms_is_refused_before_any_work(monkeypatch, tmp_path, norm):
    monkeypatch.setattr(train, "load_data", lambda _: pytest.fail("work has begun"))
    wrong = dataclasses.replace(TINY, eval=EvalConfig(recalibrate=2), model=ModelConfig(norm=norm))
    (tmp_path / "wrong.json").write_text(to_json(wrong))
    with pytest.raises(UserError, match=rf"`config.eval.recalibrate` must be 0 for `config.model.norm={norm}`"):
        train.main([f"--config={tmp_path}/wrong.json", f"--workdir={tmp_path}/run"])
    with pytest.raises(UserError, match=r"`config.eval.recalibrate` must be 0"):
        steps.make_program(wrong, KIND, 8)


def test_more_batches_than_there_are_are_refused():
    wrong = dataclasses.replace(TINY, eval=EvalConfig(recalibrate=5))
    with pytest.raises(UserError, match=r"`config.eval.recalibrate` must be at most 4, .* but it is 5"):
        check_sizes(wrong, load_data(wrong.data))


def test_tables_and_pictures_show_it_where_there_is_something():
    plain = [dict.fromkeys(KEYS, 0.5) | {"step": n} for n in (1, 2)]
    again = [r | dict.fromkeys(MORE, 0.75) for r in plain]
    heads = {"held-out error, %": "50.00", "steps to 5 %": "never"}
    assert Summary("batch", classes.ERROR, [plain]).figures == heads
    assert Summary("batch", classes.ERROR, [again]).figures == heads | {"recalibrated, %": "25.00"}
    error, loss = classification.panels(again)
    assert [line.label for line in error.lines] == ["training", "held out", "held out, recalibrated"]
    assert [line.value(again[0]) for line in loss.lines] == [0.5, 0.5, 0.75]
    assert [len(panel.lines) for panel in classification.panels(plain)] == [2, 2]
