"""What the pivot of a norm of examples costs in accuracy, by dtype: against float64 of the same rounded input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bnjax

SHAPE = (8, 16, 16, 32)
NORMS = {  # the function, and the axes measured over of the input split in groups
    "layer": (bnjax.layer_norm, (3,), 1),
    "group": (lambda x, s, b, **how: bnjax.group_norm(x, s, b, num_groups=4, **how), (1, 2, 4), 4),
    "instance": (bnjax.instance_norm, (1, 2), 1),
}


def expected(x, dy, axes, groups, epsilon=1e-6):
    """y, dx and dscale in float64, where scale is one and bias zero."""
    split = (*SHAPE[:-1], groups, SHAPE[-1] // groups) if groups > 1 else SHAPE
    x, dy = (np.asarray(t, np.float64).reshape(split) for t in (x, dy))
    mean = x.mean(axes, keepdims=True)
    r = (((x - mean) ** 2).mean(axes, keepdims=True) + epsilon) ** -0.5
    y = (x - mean) * r
    dx = r * (dy - dy.mean(axes, keepdims=True) - y * (dy * y).mean(axes, keepdims=True))
    return y.reshape(SHAPE), dx.reshape(SHAPE), (dy * y).reshape(SHAPE).sum((0, 1, 2))


def ulps(found, want, dtype):
    """The largest error, in units of the last place of the result or of 1, what is larger."""
    spacing = np.spacing(np.maximum(np.abs(want), 1).astype(dtype)).astype(np.float64)
    return np.max(np.abs(np.asarray(found, np.float64) - want) / spacing)


@pytest.mark.parametrize("name", NORMS)
@pytest.mark.parametrize(
    ("dtype", "pivot", "ratio", "most", "most_dscale"),
    [
        ("bfloat16", "auto", 2**5, 0.6, 2e-4),
        ("bfloat16", "auto", 2**7, 1, 3e-3),
        ("bfloat16", "auto", 2**8, 2, 3e-3),  # all that bfloat16 can hold: here it rounds to two deviations
        ("bfloat16", "sample", 2**8, 0.51, 1e-5),
        ("bfloat16", None, 2**8, 0.51, 1e-4),
        ("float16", "auto", 2**11, 0.51, 1e-5),
        ("float32", "zero", 2**2, 128, 1e-5),  # 4 eps (1 + mean^2 / var), relative, of the variance
    ],
)
def test_the_error_of_a_pivot(name, dtype, pivot, ratio, most, most_dscale):
    norm, axes, groups = NORMS[name]
    rng = np.random.default_rng(ratio)
    x = jnp.asarray(ratio + rng.standard_normal(SHAPE), dtype)
    dy = jnp.asarray(rng.standard_normal(SHAPE), dtype)
    y, back = jax.vjp(lambda x, s, b: norm(x, s, b, pivot=pivot), x, jnp.ones(32), jnp.zeros(32))
    dx, dscale, _ = back(dy)
    want_y, want_dx, want_dscale = expected(x, dy, axes, groups)
    assert ulps(y, want_y, x.dtype) <= most
    assert ulps(dx, want_dx, x.dtype) <= most
    assert np.abs(np.asarray(dscale) - want_dscale).max() <= most_dscale * np.abs(want_dscale).max()


@pytest.mark.parametrize("name", NORMS)
def test_bfloat16_waits_for_no_sample_and_float32_slices_before_it_widens(name):
    norm, *_ = NORMS[name]

    def slices(dtype):
        text = str(jax.make_jaxpr(norm)(jnp.ones(SHAPE, dtype), jnp.ones(32), jnp.zeros(32)))
        return [line for line in text.splitlines() if " = slice[" in line]

    assert not slices("bfloat16")
    assert slices("float16")
    assert all("f16" in line.split("=")[0] for line in slices("float16"))


@pytest.mark.parametrize("pivot", ["auto", "zero"])
def test_a_pivot_of_zero_holds_under_a_mask_and_over_devices(pivot):
    x = jnp.asarray(3 + np.random.default_rng(0).standard_normal((4, 2, 3, 8)), jnp.bfloat16)
    mask = np.arange(48).reshape(2, 3, 8) % 3 > 0
    over_devices = jax.vmap(
        lambda x, where: bnjax.layer_norm(x, axis=(1, 2), where=where, axis_name="d", pivot=pivot),
        (1, 0), 1, axis_name="d",
    )  # fmt: skip
    m = bnjax.moments(x.astype(jnp.float32), (1, 2, 3), where=mask, keepdims=True)
    want = bnjax.normalize(x.astype(jnp.float32), m, epsilon=1e-6)
    np.testing.assert_allclose(np.asarray(over_devices(x, mask), np.float64), want, rtol=2**-8)
