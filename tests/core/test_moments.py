"""Moments: against numpy in float64, and the laws by which they combine."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bnjax import Moments, all_reduce, ema, merge, moments, reduce
from tests.kit import references, samples

examples = settings(max_examples=25, deadline=None, derandomize=True)
numbers = st.floats(-1e3, 1e3).map(lambda v: round(v, 3))
seeds = st.integers(0, 2**31)


def sample(shape=(6, 5, 4), seed=0, dtype=np.float32):
    """Numbers whose mean and spread differ from feature to feature."""
    return samples.sample(shape, uneven=True, dtype=dtype, seed=seed)[0]


def assert_moments(got: Moments, want, rtol=1e-6, atol=1e-6):
    np.testing.assert_allclose(np.broadcast_to(got.count, got.mean.shape), np.broadcast_to(want[0], got.mean.shape))
    np.testing.assert_allclose(got.mean, want[1], rtol, atol)
    np.testing.assert_allclose(got.var, want[2], rtol, atol)


# Measure


@pytest.mark.parametrize("axis", [0, 2, -1, (0, 1), (0, -1), (2, 0, 1), ()], ids=str)
@pytest.mark.parametrize("pivot", [None, 0.3])
def test_moments_are_those_of_numpy(axis, pivot):
    x = sample()
    got = moments(x, axis, pivot=pivot)
    assert got.count.shape == ()
    assert_moments(got, references.moments(x, axis))
    kept = moments(x, axis, pivot=pivot, keepdims=True)
    assert kept.mean.shape == kept.var.shape == x.mean(axis, keepdims=True).shape
    np.testing.assert_array_equal(kept.mean.reshape(got.mean.shape), got.mean)


@pytest.mark.parametrize("shape", [(), (4,), (5, 1), (6, 1, 1), (1, 5, 4), (6, 5, 1), (6, 5, 4)], ids=str)
@pytest.mark.parametrize("kind", [bool, np.int8, np.float32])
def test_masked_moments_are_those_of_the_valid_elements(shape, kind):
    x = sample()
    where = ((np.random.default_rng(1).random(shape) < 0.6) * np.array(3)).astype(kind)
    for axis in ((0, 1), 2):
        got = moments(x, axis, where=where)
        assert jnp.broadcast_shapes(got.count.shape, got.mean.shape) == got.mean.shape
        assert_moments(got, references.moments(x, axis, where))


def test_a_count_is_a_scalar_unless_the_mask_varies_over_features():
    x = sample()
    assert moments(x, (0, 1), where=np.ones((6, 5, 1))).count.shape == ()
    assert moments(x, (0, 1), where=np.ones((1, 1, 4))).count.shape == (4,)
    assert moments(x, 0, where=np.ones((6, 5, 1))).count.shape == (5, 1)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("pivot", [None, 0.3])
def test_what_is_not_valid_counts_for_nothing_even_when_not_finite(bad, pivot):
    x = sample()
    where = np.random.default_rng(1).random((6, 5, 1)) < 0.6
    poisoned = np.where(where, x, bad)
    got, want = (moments(t, (0, 1), where=where, pivot=pivot) for t in (poisoned, x))
    jax.tree.map(np.testing.assert_array_equal, got, want)
    grad = jax.grad(lambda t: moments(t, (0, 1), where=where, pivot=pivot).var.sum())(poisoned)
    assert np.isfinite(grad).all()


@pytest.mark.parametrize("pivot", [None, 7.0])
def test_nothing_valid_is_count_zero_and_finite(pivot):
    x = sample()
    where = np.ones((6, 5, 4), bool)
    where[..., 2] = False
    m = moments(x, (0, 1), where=where, pivot=pivot)
    assert list(m.count) == [30, 30, 0, 30]
    assert m.var[2] == 0
    assert np.isfinite(m.mean).all()
    grad = jax.grad(lambda t: sum(t.sum() for t in jax.tree.leaves(moments(t, (0, 1), where=where))))(x)
    assert np.isfinite(grad).all()
    assert (grad[..., 2] == 0).all()


def test_moments_of_an_empty_array():
    m = moments(jnp.zeros((0, 3)), 0)
    assert m.count == 0
    assert np.isfinite(m.mean).all()
    assert (m.var == 0).all()


def test_a_pivot_is_broadcast_to_either_form_of_keepdims():
    x = sample()
    c = np.array([[0.1, 0.2, 0.3, 0.4]] * 5, np.float32)
    for pivot in (c, c[None], 0.2, c[0], c[:, :1], c[None, :1]):
        assert_moments(moments(x, 0, pivot=pivot), references.moments(x, 0))


def test_the_statistics_of_half_precision_are_float32():
    for dtype in (jnp.bfloat16, jnp.float16):
        x = jnp.asarray(sample() * 8 + 100, dtype)
        m = moments(x, (0, 1))
        assert m.count.dtype == m.mean.dtype == m.var.dtype == jnp.float32
        assert_moments(m, references.moments(x.astype(jnp.float32), (0, 1)), rtol=1e-5)


def test_complex_moments_have_a_complex_mean_and_a_real_variance():
    z = (sample() + 1j * sample(seed=1)).astype(np.complex64)
    for pivot in (None, 0.3 - 0.2j):
        m = moments(z, (0, 1), pivot=pivot)
        assert m.mean.dtype == jnp.complex64
        assert m.var.dtype == jnp.float32
        assert_moments(m, (30, z.mean((0, 1)), z.var((0, 1))))


def test_the_gradient_of_moments_is_that_of_plain_autodiff_and_the_pivot_has_none(x64):
    x, g = sample(dtype=np.float64), sample((2, 4), 1, np.float64)
    where = np.random.default_rng(1).random((6, 5, 4)) < 0.6

    def ours(x, pivot, where):
        m = moments(x, (0, 1), where=where, pivot=pivot)
        return (m.mean * g[0]).sum() + (m.var * g[1]).sum()

    def plain(x, where):
        return (x.mean((0, 1), where=where) * g[0]).sum() + (x.var((0, 1), where=where) * g[1]).sum()

    for mask in (None, where):
        want = jax.jit(jax.grad(plain))(x, mask)
        np.testing.assert_allclose(jax.jit(jax.grad(ours))(x, None, mask), want, atol=1e-14)
        dx, dpivot = jax.jit(jax.grad(ours, (0, 1)))(x, jnp.full(4, 0.3), mask)
        np.testing.assert_allclose(dx, want, atol=1e-14)
        np.testing.assert_allclose(dpivot, 0)


@examples
@given(seeds, numbers, numbers.filter(lambda a: abs(a) > 1e-2), numbers)
def test_moments_follow_an_affine_map(seed, shift, factor, pivot):
    x = sample((7, 3), seed, np.float64)
    with jax.enable_x64(True):
        got = moments(factor * x + shift, 0, pivot=factor * pivot + shift)
        # About a pivot the variance loses (pivot / std)^2 eps: 1e6 * 1e-16 here, twice.
        assert_moments(got, (7, factor * x.mean(0) + shift, factor**2 * x.var(0)), rtol=1e-8, atol=1e-8)


# Combine


@st.composite
def three_sets(draw):
    """Three sets of numbers of three features, from one element to ten, far from each other or near."""
    return [
        sample((draw(st.integers(1, 10)), 3), draw(seeds), np.float64) * 10 ** draw(st.integers(-2, 2)) + draw(numbers)
        for _ in range(3)
    ]


def measured(x) -> Moments:
    return Moments(*map(jnp.asarray, references.moments(x, 0)))


def assert_same(a: Moments, b: Moments):
    """To rounding: of the variance relative to the squares that enter it, 1e6 here."""
    np.testing.assert_allclose(a.count, b.count)
    np.testing.assert_allclose(a.mean, b.mean, rtol=1e-12, atol=1e-10)
    np.testing.assert_allclose(a.var, b.var, rtol=1e-12, atol=1e-8)


@examples
@given(three_sets())
def test_merge_is_the_moments_of_the_union_associative_and_commutative(sets):
    with jax.enable_x64(True):
        a, b, c = map(measured, sets)
        assert_same(merge(a, b), measured(np.concatenate(sets[:2])))
        assert_same(merge(a, b), merge(b, a))
        assert_same(merge(merge(a, b), c), merge(a, merge(b, c)))


@examples
@given(three_sets())
def test_empty_is_the_identity_of_merge(sets):
    with jax.enable_x64(True):
        m = measured(sets[0])
        empty = Moments.empty((3,), jnp.float64)
        for merged in (merge(m, empty), merge(empty, m)):
            jax.tree.map(np.testing.assert_array_equal, merged, m)
        assert_same(merge(empty, empty), empty)


@examples
@given(three_sets())
def test_reduce_and_all_reduce_are_repeated_merge(sets):
    with jax.enable_x64(True):
        a, b, c = map(measured, sets)
        want = merge(merge(a, b), c)
        stacked = jax.tree.map(lambda *t: jnp.stack(t), a, b, c)
        assert_same(reduce(stacked), want)
        for pivot in (None, b.mean):
            everywhere = jax.vmap(lambda m, p=pivot: all_reduce(m, "i", pivot=p), axis_name="i")(stacked)
            for i in range(3):
                # About one fixed number: (mean - c)^2 / var * eps is lost, as in `moments`.
                assert_same(jax.tree.map(lambda t, i=i: t[i], everywhere), want)


def test_reduce_along_any_axes_with_any_count():
    mean, var = sample((3, 5, 4)), np.square(sample((3, 5, 4), 1))
    count = np.random.default_rng(2).integers(0, 4, (3, 5, 4)).astype(np.float32)

    def want(count, axis):
        n = np.broadcast_to(count, mean.shape).astype(np.float64)
        total = n.sum(axis)
        middle = (n * mean).sum(axis, keepdims=True) / n.sum(axis, keepdims=True)
        return total, middle.squeeze(axis), (n * (var + np.square(mean - middle))).sum(axis) / total

    for axis in (0, -1, (0, 2), (0, 1, 2)):
        assert_moments(reduce(Moments(count, mean, var), axis), want(count, axis), rtol=1e-5)
    for short in (count[:, 0, 0] + 1, count[:, :, 0] + 1, count[:1, :1, :1] + 1):  # as vmap stacks scalar counts
        full = short.reshape(short.shape + (1,) * (3 - short.ndim))
        assert_moments(reduce(Moments(short, mean, var), 0), want(full, 0), rtol=1e-5)
    assert_moments(reduce(Moments(jnp.float32(2), mean, var), 1), want(2, 1), rtol=1e-5)


def test_a_count_of_the_stacked_axis_does_not_depend_on_the_other_lengths():
    count = jnp.array([1.0, 2.0, 3.0])
    for features in (2, 3):
        mean = jnp.arange(3.0 * features).reshape(features, 3)
        m = reduce(Moments(count, mean, jnp.ones((features, 3))), axis=1)
        np.testing.assert_allclose(m.mean, (mean * count[None]).sum(1) / 6, rtol=1e-6)


def test_empty_is_the_identity_of_merge_for_any_finite_mean():
    m = Moments(jnp.array(2.0), jnp.full(3, 1e20), jnp.ones(3))
    for merged in (merge(m, Moments.empty((3,))), merge(Moments.empty((3,)), m)):
        jax.tree.map(np.testing.assert_array_equal, merged, m)


def test_nothing_seen_stays_nothing():
    empty = Moments.empty((3,))
    assert (empty.count.shape, empty.mean.shape, empty.var.shape) == ((), (3,), (3,))
    stacked = jax.tree.map(lambda t: jnp.stack([t, t]), empty)
    for m in (merge(empty, empty), reduce(stacked)):
        jax.tree.map(lambda t: np.testing.assert_array_equal(t, 0), m)
    m = jax.vmap(lambda m: all_reduce(m, "i"), axis_name="i")(stacked)
    jax.tree.map(lambda t: np.testing.assert_array_equal(t, 0), m)


def test_combining_has_the_gradient_of_the_union(x64):
    x = sample((4, 6, 3), dtype=np.float64)

    def loss(m):
        return (m.mean**3).sum() + (m.var**2).sum()

    want = jax.jit(jax.grad(lambda x: loss(moments(x, (0, 1)))))(x)
    slices = jax.vmap(lambda t: moments(t, 0))
    paths = {
        "reduce": lambda x: loss(reduce(slices(x))),
        "merge": lambda x: loss(merge(moments(x[:1], (0, 1)), moments(x[1:], (0, 1)))),
        "all_reduce": lambda x: jax.vmap(lambda t: loss(all_reduce(moments(t, 0), "i")), axis_name="i")(x).mean(),
    }
    for name, path in paths.items():
        np.testing.assert_allclose(jax.jit(jax.grad(path))(x), want, atol=1e-13, err_msg=name)


# The running average


@examples
@given(three_sets(), st.floats(0, 1))
def test_ema_averages_mean_and_variance_apart_and_leaves_count_alone(sets, momentum):
    with jax.enable_x64(True):
        running, batch, _ = map(measured, sets)
        got = ema(running, batch, momentum)
        np.testing.assert_array_equal(got.count, running.count)
        for old, new, out in ((running.mean, batch.mean, got.mean), (running.var, batch.var, got.var)):
            np.testing.assert_allclose(out, momentum * old + (1 - momentum) * new, rtol=1e-12, atol=1e-12)


def test_ema_at_its_ends_and_under_a_tracer():
    running, batch = measured(sample((5, 3))), measured(sample((5, 3), 1))
    jax.tree.map(np.testing.assert_array_equal, ema(running, batch, 1.0), running)
    zero = ema(running, batch, 0.0)
    np.testing.assert_array_equal(zero.mean, batch.mean)
    np.testing.assert_array_equal(zero.var, batch.var)
    traced, known = jax.jit(ema)(running, batch, 0.9), ema(running, batch, 0.9)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-6), traced, known)


def test_ema_skips_features_that_saw_nothing():
    running = measured(sample((5, 3)))
    batch = Moments(jnp.array([2.0, 0.0, 2.0]), jnp.array([1.0, jnp.nan, 1.0]), jnp.ones(3))
    got = ema(running, batch, 0.5)
    assert got.mean[1] == running.mean[1]
    assert got.var[1] == running.var[1]
    assert got.mean[0] == (running.mean[0] + 1) / 2
    jax.tree.map(np.testing.assert_array_equal, ema(running, Moments.empty((3,)), 0.5), running)


def test_ema_keeps_the_dtypes_of_the_running_state():
    running = Moments(jnp.zeros(()), jnp.zeros(3, jnp.bfloat16), jnp.ones(3, jnp.float16))
    got = ema(running, measured(sample((5, 3))), 0.9)
    assert (got.mean.dtype, got.var.dtype) == (jnp.bfloat16, jnp.float16)


def test_ema_is_not_a_merge():
    """Merging decayed counts gives another variance when the mean drifts."""
    running = Moments(jnp.array(1.0), jnp.zeros(1), jnp.ones(1))
    batch = Moments(jnp.array(1.0), jnp.full(1, 2.0), jnp.ones(1))
    assert ema(running, batch, 0.5).var == 1
    assert merge(running, batch).var == 2


def test_moments_are_a_pytree_of_three_arrays():
    m = measured(sample((5, 3)))
    assert len(jax.tree.leaves(m)) == 3
    assert isinstance(jax.tree.map(lambda t: 2 * t, m), Moments)
    with pytest.raises(AttributeError):
        m.count = 3


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda m, x: merge(m, x), "(?s)`b` must be Moments, but it is .*, of type ArrayImpl; pass Moments"),
        (lambda m, x: merge(x, m), "`a` must be Moments"),
        (lambda m, x: reduce(x), "`m` must be Moments"),
        (lambda m, x: all_reduce(x, "device"), "`m` must be Moments"),
        (
            lambda m, x: merge(m, moments(x[:, :2], 0)),
            r"`a.mean` and `b.mean` must be of one shape, or broadcast, but their shapes are \(3,\) and \(2,\)",
        ),
    ],
)
def test_what_is_no_moments_and_other_features_are_refused(call, said):
    x = jnp.ones((4, 3))
    with pytest.raises(ValueError, match=said):
        call(moments(x, 0), x)
