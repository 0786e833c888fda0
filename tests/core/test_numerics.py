"""What rounding may do: every bound that the documents claim, against numpy in float64."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import lax

import bnjax.linen
from bnjax import Moments, all_reduce, batch_norm, moments, normalize, reduce
from tests.kit import references, samples, steps
from tests.kit.comparison import errors

EPS = 1.2e-7
MEANS = [0.0, 1.0, 1e2, 1e3, 1e4, 1e5]


def sample(mean, dtype=np.float32, shape=(512, 8), seed=0):
    """x of standard deviation one."""
    return samples.sample(shape, mean=mean, scale=(1, 2), dtype=dtype, seed=seed)


def fresh(features=8, dtype=np.float32):
    return samples.running(features, dtype)


train = jax.jit(partial(steps.train, momentum=0.0), static_argnames=("pivot", "activation", "virtual_batch_size"))


@jax.jit
def train_flax(x, g, scale, bias):
    def loss(x, scale, bias):
        variables = {"params": {"scale": scale, "bias": bias}, "batch_stats": {"mean": 0 * scale, "var": 0 * bias}}
        layer = nn.BatchNorm(use_running_average=False, momentum=0.0)
        y, state = layer.apply(variables, x, mutable=["batch_stats"])
        return (y * g).sum(), (y, state["batch_stats"])

    grads, (y, stats) = jax.grad(loss, (0, 1, 2), has_aux=True)(x, scale, bias)
    return (y, *grads), stats


# Statistics


@pytest.mark.parametrize("mean", MEANS)
def test_moments_are_right_by_themselves(mean):
    x = sample(mean, shape=(4096, 64))[0]
    m, (_, want_mean, want_var) = jax.jit(moments, static_argnums=1)(x, 0), references.moments(x, 0)
    assert references.relative(m.var, want_var) <= 1e-5
    assert np.abs(m.mean - want_mean).max() <= EPS * (1 + mean)


@pytest.mark.parametrize("mean", [0.0, 1.0, 1e4])
@pytest.mark.parametrize("off", [0.0, 1.0, 30.0, 1e3])
def test_one_pass_about_a_pivot_loses_what_the_bound_says(mean, off):
    x = sample(mean, shape=(4096, 64))[0]
    pivot = np.full(64, mean + off, np.float32)
    m, (_, want_mean, want_var) = jax.jit(moments, static_argnums=1)(x, 0, pivot=pivot), references.moments(x, 0)
    assert (np.abs(m.var - want_var) / want_var <= 4 * EPS * (1 + (want_mean - pivot) ** 2 / want_var)).all()


def test_combining_loses_nothing_at_large_means():
    """Means that float32 holds, a standard deviation apart at 1e5: so all that is lost is lost by combining."""
    rng = np.random.default_rng(0)
    mean = np.float32(1e5) + rng.integers(0, 4, (8, 16)).astype(np.float32)
    m = Moments(rng.integers(1, 9, 8).astype(np.float32) * 64, mean, rng.random((8, 16)).astype(np.float32))
    share = references.wide(m.count)[:, None] / references.wide(m.count).sum()
    want = (share * (m.var + np.square(mean - (share * mean).sum(0)))).sum(0)
    assert references.relative(reduce(m).var, want) <= 1e-6
    for pivot in (None, jnp.full(16, 1e5, jnp.float32)):
        everywhere = jax.vmap(lambda m, p=pivot: all_reduce(m, "i", pivot=p), axis_name="i")(m)
        assert references.relative(everywhere.var[0], want) <= 1e-6


# A settled pivot


@pytest.mark.parametrize("mean", MEANS)
@pytest.mark.parametrize("options", [{}, {"activation": "relu"}, {"virtual_batch_size": 64}], ids=str)
def test_with_a_settled_pivot_output_and_gradients_are_exact(mean, options, precision):
    x, g, scale, bias = sample(mean, precision)
    # Settled: the mean of other batches, a few hundredths of a standard deviation away.
    running = Moments(jnp.zeros((), precision), jnp.full(8, mean + 0.05, precision), jnp.ones(8, precision))
    got, _ = train(x, g, scale, bias, running, **options)
    slices = np.split(np.arange(512), 512 // options.get("virtual_batch_size", 512))
    relu = "activation" in options
    parts = [references.batch_norm(x[i], g[i], scale, bias, relu=relu) for i in slices]
    want = (*(np.concatenate([getattr(p, k) for p in parts]) for k in ("y", "dx")),
            *(sum(getattr(p, k) for p in parts) for k in ("dscale", "dbias")))  # fmt: skip
    assert errors(got, want[:4]).max() <= (1e-6 if precision is np.float32 else 1e-12)


def test_a_settled_pivot_under_a_mask_is_exact():
    x, g, scale, bias = sample(1e5)
    where = np.random.default_rng(1).random((512, 1)) < 0.5
    running = Moments(jnp.zeros(()), jnp.full(8, np.float32(1e5)), jnp.ones(8))
    got, _ = train(x, g, scale, bias, running, where)
    assert errors(got, references.batch_norm(x, g, scale, bias, where=where)[:4]).max() <= 1e-6


def test_the_pivot_settles_by_training():
    """At mean/std = 1e4 and momentum 0.99 the first output is off by 1e3, and after 1000 steps right."""
    data = jnp.asarray(sample(1e4, shape=(8, 512, 8))[0])
    g, scale, bias = sample(0.0)[1:]

    @jax.jit
    def run(running):
        return lax.scan(lambda r, i: (batch_norm(data[i % 8], r)[1], None), running, jnp.arange(1000))[0]

    want = references.batch_norm(data[0], g, scale, bias)
    first, _ = train(data[0], g, scale, bias, fresh())
    settled, _ = train(data[0], g, scale, bias, run(fresh()))
    assert errors(first, want[:4])[0] > 1e-2
    assert errors(settled, want[:4]).max() <= 1e-6


# The first step


@pytest.mark.parametrize("mean", [*MEANS, 1e6])
@pytest.mark.parametrize("seed", range(3))
def test_the_first_step_is_never_worse_than_flax(mean, seed):
    arrays = sample(mean, seed=seed)
    want = references.batch_norm(*arrays)
    got, batch = train(*arrays, fresh())
    theirs, their_stats = train_flax(*arrays)
    assert (batch.var >= 0).all()
    assert all(np.isfinite(t).all() for t in jax.tree.leaves((got, batch)))
    # Where both are right to rounding either may be nearer; where they are wrong, both measure the same variance:
    # output within 2 % of each other on these data, dscale within 30 % (at 1e6, where none of it is right).
    ours, flax = errors(got, want[:4]), errors(theirs, want[:4])
    for kind, slack in enumerate((1.1, np.inf, 1.5, 1.1)):
        assert ours[kind] <= slack * flax[kind] + 1e-6, kind
    their_error = references.relative(their_stats["var"], want.batch.var)
    assert references.relative(batch.var, want.batch.var) <= 1.1 * their_error + 1e-6


@pytest.mark.parametrize("value", [0.0, 1.0, 3.3, 12345.678, -1e5, 1e15])
@pytest.mark.parametrize("pivot", ["running", "sample", None])
def test_a_constant_input_is_finite(value, pivot):
    """Haiku does not clamp its variance and returns NaN for 12345.678."""
    _, g, scale, bias = sample(0.0)
    got, batch = train(np.full((512, 8), value, np.float32), g, scale, bias, fresh(), pivot=pivot)
    assert all(np.isfinite(t).all() for t in got)
    assert (batch.var >= 0).all()
    if (pivot != "running" and value < 1e15) or value == 0:
        np.testing.assert_allclose(got[0], np.broadcast_to(bias, (512, 8)), atol=1e-6)
        assert (batch.var == 0).all()


@pytest.mark.parametrize("mean", MEANS)
@pytest.mark.parametrize("pivot", ["sample", None])
def test_a_sample_and_two_passes_are_right_from_the_first_step(mean, pivot, precision):
    arrays = sample(mean, precision)
    got, batch = train(*arrays, fresh(dtype=precision), pivot=pivot)
    want = references.batch_norm(*arrays)
    # A sample is up to four standard deviations off: 4 eps (1 + 16) would be the bound; measured 6e-7.
    bound = 2e-6 if precision is np.float32 else 1e-12
    assert errors(got, want[:4]).max() <= bound
    assert references.relative(batch.var, want.batch.var) <= bound


@pytest.mark.parametrize("mean", [1e4, 1e5])
@pytest.mark.parametrize("pivot", ["sample", None])
@pytest.mark.parametrize("width", [1, 8])
def test_under_a_mask_they_are_right_from_the_first_step_too(mean, pivot, width):
    """Also where what a sample would take is masked out. One count for all features is another program: there
    compilers may fuse the mean into x - mean, and measure about one number what they normalize about another."""
    x, g, scale, bias = sample(mean)
    where = np.arange(512)[:, None] >= 3 * np.arange(1, 1 + width)
    x[:3] = 0
    got, _ = train(x, g, scale, bias, fresh(), where, pivot=pivot)
    want = references.batch_norm(x, g, scale, bias, where=where)
    assert errors((got[0][3:], *got[1:]), (want.y[3:], *want[1:4])).max() <= 2e-6


# Evaluation, and low precision


@pytest.mark.parametrize("mean", MEANS)
def test_evaluation_subtracts_before_it_scales(mean, precision):
    x, _, scale, bias = sample(mean, precision)
    m = Moments(jnp.zeros((), precision), jnp.full(8, mean, precision), jnp.ones(8, precision))
    want = (references.wide(x) - references.wide(m.mean)) / np.sqrt(1 + 1e-5) * scale + references.wide(bias)
    assert references.relative(normalize(x, m, scale, bias), want) <= (1e-6 if precision is np.float32 else 1e-14)


def test_bfloat16_is_subtracted_in_float32():
    """nnx rounds the running mean to bfloat16 first: 1000.6 - 1000.1 = 0 there."""
    m = Moments(jnp.zeros(()), jnp.full(1, 1000.1), jnp.ones(1))
    y = normalize(jnp.full((1, 1), 1004.0, jnp.bfloat16), m, epsilon=0.0)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_allclose(y.astype(jnp.float32), 3.9, rtol=4e-3)


def test_the_running_average_of_bfloat16_data_moves():
    """Haiku keeps it in the dtype of x, in which 0.999 is 1."""
    x = jnp.asarray(sample(4.0)[0], jnp.bfloat16)
    running = batch_norm(x, fresh(), momentum=0.999)[1]
    assert running.mean.dtype == jnp.float32
    np.testing.assert_allclose(running.mean, 4e-3, rtol=0.1)


def test_the_pool_of_all_batches_is_exact_at_large_means():
    """`momentum=None`: 200 batches at mean/std = 1e5 pool to the moments of all their elements.

    From a fresh state that needs a pivot that is right from the first step: a pool does not forget.
    """
    data = sample(1e5, shape=(200, 64, 4))[0]

    @jax.jit
    def pool(running):
        step = lambda r, x: (batch_norm(x, r, momentum=None, pivot="sample")[1], None)  # noqa: E731
        return lax.scan(step, running, data)[0]

    pooled, want = pool(fresh(4)), references.moments(data, (0, 1))
    assert (pooled.count == 200 * 64).all()
    # The running mean is kept in float32, whose spacing here is 8e-3 of a standard deviation: measured
    # 7e-4, and 3e-2 for the mean, into which 200 roundings went.
    assert references.relative(pooled.var, want.var) <= 1e-3
    assert np.abs(pooled.mean - want.mean).max() <= 2**-4


CONSTANTS = {
    "layer": lambda x, bias, where: bnjax.layer_norm(x, None, bias, where=where),
    "group": lambda x, bias, where: bnjax.group_norm(x, None, bias, num_groups=1, where=where),
    "instance": lambda x, bias, where: bnjax.instance_norm(x, None, bias, where=where),
    "positional": lambda x, bias, where: bnjax.positional_norm(x, None, bias, where=where),
    **{
        f"batch, {pivot}": lambda x, bias, where, pivot=pivot: bnjax.batch_norm(
            x,
            Moments(*jnp.zeros((1,)), jnp.zeros(x.shape[-1]), jnp.ones(x.shape[-1])),
            None,
            bias,
            pivot=pivot,
            where=where,
        )[0]
        for pivot in ("sample", None)
    },
}


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("norm", CONSTANTS)
def test_constants_become_the_bias_exactly(norm, masked):
    """As in Flax: no rounding of their mean may be divided by the root of epsilon."""
    for n in (2, 3, 7, 32):
        bias = jnp.full(n, 0.25)
        where = (jnp.arange(n) != 1).reshape(1, n, 1) if masked else None
        call = jax.jit(partial(CONSTANTS[norm], bias=bias, where=where))
        for value in (3.3e11, -3e4, 1e6 + 0.5, 1 / 3):
            np.testing.assert_array_equal(
                call(jnp.full((2, n, n), value)), np.full((2, n, n), 0.25), err_msg=f"{n} {value}"
            )


@pytest.mark.parametrize("n", [2, 4, 30, 32, 98])
def test_constants_in_the_first_step_are_never_worse_than_in_flax(n):
    """About a running mean of 0, the default. What is left is the rounding of a sum of n equal numbers."""
    variables = {
        "params": {"scale": jnp.ones(1), "bias": jnp.zeros(1)},
        "batch_stats": {"mean": jnp.zeros(1), "var": jnp.ones(1)},
    }
    ours, theirs = (
        jax.jit(partial(module(use_running_average=False).apply, mutable="batch_stats"))
        for module in (bnjax.linen.BatchNorm, nn.BatchNorm)
    )
    for value in (-3e4, 1e5, 1e6 + 0.5, 1000.3, 1 / 3, 3.3e11):
        x = np.full((n, 1), value, np.float32)
        errors = [np.abs(step(variables, x)[0]).max() for step in (ours, theirs)]
        assert errors[0] <= errors[1], value
