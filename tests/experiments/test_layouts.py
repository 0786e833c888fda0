"""The layouts compute the same: from one seed, whoever is measured together, on any number of devices."""

import collections
import dataclasses
import functools
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from bnjax import linen as bnn
from experiments.cli.errors import UserError
from experiments.config import Config, ModelConfig, OptimizerConfig, ParallelConfig, TrainConfig
from experiments.data import CLASSES, Kind, batches
from experiments.models.network import Network
from experiments.training import run, steps
from experiments.training.layouts import make_layout

LAYOUTS = ("jit", "shard_map", "vmap", "pmap")
GROUP = {"global": None, "device": None, "group": 2}
DEVICES, SIZE, TOTAL = 4, 91, 150  # the first batch leaves a device with 19 of 24 rows, the second one with none
SHAPE, RATE = (4, 4, 1), 0.01
KIND = Kind((("image", SHAPE, np.dtype("float32")), ("label", (), np.dtype("int32"))), CLASSES)


class Net(nn.Module):
    """As small as a network with norms can be: compilation takes most of the time here."""

    norm: type = nn.BatchNorm
    arguments: dict | None = None

    @nn.compact
    def __call__(self, x, train, **mask):
        norm = functools.partial(self.norm, use_running_average=not train, **self.arguments)
        x = norm(name="norm0")(x.reshape(len(x), -1), **mask)
        x = norm(name="norm1")(nn.relu(nn.Dense(6)(x)), **mask)
        return nn.Dense(CLASSES)(x)


def make_net(config, job, norm):
    model = Net(bnn.BatchNorm, {"momentum": config.momentum, **norm})

    def init(key):
        return tuple(model.init(key, jnp.zeros(job.inputs.shape), False)[name] for name in ("params", "batch_stats"))

    def apply(params, stats, x, *, train, mask, out="batch_stats"):
        variables = {"params": params, "batch_stats": stats}
        logits, new = model.apply(variables, x, train, mask=mask[:, None], mutable=[out])
        return logits, new[out]

    return Network(init, apply, functools.partial(apply, train=True, out="batch_moments"))


def config(layout="jit", sync="global", accumulate=1, dtype="float64", api="linen", eval_size=8):
    return Config(
        model=ModelConfig(api=api, widths=(3, 4, 5), momentum=0.8, dtype=dtype),
        optimizer=OptimizerConfig(learning_rate=RATE, schedule="constant"),
        parallel=ParallelConfig(layout=layout, sync=sync, group_size=GROUP[sync]),
        train=TrainConfig(batch_size=SIZE, accumulate=accumulate, eval_batch_size=eval_size),
    )


@functools.cache
def examples(n=TOTAL):
    """Something to learn. Devices differ in their means."""
    rng = np.random.default_rng(0)
    image = rng.normal(size=(n, *SHAPE)) + 1 + np.arange(n)[:, None, None, None] / n
    label = (image.reshape(n, -1) @ rng.normal(size=(16, CLASSES))).argmax(-1)
    return {"image": image.astype(np.float32), "label": label.astype(np.int32)}


@functools.cache
def program_of(config, devices=DEVICES, make_network=make_net):
    """A program, compiled once for all tests that use it, and how often its step was traced."""
    traces = collections.Counter()

    def counted(*args, step=steps.train_step, **more):
        traces["train_step"] += 1
        return step(*args, **more)

    with mock.patch.object(steps, "make_network", make_network), mock.patch.object(steps, "train_step", counted):
        return steps.make_program(config, KIND, 50, devices=jax.devices()[:devices]), traces


@functools.cache
def initial(dtype, api, make_network=make_net):
    """The state that one seed gives."""
    program, _ = program_of(config(dtype=dtype, api=api), DEVICES, make_network)
    return jax.device_get(program.init(jax.random.key(0)))


def trained(config, count, devices=DEVICES, make_network=make_net):
    """Parameters and statistics after `count` steps, on two batches in turn, traced once."""
    program, traces = program_of(config, devices, make_network)
    layout = make_layout(config, jax.devices()[:devices])
    state = jax.device_put(initial(config.model.dtype, config.model.api, make_network), layout.whole)
    in_turn = list(batches(examples(), config.train.batch_size, share=program.train_share))
    for i in range(count):
        state, _ = program.train_step(state, in_turn[i % len(in_turn)])
    assert traces == {"train_step": 1}
    return jax.device_get((state.params, state.batch_stats))


def distance(a, b):
    """The largest difference in any array, relative to its largest entry."""
    return max(jax.tree.leaves(jax.tree.map(lambda x, y: np.abs(x - y).max() / np.abs(y).max(), a, b)))


@functools.cache
def reference(count, *case):
    return trained(config("jit", *case), count)


@pytest.mark.parametrize("layout", LAYOUTS[1:])
@pytest.mark.parametrize("case", [("global", 1), ("device", 1), ("group", 2)], ids=str)
def test_every_layout_computes_the_same(layout, case, x64):
    assert distance(trained(config(layout, *case), 50), reference(50, *case)) < 1e-9


@pytest.mark.parametrize("layout", LAYOUTS[1:])
def test_every_layout_computes_the_same_in_float32(layout):
    case = ("group", 2, "float32")
    for count in (1, 50):  # 1e-6 and 3e-7; another network may let it grow: docs/guide/training.md
        assert distance(trained(config(layout, *case), count), reference(count, *case)) < 2e-5


def test_the_layouts_run_nnx():
    """With the article's network, as it is in all other tests of training."""
    case = ("device", 1, "float32", "nnx")
    made = [trained(config(layout, *case), 1, DEVICES, steps.make_network) for layout in ("jit", "shard_map")]
    assert distance(*made) < 2e-5


@pytest.mark.parametrize(("devices", "layout"), [(1, "shard_map"), (3, "jit"), (8, "vmap")])
def test_the_number_of_devices_is_of_no_account(devices, layout, x64):
    assert distance(trained(config(layout), 5, devices), reference(5)) < 1e-9


def flax_steps(sync, accumulate, count):
    """The same with Flax's own layers: every slice of a batch by itself, then put together by hand."""
    model, optimizer = Net(arguments={"momentum": 0.8}), optax.sgd(RATE, momentum=0.9, nesterov=True)
    start = initial("float64", "linen")
    params, running, opt_state = start.params, start.batch_stats, optimizer.init(start.params)
    groups = {"global": 1, "group": DEVICES // 2, "device": DEVICES}[sync]
    rows = np.arange(-(-SIZE // (DEVICES * accumulate)) * DEVICES * accumulate)
    slices = [s for j in range(accumulate) for s in np.split(rows[j::accumulate], groups)]
    slices = [s[s < SIZE] for s in slices]

    @jax.jit
    def step(params, running, opt_state):
        def loss(params):
            total, measured = 0.0, []
            for s in slices:
                logits, new = model.apply(
                    {"params": params, "batch_stats": running}, image[s], True, mutable=["batch_stats"]
                )
                total += optax.softmax_cross_entropy_with_integer_labels(logits, label[s]).sum()
                measured.append(jax.tree.map(lambda n, r: (n - 0.8 * r) / (1 - 0.8), new["batch_stats"], running))
            return total / SIZE, measured

        grads, measured = jax.grad(loss, has_aux=True)(params)
        updates, opt_state = optimizer.update(grads, opt_state)
        return optax.apply_updates(params, updates), {n: pool(n, measured) for n in running}, opt_state

    def pool(name, measured):
        """The statistics of the union: the mean of the variances, and the variance of the means."""
        mean = sum(len(s) / SIZE * m[name]["mean"] for s, m in zip(slices, measured, strict=True))
        var = sum(
            len(s) / SIZE * (m[name]["var"] + (m[name]["mean"] - mean) ** 2)
            for s, m in zip(slices, measured, strict=True)
        )
        old = running[name]
        return {"mean": 0.8 * old["mean"] + 0.2 * mean, "var": 0.8 * old["var"] + 0.2 * var}

    image, label = examples()["image"][:SIZE].astype(np.float64), examples()["label"][:SIZE]
    for _ in range(count):
        params, running, opt_state = step(params, running, opt_state)
    return params, running


@pytest.mark.parametrize(("sync", "accumulate"), [("global", 1), ("group", 2)])
def test_a_step_is_the_one_written_with_flax(sync, accumulate, x64):
    assert distance(reference(1, sync, accumulate), flax_steps(sync, accumulate, 1)) < 1e-9


@pytest.mark.parametrize(("devices", "layout", "eval_size"), [(1, "jit", 7), (3, "pmap", 8), (8, "shard_map", 13)])
def test_every_example_is_evaluated_once(devices, layout, eval_size):
    """In batches that fit neither the examples nor the devices, against one plain batch of Flax's."""
    held_out = examples(37)
    program, _ = program_of(config(layout, dtype="float32", eval_size=eval_size), devices)
    state = initial("float32", "linen")
    sums = jax.device_get(run.evaluate(program, state, held_out, eval_size))
    assert len(sums) == -(-37 // eval_size)
    logits = Net(arguments={}).apply(
        {"params": state.params, "batch_stats": state.batch_stats}, held_out["image"], False
    )
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, held_out["label"])
    np.testing.assert_allclose(sum(s["loss"] for s in sums), losses.sum(), rtol=1e-5)
    assert sum(s["correct"] for s in sums) == (logits.argmax(-1) == held_out["label"]).sum()
    assert sum(s["count"] for s in sums) == 37


@pytest.mark.parametrize(
    ("parallel", "train", "expected"),
    [
        ({"sync": "group"}, {}, "`config.parallel.group_size`, the number of devices .* belongs to"),
        ({"group_size": 2}, {}, "belongs to `--config.parallel.sync=group`; it is 2 with `sync=global`"),
        ({"sync": "group", "group_size": 3}, {}, "must divide the number of devices, 4, but it is 3"),
        ({}, {"batch_size": 4, "accumulate": 5}, "`config.train.accumulate` must be at most the batch size, 4"),
        ({"sync": "device"}, {"batch_size": 4}, "must leave two examples .* 4 groups of devices leave 1"),
    ],
)
def test_a_layout_that_does_not_fit_is_refused(parallel, train, expected):
    wrong = Config(parallel=ParallelConfig(**parallel), train=TrainConfig(**train))
    with pytest.raises(UserError, match=expected):
        make_layout(wrong, jax.devices()[:4])


@pytest.mark.parametrize(
    ("parallel", "train", "expected"),
    [
        (
            {"sync": "device"},
            {},
            "`config.model.norm=ghost` .* `sync=device`.*`--config.parallel.sync=global`.*norm=batch",
        ),
        ({"sync": "group", "group_size": 2}, {}, "`config.model.norm=ghost` .* `sync=group`"),
        ({}, {"batch_size": 60}, "`config.model.ghost_size` must divide the 60 examples of a batch, but it is 16"),
        ({}, {"accumulate": 8}, "must divide the 8 examples of a micro-batch, but it is 16"),
        (
            {"layout": "shard_map"},
            {"accumulate": 2},
            "must divide the 8 examples of a micro-batch on each of 4 devices, .* 16; .*`--config.parallel.layout=jit`",
        ),
        ({"layout": "pmap"}, {"batch_size": 96}, "must divide the 24 examples of a batch on each of 4 devices"),
        ({"layout": "vmap"}, {"batch_size": 32}, "must divide the 8 examples of a batch on each of 4 devices"),
    ],
)
def test_ghost_batches_that_do_not_fit_are_refused(parallel, train, expected):
    """Before anything is compiled, and not replaced by slices of another size."""
    wrong = Config(model=ModelConfig(norm="ghost"), parallel=ParallelConfig(**parallel), train=TrainConfig(**train))
    with pytest.raises(UserError, match=expected):
        make_layout(wrong, jax.devices()[:4])


def test_ghost_batches_are_the_same_in_every_layout():
    def made(layout):
        ghost = dataclasses.replace(config(layout, dtype="float32").model, norm="ghost", ghost_size=8)
        of = dataclasses.replace(config(layout, dtype="float32"), model=ghost, train=TrainConfig(batch_size=96))
        return trained(of, 1, make_network=steps.make_network)

    assert distance(made("shard_map"), made("jit")) < 2e-5


def test_a_run_may_go_on_in_another_layout_but_not_with_other_statistics(tmp_path):
    with run.claim(tmp_path, config("jit"), resume=False):
        pass
    with run.claim(tmp_path, config("pmap"), resume=True):
        pass
    with (
        pytest.raises(UserError, match=r"other values for `config.parallel.sync`\."),
        run.claim(tmp_path, config("pmap", "device"), resume=True),
    ):
        pass


@pytest.mark.parametrize(("size", "accumulate"), [(91, 1), (7, 3), (24, 2)])
def test_what_the_processes_hold_is_the_batch(size, accumulate):
    """Two processes' shares, told apart by the number of their process."""
    layout = make_layout(Config(), jax.devices()[:4])
    whole = layout.share(size, accumulate)
    assert whole.rows % (4 * accumulate) == 0 <= whole.rows - size < 4 * accumulate
    assert (whole.start, whole.stop) == (0, whole.rows)
    halves = [whole._replace(stop=whole.rows // 2), whole._replace(start=whole.rows // 2)]
    order = np.arange(TOTAL)[::-1]
    expected = list(batches(examples(), size, order))
    parts = [list(batches(examples(), size, order, half)) for half in halves]
    for i, batch in enumerate(expected):
        for name, rows in batch.items():
            joined = np.concatenate([p[i][name] for p in parts])
            np.testing.assert_array_equal(joined[:size], rows)
            assert not joined[size:].any()
