"""One battery for all norms: each does what its formula says, in every dtype, mask, API and transformation."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx, serialization
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import export
from jax.sharding import PartitionSpec as P

from tests.kit import devices
from tests.kit.comparison import assert_close, differences, wide
from tests.kit.formulas import ROWS
from tests.kit.norms import (
    CHANNELS_TOGETHER,
    MASKED,
    SHAPE,
    STATEFUL,
    SYNCED,
    expected,
    formula,
    gradients,
    inputs,
    kept,
    mask_of,
    module,
    nnx_module,
    run,
    sample,
    some_valid,
    stepped,
    weighted,
    when,
)

SHAPES = [SHAPE, (8, 6)]
each = pytest.mark.parametrize("name", ROWS)


@each
def test_output_state_and_gradients(name):
    x, g, variables = sample(name)
    got = gradients(name, x, g, variables, None, inputs(name, x))
    want, (x, params, *constants) = expected(name, x, g, variables)
    assert_close(got, want)
    loss = lambda x, params: weighted(name, x, params, *constants)  # noqa: E731
    assert_close(want[2:], differences(loss, (x, params)), 1e-8)


@pytest.mark.parametrize("name", MASKED)
def test_masked_out_is_not_there(name):
    x, g, variables = sample(name)
    n = some_valid(name)
    (y, state, dx, dparams), _ = expected(name, np.where(n, x, 0), g * n, variables, n.astype(float))
    got = gradients(name, np.where(n, x, np.nan), g * n, variables, mask_of(name, n), inputs(name, x))
    assert_close((np.where(n, got[0], 0), *got[1:]), (y * n, state, dx, dparams))
    gone = np.arange(SHAPE[1]) < SHAPE[1] - 1  # the last row, taken away
    mask = mask_of(name, np.broadcast_to(gone[:, None, None], SHAPE))
    got = gradients(name, x, g, variables, mask, inputs(name, x))
    assert_close((got[0][:, gone], got[1]), stepped(name, x[:, gone], variables))


@pytest.mark.parametrize("name", MASKED)
def test_masks_of_every_shape_that_broadcasts(name):
    """All lengths of 1 or of the input, and fewer axes: the values do not tell such a mask from a whole one."""
    x, _, variables = sample(name, (4, 2, 6))
    masks = [n for n in masks_that_broadcast(x.shape) if name not in CHANNELS_TOGETHER or n.shape[-1:] != (6,)]

    @jax.jit
    def f(masks):
        return [run.__wrapped__(name, x, variables, n, inputs(name, x)) for n in masks]

    for n, got in zip(masks, f(masks), strict=True):
        seen = np.broadcast_to(n, x.shape)
        with np.errstate(invalid="ignore", divide="ignore"):  # `x / 0` where nothing is seen
            want = stepped(name, x, variables, seen.astype(float))
        assert_close((np.where(seen, got[0], 0), got[1]), (np.where(seen, want[0], 0), want[1]))


def masks_that_broadcast(shape):
    """Each leaves something valid to every feature, slice and domain."""
    full = np.ones(shape, bool)
    full[1, 1, 1::2] = full[3, 0, ::2] = False
    for lengths in itertools.product(*((1, s) for s in shape)):
        n = full[tuple(slice(s) for s in lengths)]
        yield n
        if lengths[0] == 1:
            yield n[0]
    yield np.ones((), bool)


@pytest.mark.parametrize("name", ["batch", "ghost", "group", "instance", "switchable"])
def test_images_whose_rows_are_summed_first(name):
    """Seven neighbours or more, which a CPU sums apart from the rest (bnjax/_lowering/sums.py)."""
    x, g, variables = sample(name, (4, 3, 14, 6))
    n = np.random.default_rng(3).random(x.shape) < 0.7
    (y, state, dx, dparams), _ = expected(name, np.where(n, x, 0), g * n, variables, n.astype(float))
    got = gradients(name, np.where(n, x, np.nan), g * n, variables, n, inputs(name, x))
    assert_close((np.where(n, got[0], 0), *got[1:]), (y * n, state, dx, dparams))


@pytest.mark.parametrize("name", MASKED)
def test_where_nothing_is_valid(name):
    """The output is the bias, without a gradient to the input; all is finite, the state is kept; NaN included."""
    x, g, variables = sample(name)
    nothing = mask_of(name, np.zeros(SHAPE, bool))
    _, state, dx, dparams = gradients(name, np.full_like(x, np.nan), 0 * g, variables, nothing, inputs(name, x))
    assert not any(t.any() for t in jax.tree.leaves((dx, dparams)))
    got = gradients(name, x, g, variables, nothing, inputs(name, x))
    assert all(np.isfinite(t).all() for t in jax.tree.leaves(got))
    if name not in ("lrn", "grn"):  # which add a constant to what they divide by, or the input to the result
        bias, threshold = (
            variables["params"].get(k, {"bias": 0, "threshold": -np.inf}[k]) for k in ("bias", "threshold")
        )
        bias = np.repeat(variables["params"]["channel_bias"], 3) if name == "bcn" else bias
        bias = bias[np.arange(4) // 2][:, None, None] if name == "split" else bias
        np.testing.assert_allclose(got[0], np.broadcast_to(np.maximum(bias, threshold), SHAPE), rtol=1e-6)
        np.testing.assert_array_equal(got[2], 0)
    kept = {k: v for k, v in variables["batch_stats"].items() if k != "step"}
    for new in (state, got[1]):
        assert_close({k: new[k] for k in kept}, wide(kept), 1e-6)


@each
def test_short_floats_are_rounded_once(name):
    """Statistics and arithmetic in float32: the result is that of float64, rounded to the dtype."""
    x, _, variables = sample(name)
    shorts = {dtype: np.asarray(x, dtype) for dtype in ("bfloat16", "float16")}

    @jax.jit
    def f(shorts):
        call = {**when(name, True), **inputs(name, x), "mutable": "batch_stats"}
        return {dtype: module(name, dtype=dtype).apply(variables, short, **call) for dtype, short in shorts.items()}

    for dtype, (y, state) in f(shorts).items():
        want, new = formula(name, *wide((shorts[dtype], variables)))
        assert y.dtype == dtype
        rtol = 0.51 * float(jnp.finfo(dtype).eps)
        np.testing.assert_allclose(np.asarray(y, np.float64), want, rtol=rtol, atol=1e-5)
        assert_close(state.get("batch_stats", {}), kept(name, wide(variables), new))


@pytest.mark.parametrize(
    "name", ["batch", "renorm", "evonorm_s0", "domain", "iternorm"]
)  # of each make one: it is slow
def test_without_jit(name):
    x, _, variables = sample(name)
    got, want = (f(name, x, variables, None, inputs(name, x)) for f in (run.__wrapped__, run))
    assert_close(got, wide(want))


@each
def test_under_vmap(name):
    a, b = sample(name), sample(name, seed=1)
    xs, variables, more = np.stack([a[0], b[0]]), a[2], inputs(name, a[0])
    got = jax.jit(jax.vmap(lambda x: run(name, x, variables, None, more)))(xs)
    assert_close(got, jax.tree.map(lambda *t: np.stack(t), *(stepped(name, x, variables) for x in xs)))


@pytest.mark.parametrize("name", STATEFUL)
def test_evaluation(name):
    """By the running state; where that is the state of the batch, what training gives."""
    x, _, variables = sample(name)
    y, state = run(name, x, variables, None, inputs(name, x), train=False)
    assert_close(y, formula(name, *wide((x, variables)), train=False)[0])
    assert_close(state, wide(variables["batch_stats"]), 0)
    new = formula(name, *wide((x, variables)))[1]
    settled = variables | {"batch_stats": variables["batch_stats"] | {k: np.float32(v) for k, v in new.items()}}
    if name not in ("ghost", "example_weighted", "split"):  # which train and evaluate by different statistics
        train, again = (run(name, x, settled, None, inputs(name, x), train)[0] for train in (True, False))
        assert_close(train, wide(again), 1e-5)


@pytest.mark.parametrize("name", SYNCED)
def test_eight_devices_are_one(name):
    x, _, variables = sample(name, (16, 3, 6))
    n = (np.random.default_rng(2).random(x.shape) < 0.7).astype(np.float32)
    if name in CHANNELS_TOGETHER:
        n = np.broadcast_to(n[..., :1], x.shape)
    # The parts are of each device's batch, so they are named.
    more = inputs(name, x) | ({"domain": np.arange(16) // 8} if name == "split" else {})

    def f(x, n, more):
        layer = module(name, axis_name="d")
        y, new = layer.apply(variables, x, **when(name, True), mask=n, **more, mutable="batch_stats")
        return y, new["batch_stats"]

    specs = (P("d"), P("d"), P("d"))
    got = devices.sharded(f, 8, specs, (P("d"), P()))(x, mask_of(name, n), more)
    assert_close(got, stepped(name, x, variables, n))


@each
def test_nnx_is_linen(name):
    x, _, variables = sample(name)
    layer = nnx_module(name)
    nnx.update(layer, jax.tree.map(jnp.asarray, variables["params"] | variables["batch_stats"]))
    graph, state = nnx.split(layer)  # a round trip, and what of it can be written to a file
    again = nnx.merge(graph, nnx.to_pure_dict(state))

    @nnx.jit
    def f(layer, x):
        return layer(x, **when(name, True), **inputs(name, x))

    y, new = f(again, x), nnx.to_pure_dict(nnx.state(again, nnx.BatchStat))
    assert_close((y, new), wide(run(name, x, variables, None, inputs(name, x))), 1e-6)


@each
def test_under_scan_and_remat(name):
    """Two layers, scanned: each has its own parameters and state."""
    x, _, _ = sample(name)
    more = inputs(name, x)

    class Block(nn.Module):
        @nn.compact
        def __call__(self, x, _):
            return module(name, name="norm")(x, **when(name, True), **more), None

    axes = {"params": 0, "batch_stats": 0}
    stack = nn.scan(nn.remat(Block, prevent_cse=False), axes, split_rngs={"params": True}, length=2)(name="block")
    both = [sample(name, seed=seed)[2] for seed in (0, 1)]
    variables = {k: {"norm": jax.tree.map(lambda *t: np.stack(t), *(one[k] for one in both))} for k in both[0]}
    (y, _), new = jax.jit(partial(stack.apply, mutable="batch_stats"))(variables, x, None)
    for i, own in enumerate(both):
        x, state = run(name, x, own, None, more)
        assert_close(jax.tree.map(lambda t, i=i: t[i], new.get("batch_stats", {}).get("norm", {})), wide(state), 1e-5)
    assert_close(y, wide(x), 1e-5)


@each
def test_export(name):
    """Of any batch, height and width, for all platforms: written to bytes, read, and called, its gradients too."""
    x, g, variables = sample(name)
    more = jax.tree.map(jnp.asarray, inputs(name, x))
    lengths = export.symbolic_shape("2*b, h, w, 6" if name == "ghost" else "b, h, w, 6")

    def f(x, g, more):
        evaluated = run(name, x, variables, None, more, train=False)[0] if name in STATEFUL else ()
        return *gradients(name, x, g, variables, None, more), evaluated

    images = jax.ShapeDtypeStruct(lengths, x.dtype)
    labels = jax.tree.map(lambda t: jax.ShapeDtypeStruct(lengths[:1], t.dtype), more)
    exported = export.export(jax.jit(f), platforms=("cpu", "tpu", "cuda"))(images, images, labels)
    *got, evaluated = export.deserialize(exported.serialize()).call(x, g, more)
    assert_close(got, expected(name, x, g, variables)[0])
    if name in STATEFUL:
        assert_close(evaluated, formula(name, *wide((x, variables)), train=False)[0])


@each
def test_where_promotion_is_forbidden(name):
    """Inputs, parameters and results of several dtypes: what is promoted says so. Traced only, derivatives too."""
    x, _, variables = sample(name)
    more, names = inputs(name, x), list(variables["params"])
    n = {"mask": mask_of(name, np.ones(SHAPE, np.float32))} if name in MASKED else {}

    def linen(x, params, dtype, **how):
        call = module(name, dtype=dtype).apply
        return call(variables | {"params": params}, x, **how, **more, **n, mutable="batch_stats")[0]

    def of_nnx(x, params, dtype, **how):
        layer = nnx_module(name, dtype=dtype)
        nnx.update(layer, params | jax.tree.map(jnp.asarray, variables["batch_stats"]))
        return layer(x, **how, **more, **n)

    dtypes = [("float32", "float32", None), ("bfloat16", "float32", "float32"), ("float32", "bfloat16", "bfloat16")]
    calls = [when(name, True), when(name, False)][: 1 + (name in STATEFUL)]
    with jax.numpy_dtype_promotion("strict"):
        for (of_x, of_params, dtype), how, face in itertools.product(dtypes, calls, (linen, of_nnx)):
            arrays = jnp.asarray(x, of_x), {k: jnp.asarray(variables["params"][k], of_params) for k in names}
            loss = lambda x, p, face=face, dtype=dtype, how=how: face(x, p, dtype, **how).astype(jnp.float32).sum()  # noqa: E731
            jax.eval_shape(jax.grad(loss, (0, 1)), *arrays)


@each
def test_serialization(name):
    variables = sample(name)[2]
    read = serialization.from_bytes(jax.tree.map(np.zeros_like, variables), serialization.to_bytes(variables))
    jax.tree.map(np.testing.assert_array_equal, read, variables)


@each
@settings(max_examples=10, deadline=None, derandomize=True)
@given(st.sampled_from(SHAPES), st.integers(0, 2**16), st.floats(-100, 100))
def test_any_input(name, shape, seed, mean):
    if name == "ghost" and len(shape) == 2:
        shape = SHAPE  # not two numbers, whose variance may be small beside their distance to the pivot
    x, _, variables = sample(name, shape, seed, mean)
    if "mean" in variables["batch_stats"]:  # the pivot of one-pass statistics
        old = variables["batch_stats"]["mean"]
        variables["batch_stats"]["mean"] = np.broadcast_to(x.mean(tuple(range(x.ndim - 1))), old.shape)
    y, _ = run(name, x, variables, None, inputs(name, x))
    want = formula(name, *wide((x, variables)))[0]
    assert_close(y, want, 3e-6 * (1 + abs(mean)))
