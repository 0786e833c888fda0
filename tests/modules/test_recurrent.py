"""The recurrent cells: numpy's loops over time, sequences of different lengths, and both APIs alike."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from jax.sharding import PartitionSpec as P

import bnjax.linen as bnn
import bnjax.nnx as bnnx
from bnjax import resize_steps
from tests.kit import devices
from tests.kit.comparison import assert_close, differences, wide

BATCH, TIME, INPUTS, FEATURES = 4, 3, 2, 3
LENGTHS = np.array([3, 1, 2, 3])
CELLS = ["LayerNormLSTMCell", "LayerNormGRUCell", "BatchNormLSTMCell"]


def sigmoid(t):
    return 1 / (1 + np.exp(-t))


def norm(t, p, axis, n=None, state=None, eps=1e-5):
    """By the moments over `axis`, or those kept; and the moments."""
    n = np.ones((len(t), 1)) if n is None else n
    mean, var = state or (None, None)
    if state is None:
        k = (n + 0 * t).sum(axis, keepdims=True)
        mean = (t * n).sum(axis, keepdims=True) / k
        var = ((t - mean) ** 2 * n).sum(axis, keepdims=True) / k
    return (t - mean) / np.sqrt(var + eps) * p["scale"] + p.get("bias", 0), (mean, var)


def lstm(x, p, axis, lengths=None, kept=None):
    """Outputs (batch, time, features), and the moments of each norm at each time."""
    c = h = np.zeros((len(x), FEATURES))
    out, moments = [], {"norm_x": [], "norm_h": [], "norm_c": []}
    for t in range(x.shape[1]):
        n = None if lengths is None else (t < lengths).astype(float)[:, None]

        def of(name, value, t=t, n=n):
            y, m = norm(value, p[name], axis, n, kept and kept[name][t])
            moments[name].append(m)
            return y

        gates = of("norm_h", h @ p["h"]["kernel"]) + of("norm_x", x[:, t] @ p["i"]["kernel"])
        i, f, g, o = np.split(gates, 4, -1)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(of("norm_c", c))
        out.append(h)
    return np.stack(out, 1), moments


def gru(x, p):
    h, out = np.zeros((len(x), FEATURES)), []
    for t in range(x.shape[1]):
        zx, zh = x[:, t] @ p["i"]["kernel"], h @ p["h"]["kernel"]
        wide_x, wide_h = zx[:, : 2 * FEATURES], zh[:, : 2 * FEATURES]
        gates = norm(wide_h, p["norm_h"], -1)[0] + norm(wide_x, p["norm_x"], -1)[0]
        r, z = np.split(sigmoid(gates), 2, -1)
        new = norm(zx[:, 2 * FEATURES :], p["norm_x_new"], -1)[0]
        new = np.tanh(new + r * norm(zh[:, 2 * FEATURES :], p["norm_h_new"], -1)[0])
        h = (1 - z) * new + z * h
        out.append(h)
    return np.stack(out, 1)


FORMULAS = {
    "LayerNormLSTMCell": lambda x, p: lstm(x, p, -1)[0],
    "LayerNormGRUCell": gru,
    "BatchNormLSTMCell": lambda x, p: lstm(x, p, 0)[0],
}


def rnn(name, **options):
    cell = getattr(bnn, name)(FEATURES, **options)
    return nn.RNN(cell, variable_axes={"batch_stats": 0} if "Batch" in name else {})


def sample(name, time=TIME):
    rng = np.random.default_rng(0)
    x, g = (rng.normal(size=(BATCH, time, n)).astype(np.float32) for n in (INPUTS, FEATURES))
    shapes = jax.eval_shape(rnn(name).init, jax.random.key(0), x)
    away = partial(jax.tree.map, lambda t: (rng.random(t.shape) + 0.2).astype(np.float32))
    return x, g, {name: away(tree) for name, tree in shapes.items()}


@pytest.mark.parametrize("name", CELLS)
def test_the_formula_and_its_gradients(name):
    x, g, variables = sample(name)

    @jax.jit
    def gradients(x, params):
        def loss(x, params):
            y, _ = rnn(name).apply(variables | {"params": params}, x, mutable="batch_stats")
            return (y * g).sum(), y

        return jax.grad(loss, (0, 1), has_aux=True)(x, params)

    (dx, dparams), y = gradients(x, variables["params"])
    x, params = wide((x, variables["params"]))
    assert_close(y, FORMULAS[name](x, params["cell"]))
    want = differences(lambda x, p: (FORMULAS[name](x, p["cell"]) * g).sum(), (x, params))
    # 7e-5: the first output is zero, so what is rounded in its gradient is multiplied by 1 / sqrt(epsilon) = 316
    assert_close((dx, dparams), want, 2e-4 if "Batch" in name else 2e-5)


@pytest.mark.parametrize("name", CELLS)
def test_nnx_is_linen(name):
    x, _, variables = sample(name)
    more = {"max_steps": TIME, "momentum": 0.9} if "Batch" in name else {}
    cell = getattr(bnnx, name)(INPUTS, FEATURES, rngs=nnx.Rngs(0), **more)
    state = nnx.to_pure_dict(nnx.state(cell, (nnx.Param, nnx.BatchStat)))
    for collection in variables.values():
        for module, values in collection["cell"].items():
            for k, v in values.items():
                assert state[module][k].shape == v.shape
            state[module] |= values
    nnx.update(cell, jax.tree.map(jnp.asarray, state))
    y, new = jax.jit(partial(rnn(name).apply, mutable="batch_stats"))(variables, x)
    assert_close(nnx.jit(lambda cell, x: nnx.RNN(cell)(x))(cell, x), wide(y))
    for module, values in new.get("batch_stats", {"cell": {}})["cell"].items():
        assert_close(nnx.to_pure_dict(nnx.state(cell, nnx.BatchStat))[module], wide(values))


def test_statistics_are_of_each_step_and_of_the_examples_that_last():
    x, _, variables = sample("BatchNormLSTMCell")
    layer = rnn("BatchNormLSTMCell", momentum=0.0)
    carry = layer.cell.initialize_carry(None, (BATCH, FEATURES), LENGTHS)
    y, new = layer.apply(
        variables,
        np.where((np.arange(TIME) < LENGTHS[:, None])[..., None], x, 1e3),
        initial_carry=carry,
        mutable="batch_stats",
    )
    want, moments = lstm(*wide((x, variables["params"]["cell"])), 0, LENGTHS)
    there = (np.arange(TIME) < LENGTHS[:, None])[..., None]
    assert_close(np.where(there, y, 0), want * there, 2e-5)
    for name, steps in moments.items():
        mean, var = (np.concatenate(t) for t in zip(*steps, strict=True))
        assert_close(new["batch_stats"]["cell"][name], {"mean": mean, "var": var}, 2e-5)


@pytest.mark.parametrize("api", ["linen", "nnx"])
def test_steps_past_the_longest_seen_reuse_the_last(api):
    """Trained on sequences of two steps, padded to three; evaluated on five."""
    x, _, variables = sample("BatchNormLSTMCell")
    lengths, long = np.full(BATCH, 2), np.random.default_rng(1).normal(size=(BATCH, 5, INPUTS)).astype(np.float32)
    if api == "linen":
        layer = rnn("BatchNormLSTMCell", momentum=0.0)
        carry = layer.cell.initialize_carry(None, (BATCH, FEATURES), lengths)
        _, new = layer.apply(variables, x, initial_carry=carry, mutable="batch_stats")
        stats = resize_steps(new["batch_stats"], 5, seen=2)
        y = rnn("BatchNormLSTMCell", use_running_average=True).apply(variables | {"batch_stats": stats}, long)
    else:
        cell = bnnx.BatchNormLSTMCell(INPUTS, FEATURES, max_steps=TIME, momentum=0.0, rngs=nnx.Rngs(0))
        nnx.update(cell, jax.tree.map(jnp.asarray, variables["params"]["cell"]))
        nnx.RNN(cell)(x, initial_carry=cell.initialize_carry((BATCH, FEATURES), lengths=lengths))
        cell.eval()
        y = nnx.RNN(cell)(long)
    _, moments = lstm(*wide((x[:, :2], variables["params"]["cell"])), 0)
    kept = {name: [*steps, *[steps[1]] * 3] for name, steps in moments.items()}
    want, _ = lstm(*wide((long, variables["params"]["cell"])), 0, kept=kept)
    assert_close(y, want, 2e-5)


@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_the_carry_keeps_its_dtype(name, dtype):
    """That of parameters, as in Flax's cells, whatever that of the arithmetic: a scan wants it so."""
    x, _, variables = sample(name)
    wanted = FORMULAS[name](*wide((x, variables["params"]["cell"])))
    layer = rnn(name, dtype=dtype)
    y, _ = jax.jit(partial(layer.apply, mutable="batch_stats"))(variables, x)
    more = {"max_steps": TIME} if "Batch" in name else {}
    cell = getattr(bnnx, name)(INPUTS, FEATURES, dtype=dtype, rngs=nnx.Rngs(0), **more)
    nnx.update(cell, jax.tree.map(jnp.asarray, variables["params"]["cell"]))
    for got in (y, nnx.jit(lambda cell, x: nnx.RNN(cell)(x))(cell, x)):
        assert got.dtype == jnp.float32
        assert np.abs(np.asarray(got) - wanted).max() < 16 * float(jnp.finfo(dtype).eps)
    short = jnp.zeros((BATCH, FEATURES), dtype)  # a carry of another make
    carry = {"Batch": (short, short, jnp.zeros(BATCH, int), jnp.full(BATCH, 9)), "LSTM": (short, short), "GRU": short}
    carry = next(c for kind, c in carry.items() if kind in name)
    got, _ = jax.eval_shape(partial(rnn(name).apply, mutable="batch_stats"), variables, x, initial_carry=carry)
    assert got.dtype == dtype


@pytest.mark.parametrize("api", ["linen", "nnx"])
@pytest.mark.parametrize("name", CELLS)
def test_over_devices_with_types_checked(name, api):
    """As docs/guide/devices.md says: the initial memory and output are made to vary, the step is not."""
    x, _, variables = sample(name)
    more = {"axis_name": "d"} if "Batch" in name else {}

    def f(x):
        layer = rnn(name, **more)
        if api == "nnx":
            steps = {"max_steps": TIME} if more else {}
            layer = nnx.RNN(getattr(bnnx, name)(INPUTS, FEATURES, rngs=nnx.Rngs(0), **more, **steps))
        shape = (len(x), INPUTS)
        carry = layer.cell.initialize_carry(*([None] if api == "linen" else []), shape)
        vary = partial(jax.lax.pcast, axis_name="d", to="varying")
        carry = (*vary(carry[:2]), *carry[2:]) if isinstance(carry, tuple) else vary(carry)
        if api == "nnx":
            return layer(x, initial_carry=carry)
        return layer.apply(variables, x, initial_carry=carry, mutable="batch_stats")[0]

    mesh = devices.mesh(2)
    f = jax.shard_map(f, mesh=mesh, in_specs=P("d"), out_specs=P("d"))
    assert jax.eval_shape(f, x).shape == (BATCH, TIME, FEATURES)


def test_errors():
    with pytest.raises(ValueError, match="`lengths` must have the shape of the batch"):
        bnn.BatchNormLSTMCell(2).initialize_carry(None, (4, 2), np.ones(3))
    with pytest.raises(ValueError, match="`max_steps` must be a positive integer"):
        bnnx.BatchNormLSTMCell(2, 2, max_steps=0, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="`steps` must be a positive integer"):
        resize_steps({}, 0)


def test_scales_start_at_a_tenth():
    variables = rnn("BatchNormLSTMCell").init(jax.random.key(0), jnp.ones((2, 3, 2)))
    cell = bnnx.BatchNormLSTMCell(2, 3, max_steps=1, rngs=nnx.Rngs(0))
    for name in ("norm_x", "norm_h", "norm_c"):
        assert float(variables["params"]["cell"][name]["scale"][0]) == np.float32(0.1) == getattr(cell, name).scale[0]
