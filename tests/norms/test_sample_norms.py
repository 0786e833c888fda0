"""Layer, RMS, group and instance norm as functions: one table of norms, and what each of them must do."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx as flax_nnx
from jax import lax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from bnjax import group_norm, instance_norm, layer_norm, linen, nnx, rms_norm
from tests.kit import devices, formulas, samples
from tests.kit.comparison import errors

SHAPE = (3, 4, 5, 6)


class Norm(NamedTuple):
    function: object
    options: dict
    axes: tuple  # measured over, once the channels are split into groups
    groups: int = 0
    centred: bool = True
    features: tuple = (3,)


NORMS = {
    "layer": Norm(layer_norm, {}, (3,)),
    "layer over two axes": Norm(layer_norm, {"axis": (1, -1)}, (1, 3), features=(1, 3)),
    "layer over other axes": Norm(layer_norm, {"reduction_axes": (0, 2)}, (0, 2)),
    "rms": Norm(rms_norm, {}, (3,), centred=False),
    "group": Norm(group_norm, {"num_groups": 2}, (1, 2, 4), groups=2),
    "group by size": Norm(group_norm, {"num_groups": None, "group_size": 2}, (1, 2, 4), groups=3),
    "group over some axes": Norm(group_norm, {"num_groups": 3, "reduction_axes": (2, -1)}, (2, 4), groups=3),
    "instance": Norm(instance_norm, {}, (1, 2)),
    "instance with two feature axes": Norm(instance_norm, {"axis": (1, 3)}, (2,), features=(1, 3)),
}
each_norm = pytest.mark.parametrize("name", NORMS)
each_kind = pytest.mark.parametrize("name", ["layer", "rms", "group over some axes", "instance"])


def call(norm, x, *affine, **options):
    return norm.function(x, *affine, **norm.options, **options)


def plain(xp, norm, x, scale, bias, where=True, residual=0, relu=False, epsilon=1e-6):
    """The formula, channels split in groups; numpy or JAX, in the dtype of `x`."""
    shape, n = x.shape, xp.broadcast_to(xp.asarray(where) != 0, x.shape)
    y = formulas.standardized(x, n, norm.axes, epsilon, norm.groups, norm.centred)
    flat = [s if a in norm.features else 1 for a, s in enumerate(shape)]
    scale, bias = (v if v.ndim == len(shape) else v.reshape(flat) for v in (scale, bias))
    y = y * scale + bias + residual
    return xp.maximum(y, 0) if relu else y


def sample(name, mean=0.0, dtype=np.float32, seed=0, per_example=False):
    """x of standard deviation one, a cotangent, scale and bias."""
    features = (3, 1, 5, 6) if per_example else tuple(SHAPE[a] for a in NORMS[name].features)
    return samples.sample(SHAPE, features, mean=mean, scale=(1, 2), dtype=dtype, seed=seed)


def with_gradients(f, x, g, scale, bias):
    """y, dx, dscale, dbias."""
    y, vjp = jax.vjp(f, x, scale, bias)
    return y, *vjp(g.astype(y.dtype))


@partial(jax.jit, static_argnums=0, static_argnames=("pivot", "activation", "dtype"))
def run(name, x, g, scale, bias, where=None, residual=None, **options):
    f = partial(call, NORMS[name], where=where, residual=residual, **options)
    return with_gradients(f, x, g, scale, bias)


@partial(jax.jit, static_argnums=0, static_argnames="relu")
def autodiff(name, x, g, scale, bias, **options):
    return with_gradients(partial(plain, jnp, NORMS[name], **options), x, g, scale, bias)


def expected(name, x, g, scale, bias, **options):
    """In float64: the output from numpy, the gradients from JAX's autodiff of the formula."""
    with jax.enable_x64(True):
        x, g, scale, bias = (np.asarray(t, np.float64) for t in (x, g, scale, bias))
        y = plain(np, NORMS[name], x, scale, bias, **options)
        return y, *map(np.asarray, autodiff(name, x, g, scale, bias, **options)[1:])


@each_norm
@pytest.mark.parametrize("mean", [0.0, 1e2, 1e5])
def test_output_and_gradients_at_any_mean(name, mean):
    arrays = sample(name, mean)
    want = expected(name, *arrays)
    assert errors(run(name, *arrays), want).max() <= 2e-6
    if NORMS[name].centred:  # two passes: the mean is rounded, which is an error of 6e-8 times mean/std
        assert errors(run(name, *arrays, pivot=None), want).max() <= 2e-6 + 1e-6 * mean


@each_kind
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_short_floats_are_rounded_once(name, dtype):
    """Statistics and arithmetic in float32: what is returned is the float64 result, rounded to the dtype."""
    x, g, scale, bias = sample(name, 3.0)
    x, g = (np.asarray(jnp.asarray(t, dtype), np.float64) for t in (x, g))
    got = run(name, jnp.asarray(x, dtype), jnp.asarray(g, dtype), scale, bias)
    want = expected(name, x, g, scale, bias)
    assert [t.dtype for t in got] == [dtype, dtype, np.float32, np.float32]
    ulp = float(jnp.finfo(dtype).eps)
    for a, b in zip(got[:2], want[:2], strict=True):
        np.testing.assert_allclose(np.asarray(a, np.float64), b, rtol=0.51 * ulp, atol=2e-6 * np.abs(b).max())
    assert errors(got[2:], want[2:]).max() <= 2e-6


@each_kind
def test_complex_numbers(name):
    x, *rest = (a + 1j * b for a, b in zip(sample(name, 3.0), sample(name, seed=1), strict=True))
    x, g, scale, bias = x.astype(np.complex64), *(t.astype(np.complex64) for t in rest)
    got = run(name, x, g, scale, bias)
    want = plain(np, NORMS[name], x.astype(np.complex128), scale, bias)
    np.testing.assert_allclose(got[0], want, rtol=1e-5, atol=1e-5)
    with jax.enable_x64(True):
        wide = [np.asarray(t, np.complex128) for t in (x, g, scale, bias)]
        for a, b in zip(got[1:], autodiff(name, *wide)[1:], strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


# Masks

RNG = np.random.default_rng(3)
MASKS = {
    "one for all channels": np.arange(20).reshape(4, 5, 1) % 3 > 0,
    "integers by example": np.array([1, 0, 2]).reshape(3, 1, 1, 1),
    "floats by channel": np.array([1, 0.5, 0, 1, 2, 1], np.float32),
    "elements": RNG.random(SHAPE) < 0.7,
    "nothing": np.zeros((1, 1, 1, 1), bool),
}


def measured(norm, where):
    """Where there is something valid to measure, at the shape of x."""
    n = np.broadcast_to(where != 0, SHAPE)
    if norm.groups:
        n = n.reshape(*SHAPE[:-1], norm.groups, -1)
    return np.broadcast_to(n.any(norm.axes, keepdims=True), n.shape).reshape(SHAPE)


@each_kind
@pytest.mark.parametrize("mask", MASKS)
def test_masked_out_elements_count_for_nothing(name, mask):
    """NaN in them reaches no valid output and no gradient."""
    where = MASKS[mask]
    valid, seen = np.broadcast_to(where != 0, SHAPE), measured(NORMS[name], where)
    x, g, scale, bias = sample(name, 1e3)
    g = np.where(valid, g, 0).astype(np.float32)
    got = run(name, np.where(valid, x, np.nan).astype(np.float32), g, scale, bias, where)
    # The formula knows no empty set: measure there what is not valid, too; it has no part in anything.
    want = expected(name, x, g, scale, bias, where=np.where(seen, valid, True))
    for a, b, atol in zip(got[:2], want[:2], (4e-6, 2e-4), strict=True):  # dx of a set of one: 1000 times rounding
        np.testing.assert_allclose(np.where(valid, a, 0), np.where(valid, b, 0), rtol=1e-5, atol=atol)
    np.testing.assert_array_equal(np.where(valid, 0, got[1]), 0)
    for a, b in zip(got[2:], want[2:], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-5)  # sums of some twenty terms


@each_kind
@pytest.mark.parametrize("mask", ["integers by example", "nothing"])
def test_where_nothing_is_valid_the_output_is_the_bias(name, mask):
    """Flax returns NaN, and NaN gradients."""
    norm, where = NORMS[name], MASKS[mask]
    empty = ~measured(norm, where)
    x, g, scale, bias = sample(name, 1.0)
    y, dx, *affine = run(name, x, g, scale, bias, where)
    flat = [s if a in norm.features else 1 for a, s in enumerate(SHAPE)]
    np.testing.assert_array_equal(y[empty], np.broadcast_to(bias.reshape(flat), SHAPE)[empty])
    np.testing.assert_array_equal(dx[empty], 0)
    assert all(np.isfinite(t).all() for t in (y, dx, *affine))


@each_kind
def test_masked_out_elements_go_through_the_same_map(name):
    x, g, scale, bias = sample(name, 1.0)
    where = MASKS["elements"]
    assert errors(run(name, x, g, scale, bias, where), expected(name, x, g, scale, bias, where=where)).max() <= 4e-6


def test_masks_of_any_kind_are_the_same_mask():
    arrays, where = sample("group", 1.0), MASKS["one for all channels"]
    want = run("group", *arrays, np.broadcast_to(where, SHAPE))
    for kind in (where, where.astype(np.int8), where * 0.5, where[None] * 3.0):
        for a, b in zip(run("group", *arrays, kind), want, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)


# Options


@each_kind
def test_residual_and_relu(name):
    arrays = sample(name, 1.0)
    residual = sample(name, seed=2)[0]
    want = expected(name, *arrays, residual=residual, relu=True)
    assert errors(run(name, *arrays, residual=residual, activation="relu"), want).max() <= 4e-6
    for a, b in zip(
        run(name, *arrays, residual=residual, activation="relu"),
        run(name, *arrays, residual=residual, activation=jax.nn.relu),
        strict=True,
    ):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


@each_norm
def test_scale_and_bias_by_example(name):
    arrays = sample(name, 1.0, per_example=True)
    assert errors(run(name, *arrays), expected(name, *arrays)).max() <= 4e-6


@each_norm
def test_no_scale_no_bias(name):
    x, g, scale, bias = sample(name, 1.0)
    want, _ = run(name, x, g, np.ones_like(scale), np.zeros_like(bias))[:2]
    np.testing.assert_allclose(call(NORMS[name], x), want, rtol=1e-5, atol=1e-6)


@each_kind
def test_dtype_is_that_of_the_output(name):
    x, _, scale, bias = sample(name, 1.0)
    norm, exact = NORMS[name], call(NORMS[name], x, scale, bias)
    for dtype in (jnp.bfloat16, jnp.float16):
        y = call(norm, x, scale, bias, dtype=dtype)
        assert y.dtype == dtype
        np.testing.assert_allclose(y.astype(jnp.float32), exact, rtol=0.51 * float(jnp.finfo(dtype).eps), atol=1e-6)
        half = jnp.asarray(x, dtype)
        assert call(norm, half, scale, bias).dtype == dtype
        y = call(norm, half, scale, bias, dtype=jnp.float32)
        np.testing.assert_allclose(y, call(norm, half.astype(jnp.float32), scale, bias), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("function", [layer_norm, partial(group_norm, num_groups=3), instance_norm])
@pytest.mark.parametrize("value", [0.0, 3.3, -1e5, 12345.678])
def test_a_constant_input_becomes_the_bias(function, value):
    bias = np.arange(6, dtype=np.float32)
    for pivot in ("sample", None):
        y, vjp = jax.vjp(lambda x, p=pivot: function(x, None, bias, pivot=p), jnp.full((2, 4, 6), value))
        if pivot == "sample":  # the rounded mean of two passes may be off by all there is of variance
            np.testing.assert_allclose(y, np.broadcast_to(bias, y.shape), atol=1e-6)
        assert np.isfinite(y).all()
        assert np.isfinite(vjp(jnp.ones_like(y))[0]).all()


def test_one_value_becomes_the_bias():
    """As in Flax; PyTorch raises."""
    x, bias = jnp.full((3, 4), 7.0), np.arange(4, dtype=np.float32)
    for y in (instance_norm(x, None, bias), group_norm(x, None, bias, num_groups=4)):
        np.testing.assert_array_equal(y, np.broadcast_to(bias, (3, 4)))


def test_they_are_special_cases_of_each_other():
    x, *_ = sample("layer", 2.0)
    close = partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
    close(group_norm(x, num_groups=1), layer_norm(x, axis=(1, 2, 3)))
    close(group_norm(x, num_groups=6), instance_norm(x))
    close(instance_norm(x), layer_norm(x, reduction_axes=(1, 2)))
    close(rms_norm(x - x.mean(-1, keepdims=True)), layer_norm(x))
    first = np.moveaxis(x, -1, 1)
    close(group_norm(first, num_groups=2, axis=1), np.moveaxis(group_norm(x, num_groups=2), -1, 1))


# Derivatives and transformations


@each_kind
def test_second_derivatives(name, x64):
    """Forward over reverse and reverse over reverse, in all arguments, under a mask."""
    x, g, scale, bias = sample(name, 1.0, np.float64)
    where, step = MASKS["elements"], sample(name, seed=1, dtype=np.float64)
    points, steps = (x, scale, bias, g), (step[0], step[2], step[3], step[1])

    @partial(jax.jit, static_argnums=0)
    def both(f, points, steps):
        def slope(points):
            return jax.grad(lambda p: (jnp.tanh(f(*p)) * g).sum())(points)

        def along(points):
            return sum((a * b).sum() for a, b in zip(slope(points), steps, strict=True))

        return jax.jvp(slope, (points,), (steps,))[1], jax.grad(along)(points)

    def ours(x, scale, bias, residual):
        return call(NORMS[name], x, scale, bias, residual=residual, where=where)

    def theirs(x, scale, bias, residual):
        return plain(jnp, NORMS[name], x, scale, bias, residual=residual, where=where)

    for a, b in zip(*(jax.tree.leaves(both(f, points, steps)) for f in (ours, theirs)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-10)


@each_norm
@pytest.mark.parametrize("relu", [False, True])
def test_the_backward_pass_keeps_x_alone(name, relu):
    """And the residual, where relu has to be known."""
    x, _, scale, bias = sample(name)
    x = jnp.asarray(x, jnp.bfloat16)

    def f(x, scale, bias, residual):
        return call(NORMS[name], x, scale, bias, residual=residual, activation="relu" if relu else None)

    kept = jax.eval_shape(lambda *a: jax.vjp(f, *a)[1], x, scale, bias, x)
    full = [(t.shape, t.dtype) for t in jax.tree.leaves(kept) if t.size >= x.size]
    assert full == [(x.shape, x.dtype)] * (2 if relu else 1)


@each_kind
def test_vmap_scan_and_remat_change_nothing(name):
    x, g, scale, bias = sample(name, 1.0)
    norm = NORMS[name]

    def twice(scale, x):
        return jax.jit(lambda x: call(norm, call(norm, x, scale, bias), scale, bias))(x)

    def by_scan(scale, x):
        layer = jax.checkpoint(lambda x, _: (call(norm, x, scale, bias), None))
        return lax.scan(layer, x, None, length=2)[0]

    want, pull = jax.vjp(twice, scale, x)
    got, pull_scan = jax.vjp(by_scan, scale, x)
    for a, b in zip((got, *pull_scan(g)), (want, *pull(g)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
    batched = jax.vmap(lambda s, x: call(norm, x[None], s, bias)[0])(np.stack([scale] * 3), x)
    np.testing.assert_allclose(batched, call(norm, x, scale, bias), rtol=1e-5, atol=1e-6)


# Devices

SPREAD = {
    "layer": (layer_norm, {}, 2, {}),
    "rms": (rms_norm, {}, 2, {}),
    "group": (group_norm, {"num_groups": 2, "reduction_axes": (1, 2)}, 1, {"num_groups": 2}),
    "instance": (instance_norm, {}, 1, {}),
}


@pytest.mark.parametrize("name", SPREAD)
@pytest.mark.parametrize("masked", [False, True])
def test_spread_over_devices_as_on_one(name, masked):
    """Weighted by count, where Flax averages the devices' averages; a device that is masked out adds nothing."""
    function, options, axis, whole = SPREAD[name]
    rng = np.random.default_rng(0)
    x, g = (rng.normal(size=(2, 8, 16)).astype(np.float32) for _ in range(2))
    where = rng.random((2, 8, 16)) < 0.6
    where[(slice(None),) * axis + (slice(0, 2),)] = False  # whole devices
    where = where if masked else None
    spec = P(*(None,) * axis, "d")

    def local(x, g, where):
        return jax.vjp(lambda x: function(x, where=where, axis_name="d", **options), x)[1](g)[0]

    def forward(x, where):
        return function(x, where=where, axis_name="d", **options)

    y = devices.sharded(forward, 8, spec, spec)(x, where)
    dx = devices.sharded(local, 8, spec, spec)(x, g, where)
    want, pull = jax.vjp(lambda x: function(x, where=where, **whole), x)
    np.testing.assert_allclose(y, want, rtol=1e-5, atol=2e-6)
    np.testing.assert_allclose(dx, pull(g)[0], rtol=1e-5, atol=2e-6)


def test_groups_of_devices():
    x = np.random.default_rng(0).normal(size=(8, 5, 3)).astype(np.float32)
    x[:4] += 3
    groups = [[0, 1, 2, 3], [4, 5, 6, 7]]
    spread = jax.pmap(
        lambda x: layer_norm(x, reduction_axes=0, axis_name="d", axis_index_groups=groups), axis_name="d"
    )(x)  # fmt: skip
    want = layer_norm(x.reshape(2, 20, 3), reduction_axes=1).reshape(x.shape)
    np.testing.assert_allclose(spread, want, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("name", ["layer", "group", "instance"])
def test_a_sharded_batch_under_jit(name, kind):
    rng = np.random.default_rng(0)
    x, g = (rng.normal(size=(8, 4, 6)).astype(np.float32) for _ in range(2))
    options = {"num_groups": 2} if name == "group" else {}
    mesh = devices.mesh(8, kind=kind)

    def run(x, g):
        y, pull = jax.vjp(lambda x: NORMS[name].function(x, **options), x)
        return y, pull(g)[0]

    want = run(x, g)
    with jax.set_mesh(mesh):
        placed = [jax.device_put(t, NamedSharding(mesh, P("d"))) for t in (x, g)]
        got = jax.jit(run)(*placed)
    for a, b in zip(got, want, strict=True):
        assert a.sharding.spec[0] == "d"
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-6)


# Errors

WRONG = {
    "integers": (lambda x: layer_norm(x.astype(int)), "`x` must be floating-point"),
    "axis": (lambda x: rms_norm(x, axis=4), "`axis` must hold integers from -4 to 3"),
    "reduction_axes": (lambda x: layer_norm(x, reduction_axes=(1, 1)), "`reduction_axes` names an axis twice"),
    "scale": (lambda x: layer_norm(x, np.ones(5)), r"`scale` must have the shape of the features, \(6,\)"),
    "bias": (lambda x: instance_norm(x, None, np.ones((1, 2))), "`bias` must have the shape"),
    "where": (lambda x: group_norm(x, num_groups=2, where=np.ones(5)), "`where` must broadcast"),
    "pivot": (lambda x: layer_norm(x, pivot="running"), "`pivot` must be one of 'auto', 'zero', 'sample', None"),
    "epsilon": (lambda x: layer_norm(x, epsilon=-1.0), "`epsilon` must be"),
    "residual": (lambda x: rms_norm(x, residual=x[0]), "`residual` must have the shape of the input"),
    "activation": (lambda x: layer_norm(x, activation="swish"), "`activation` must be one of"),
    "dtype": (lambda x: layer_norm(x, dtype=int), "`dtype` must be floating-point"),
    "groups": (lambda x: group_norm(x, num_groups=4), r"Number of groups \(4\) does not divide .* \(6\)"),
    "no groups": (lambda x: group_norm(x, num_groups=0), r"Number of groups \(0\)"),
    "the default groups": (lambda x: group_norm(x), r"Number of groups \(32\)"),
    "half a group": (lambda x: group_norm(x, num_groups=2.0), "`num_groups` must be a positive integer .* it is 2.0"),
    "a word": (lambda x: nnx.GroupNorm(6, "2", rngs=flax_nnx.Rngs(0))(x), "`num_groups` must be a .* but it is '2'"),
    "no whole size": (lambda x: linen.GroupNorm(None, 1.5).init({}, x), "`group_size` must be a .* but it is 1.5"),
    "group size": (lambda x: group_norm(x, num_groups=None, group_size=4), r"\(6\) is not multiple of .* \(4\)"),
    "neither": (lambda x: group_norm(x, num_groups=None), "Either `num_groups` or `group_size`"),
    "both": (lambda x: group_norm(x, num_groups=2, group_size=2), "pass `num_groups=None`"),
    "channels": (lambda x: group_norm(x, num_groups=2, reduction_axes=(1, 2)), "must include the final dimension"),
    "several channel axes": (lambda x: group_norm(x, num_groups=2, axis=(1, 3)), "`axis` must be one axis"),
    "batch": (lambda x: instance_norm(x, axis=(0, 3)), "cannot include the leading dimension"),
}


@pytest.mark.parametrize("case", WRONG)
def test_errors_name_the_argument(case):
    wrong, message = WRONG[case]
    with pytest.raises(ValueError, match=message):
        wrong(np.ones(SHAPE, np.float32))
