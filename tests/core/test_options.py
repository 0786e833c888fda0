"""Axes, dtypes, momentum, ghost batches, per-example parameters, empty batches: every option by its meaning."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bnjax import Moments, batch_norm, normalize
from tests.kit import references, samples, steps
from tests.kit.comparison import assert_each_close

sample = partial(samples.sample, uneven=True)


def fresh(features, dtype=np.float32, mean_dtype=None):
    return Moments(jnp.zeros(features, dtype), jnp.zeros(features, mean_dtype or dtype), jnp.ones(features, dtype))


def step(x, running, scale=None, bias=None, **options):
    """`batch_norm`, compiled: quicker here than one operation at a time."""
    return jax.jit(lambda *arrays: batch_norm(*arrays, **options))(x, running, scale, bias)


def train(*arrays, **options):
    """One step, compiled anew: options may be anything."""
    return jax.jit(partial(steps.train, **options))(*arrays)


TIGHT = {np.float32: {"rtol": 1e-5, "atol": 3e-6}, np.float64: {"rtol": 1e-12, "atol": 1e-13}}


# Axes


@pytest.mark.parametrize(
    ("axis", "features"),
    [(-1, (6,)), (3, (6,)), (1, (4,)), (-3, (4,)), (0, (3,)), ((1, 3), (4, 6)), ((-1, 1), (4, 6)),
     ([1, 2, 3], (4, 5, 6)), (np.int64(2), (5,)), ((), ())],
    ids=str,
)  # fmt: skip
def test_the_features_may_be_any_axes(axis, features, x64):
    arrays = sample((3, 4, 5, 6), features, dtype=np.float64)
    got, new = train(*arrays, fresh(features, np.float64), axis=axis, momentum=0.0)
    want = references.batch_norm(*arrays, axis=np.asarray(axis, int))
    assert_each_close(got, want[:4], **TIGHT[np.float64])
    assert_each_close((new.mean, new.var), want.batch[1:], **TIGHT[np.float64])
    assert new.mean.shape == features


@pytest.mark.parametrize("axis", [0, 1, 2, -2])
def test_axes_of_one_length_are_not_confused(axis):
    """Where a wrong axis fits, it must still be the right one."""
    arrays = sample((4, 4, 4))
    got, new = train(*arrays, fresh(4), axis=axis, momentum=0.0)
    want = references.batch_norm(*arrays, axis=axis)
    assert_each_close(got, want[:4])
    assert_each_close((new.mean, new.var), want.batch[1:])
    y = normalize(arrays[0], new, *arrays[2:], axis=axis)
    np.testing.assert_allclose(y, want.y, rtol=1e-4, atol=1e-5)


def test_channels_first_is_channels_last_transposed():
    x, _, scale, bias = sample((4, 5, 5, 3))
    last, state = step(x, fresh(3), scale, bias)
    first, state_first = step(np.moveaxis(x, -1, 1), fresh(3), scale, bias, axis=1)
    np.testing.assert_allclose(np.moveaxis(first, 1, -1), last, rtol=1e-6, atol=1e-6)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-6), state_first, state)
    np.testing.assert_allclose(
        np.moveaxis(normalize(np.moveaxis(x, -1, 1), state, scale, bias, axis=1), 1, -1),
        normalize(x, state, scale, bias), rtol=1e-6,
    )  # fmt: skip


@pytest.mark.parametrize("given", ["scale", "bias", None])
def test_without_scale_or_bias_they_are_one_and_zero(given):
    x, g, scale, bias = sample((6, 3))
    own = {given: {"scale": scale, "bias": bias}[given]} if given else {}
    y, _ = step(x, fresh(3), **own)
    want = references.batch_norm(x, g, own.get("scale", np.ones(3)), own.get("bias", np.zeros(3)))
    np.testing.assert_allclose(y, want.y, rtol=1e-5, atol=1e-6)


# Dtypes


@pytest.mark.parametrize(("dtype", "ulp"), [(jnp.bfloat16, 2**-8), (jnp.float16, 2**-11)])
def test_half_precision_is_rounded_once(dtype, ulp):
    """The result is the float32 result, rounded: statistics, map and gradients are computed in float32."""
    x, g, scale, bias = sample((64, 8, 4))
    x, g = jnp.asarray(x * 4 + 20, dtype), jnp.asarray(g, dtype).astype(jnp.float32)
    got, new = train(x, g, scale, bias, fresh(4))
    exact, state = train(x.astype(jnp.float32), g, scale, bias, fresh(4))
    assert (got[0].dtype, got[1].dtype, got[2].dtype) == (dtype, dtype, jnp.float32)
    assert new.mean.dtype == new.var.dtype == jnp.float32
    assert_each_close((got[0], got[1]), (exact[0], exact[1]), rtol=ulp, atol=1e-6)
    assert_each_close(jax.tree.leaves(new), jax.tree.leaves(state), rtol=1e-6)


@pytest.mark.parametrize("given", [jnp.bfloat16, jnp.float16, jnp.float32])
@pytest.mark.parametrize("asked", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_the_output_has_the_dtype_of_x_or_the_one_asked_for(given, asked):
    x = jnp.asarray(sample((8, 3))[0], given)
    y, _ = step(x, fresh(3), dtype=asked)
    plain, state = step(x, fresh(3))
    assert (y.dtype, plain.dtype) == (asked, given)
    assert normalize(x, state, dtype=asked).dtype == asked
    np.testing.assert_allclose(y.astype(jnp.float32), plain.astype(jnp.float32), rtol=1e-2, atol=1e-2)


def test_float32_asked_of_half_precision_is_not_rounded_first():
    x, g, scale, bias = sample((64, 4))
    x = jnp.asarray(x, jnp.bfloat16)
    y, _ = step(x, fresh(4), scale, bias, dtype=jnp.float32)
    np.testing.assert_allclose(y, references.batch_norm(x.astype(jnp.float32), g, scale, bias).y, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("state", [jnp.float32, jnp.bfloat16, jnp.float64])
@pytest.mark.parametrize("data", [jnp.bfloat16, jnp.float32, jnp.float64])
@pytest.mark.parametrize("momentum", [0.9, None])
def test_the_state_keeps_its_dtypes_and_shapes(state, data, momentum, x64):
    running = Moments(jnp.zeros((), jnp.float32), jnp.zeros(3, state), jnp.ones(3, state))
    x = jnp.asarray(sample((8, 3))[0], data)
    y, new = step(x, running, momentum=momentum)
    assert y.dtype == data
    for old, after in zip(jax.tree.leaves(running), jax.tree.leaves(new), strict=True):
        assert (after.shape, after.dtype) == (old.shape, old.dtype)


def test_float64_is_computed_in_float64(x64):
    arrays = sample((16, 3), dtype=np.float64)
    got, new = train(*arrays, fresh(3, np.float64), momentum=0.0)
    want = references.batch_norm(*arrays)
    assert_each_close(got, want[:4], rtol=1e-12, atol=1e-13)
    assert_each_close((new.mean, new.var), want.batch[1:], rtol=1e-12)


def test_epsilon_has_the_precision_of_the_arithmetic(x64):
    x = np.array([[1.0], [1.001]], np.float32)
    y, _ = step(x, Moments(jnp.zeros(()), jnp.ones(1), jnp.ones(1)), dtype=jnp.float64)
    np.testing.assert_allclose(y, references.batch_norm(x, x, np.ones(1), np.zeros(1)).y, rtol=1e-12)


@pytest.mark.parametrize("dtype", [np.complex64, np.complex128])
def test_complex_input_has_a_complex_mean_and_a_real_variance(dtype):
    real = np.finfo(dtype).dtype
    with jax.enable_x64(dtype is np.complex128):
        z = (sample((32, 5, 3), dtype=real)[0] + 1j * sample((32, 5, 3), dtype=real, seed=1)[0]).astype(dtype)
        scale, bias = sample((1, 3), dtype=real)[2], sample((1, 3), dtype=real)[3] + np.asarray(0.5j, dtype)
        where = np.random.default_rng(2).random((32, 5, 1)) < 0.7
        for mask in (None, where):
            y, new = step(z, fresh(3, real, dtype), scale, bias, momentum=0.0, where=mask)
            _, mean, d, var = references.centred(z, (0, 1), mask)
            assert (y.dtype, new.mean.dtype, new.var.dtype) == (dtype, dtype, real)
            tight = {"rtol": 1e-5, "atol": 1e-5} if dtype is np.complex64 else {"rtol": 1e-12, "atol": 1e-13}
            np.testing.assert_allclose(y, d / np.sqrt(var + 1e-5) * scale + bias, **tight)
            assert_each_close((new.mean, new.var), (mean[0, 0], var[0, 0]), **tight)
            np.testing.assert_allclose(normalize(z, new, scale, bias), y, **tight)


# Momentum


@pytest.mark.parametrize("momentum", [0, 0.0, 0.25, 0.99, 1.0, 1, np.float32(0.5)])
def test_momentum_is_the_fraction_kept(momentum):
    x, *_ = sample((16, 3))
    running = Moments(jnp.zeros(()), jnp.full(3, 2.0), jnp.full(3, 3.0))
    _, new = step(x, running, momentum=momentum)
    keep = float(momentum)
    np.testing.assert_allclose(new.mean, keep * 2 + (1 - keep) * x.mean(0), rtol=1e-5)
    np.testing.assert_allclose(new.var, keep * 3 + (1 - keep) * x.var(0), rtol=1e-5)
    assert new.count == 0


def test_a_traced_momentum_and_epsilon():
    x, *_ = sample((16, 3))
    traced = jax.jit(lambda m, e: batch_norm(x, fresh(3), momentum=m, epsilon=e))(0.5, 0.1)
    known = step(x, fresh(3), momentum=0.5, epsilon=0.1)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), traced, known)


def test_no_momentum_is_the_pool_of_all_that_was_seen(precision):
    """Batches of unlike sizes weigh by size; PyTorch's cumulative average weighs them equally."""
    xs = [sample((n, 3), dtype=precision, seed=n)[0] for n in (2, 40, 7)]
    state = fresh(3, precision)
    for x in xs:
        state = step(x, state, momentum=None)[1]
    want = references.moments(np.concatenate(xs), 0)
    assert_each_close(jax.tree.leaves(state), (np.full(3, 49), *want[1:]), **TIGHT[precision])
    averaged = np.mean([x.mean(0) for x in xs], 0)
    assert (np.abs(averaged - want.mean) > 1e-2).any()


def test_a_scalar_count_is_enough_without_a_mask_over_features():
    x, *_ = sample((8, 3))
    for where in (None, np.arange(8)[:, None] < 5):
        running = Moments(jnp.zeros(()), jnp.zeros(3), jnp.ones(3))
        _, new = step(x, running, momentum=None, where=where)
        assert new.count.shape == ()
        assert new.count == (8 if where is None else 5)


def test_unbiased_keeps_the_variance_that_pytorch_keeps():
    arrays = sample((7, 3))
    got, new = train(*arrays, fresh(3), momentum=0.0, unbiased=True)
    np.testing.assert_allclose(new.var, arrays[0].var(0, ddof=1), rtol=1e-5)
    assert_each_close(got, references.batch_norm(*arrays)[:4])  # and normalizes by the biased one, as PyTorch does


# What follows the map


@pytest.mark.parametrize("activation", [None, "relu"])
@pytest.mark.parametrize("where", [None, np.arange(6)[:, None, None] > 1], ids=["all", "masked"])
def test_the_residual_is_added_before_the_activation(activation, where, precision):
    x, g, scale, bias = sample((6, 5, 3), dtype=precision)
    residual = sample((6, 5, 3), dtype=precision, seed=1)[0]
    want = references.batch_norm(x, g, scale, bias, residual=residual, where=where, relu=activation is not None)
    options = {"activation": activation, "where": where}
    assert_each_close(
        train(x, g, scale, bias, fresh(3, precision), residual=residual, **options)[0], want[:4], **TIGHT[precision]
    )
    dresidual = jax.grad(
        lambda r: (batch_norm(x, fresh(3, precision), scale, bias, residual=r, **options)[0] * g).sum()
    )
    np.testing.assert_allclose(dresidual(residual), np.where((want.y > 0) | (activation is None), g, 0), rtol=1e-6)


def test_a_callable_activation_is_applied_to_the_result():
    x, _, scale, bias = sample((6, 3))
    plain, state = step(x, fresh(3), scale, bias)
    np.testing.assert_allclose(step(x, fresh(3), scale, bias, activation=jnp.tanh)[0], jnp.tanh(plain), rtol=1e-6)
    m = Moments(state.count, jnp.asarray(x.mean(0)), jnp.asarray(x.var(0)))
    np.testing.assert_allclose(normalize(x, m, scale, bias, activation=jnp.tanh), jnp.tanh(plain), rtol=1e-4, atol=1e-6)
    relu = normalize(x, m, scale, bias, residual=-x, activation="relu")
    np.testing.assert_allclose(relu, np.maximum(normalize(x, m, scale, bias) - x, 0), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("features", [(6, 1, 3), (6, 5, 3), (1, 5, 1), (1, 1, 3)], ids=str)
def test_scale_and_bias_per_example(features, precision):
    """Conditional normalization: one map for each example, or each position."""
    arrays = sample((6, 5, 3), features, dtype=precision)
    want = references.batch_norm(*arrays)
    assert_each_close(train(*arrays, fresh(3, precision))[0], want[:4], **TIGHT[precision])
    x, _, scale, bias = arrays
    m = Moments(*(jnp.asarray(t, precision) for t in want.batch))
    assert_each_close([normalize(x, m, scale, bias)], [want.y], **TIGHT[precision])


def test_moments_per_example():
    """`normalize` takes moments at the rank of x: each example by its own, as instance normalization does."""
    x, *_ = sample((6, 5, 3))
    _, mean, d, var = references.centred(x, 1)
    m = Moments(jnp.zeros(()), jnp.asarray(mean, jnp.float32), jnp.asarray(var, jnp.float32))
    np.testing.assert_allclose(normalize(x, m), d / np.sqrt(var + 1e-5), rtol=1e-4, atol=1e-5)


# Ghost batches


@pytest.mark.parametrize("axis", [-1, 1, (1, 2)], ids=str)
@pytest.mark.parametrize("size", [2, 3, 6])
def test_ghost_batches_are_contiguous_slices_of_the_batch(axis, size, x64):
    shape = (6, 3, 4)  # float64: two numbers may be near each other
    features = tuple(np.array(shape)[np.atleast_1d(axis)])
    arrays = sample(shape, features, dtype=np.float64)
    x, g, scale, bias = arrays
    got, new = train(
        *arrays, fresh(features, np.float64), axis=axis, virtual_batch_size=size, momentum=0.25, epsilon=0.1
    )
    parts = [
        references.batch_norm(x[i : i + size], g[i : i + size], scale, bias, axis=np.asarray(axis), epsilon=0.1)
        for i in range(0, 6, size)
    ]
    assert_each_close(
        got[:2], [np.concatenate([getattr(p, k) for p in parts]) for k in ("y", "dx")], **TIGHT[np.float64]
    )
    assert_each_close(got[2:], [sum(getattr(p, k) for p in parts) for k in ("dscale", "dbias")], **TIGHT[np.float64])
    # One step of the average, with all slices merged: the moments of the whole batch.
    whole = references.batch_norm(*arrays, axis=np.asarray(axis)).batch
    assert_each_close((new.mean, new.var), (0.75 * whole.mean, 0.25 + 0.75 * whole.var), **TIGHT[np.float64])


def test_a_ghost_batch_of_the_whole_batch_is_the_batch():
    x, _, scale, bias = sample((6, 5, 3))
    for got, want in zip(
        jax.tree.leaves(step(x, fresh(3), scale, bias, virtual_batch_size=6)),
        jax.tree.leaves(step(x, fresh(3), scale, bias)),
        strict=True,
    ):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


def test_a_numpy_integer_is_a_size():
    x, *_ = sample((6, 5, 3))
    y, _ = step(x, fresh(3), virtual_batch_size=np.int64(2))
    np.testing.assert_array_equal(y, step(x, fresh(3), virtual_batch_size=2)[0])


def test_ghost_batches_with_all_that_is_per_example():
    x, g, _, _ = sample((6, 5, 3))
    scale, bias = sample((6, 5, 3), features=(6, 1, 3))[2:]
    where = np.random.default_rng(1).random((6, 5, 1)) < 0.7
    got, new = train(x, g, scale, bias, fresh(3), where=where, virtual_batch_size=2, momentum=None)
    parts = [
        references.batch_norm(*(t[i : i + 2] for t in (x, g, scale, bias)), where=where[i : i + 2]) for i in (0, 2, 4)
    ]
    for k, name in enumerate(("y", "dx", "dscale", "dbias")):
        np.testing.assert_allclose(got[k], np.concatenate([getattr(p, name) for p in parts]), rtol=1e-5, atol=3e-6)
    assert_each_close(jax.tree.leaves(new), (np.full(3, where.sum()), *references.moments(x, (0, 1), where)[1:]))


# Nothing at all


@pytest.mark.parametrize("shape", [(0, 3), (0, 5, 3), (4, 0, 3)], ids=str)
@pytest.mark.parametrize("options", [{}, {"virtual_batch_size": 2}, {"where": True}, {"unbiased": True}], ids=str)
def test_an_empty_batch_is_empty_and_the_state_unchanged(shape, options):
    running = Moments(jnp.full(3, 5.0), jnp.arange(3.0), jnp.arange(1.0, 4))
    momenta = (0.0, 0.9) if "unbiased" in options else (0.0, 0.9, None)

    @jax.jit
    def steps_and_gradient(x, running, scale):
        steps = [
            batch_norm(x, running, momentum=momentum, pivot=pivot, **options)
            for pivot in ("running", "sample", None)
            for momentum in momenta
        ]
        return steps, jax.grad(lambda s: batch_norm(x, running, s, **options)[0].sum())(scale)

    steps, dscale = steps_and_gradient(jnp.zeros(shape), running, jnp.ones(3))
    for y, new in steps:
        assert y.shape == shape
        jax.tree.map(np.testing.assert_array_equal, new, running)
    np.testing.assert_array_equal(dscale, 0)
    assert normalize(jnp.zeros(shape), running).shape == shape


def test_no_features_at_all():
    y, new = step(jnp.zeros((4, 0)), fresh(0))
    assert y.shape == (4, 0)
    assert new.mean.shape == (0,)


def test_real_images_normalized_as_complex_numbers_have_a_real_variance():
    x = np.random.default_rng(0).normal(size=(2, 3, 14, 4)).astype(np.float32)
    running = Moments(jnp.zeros(()), jnp.zeros(4, jnp.complex64), jnp.ones(4))
    y, new = batch_norm(x, running, momentum=0.0, dtype=jnp.complex64)
    assert y.dtype == jnp.complex64
    assert new.var.dtype == jnp.float32
    np.testing.assert_allclose(new.var, x.var((0, 1, 2)), rtol=1e-6)
