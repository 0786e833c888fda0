"""BatchNorm for linen and nnx against Flax's: output, running statistics, gradients, dtypes, over what it takes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.kit.dropin import APIS, FLAX, OURS, RUN, assert_same, random, start

IMAGE = (4, 3, 2, 5)
HALF = np.arange(4).reshape(4, 1, 1, 1) % 2 == 0

BOTH = {
    "default": {},
    "bfloat16 x": {"x": jnp.bfloat16},
    "float16 x": {"x": jnp.float16},
    "integer x": {"x": jnp.int32},
    "int8 x": {"x": jnp.int8},
    "dtype float16": {"dtype": jnp.float16, "eval": ("linen",)},
    "dtype bfloat16": {"dtype": jnp.bfloat16, "eval": ("linen",)},  # nnx: see test_running_statistics_are_never_rounded
    "dtype float32 of bfloat16 x": {"x": jnp.bfloat16, "dtype": jnp.float32},
    "dtype float16 of integer x": {"x": jnp.int32, "dtype": jnp.float16, "eval": ("linen",)},
    "param_dtype float16": {"param_dtype": jnp.float16},
    "param_dtype and dtype float16 of float16 x": {
        "x": jnp.float16, "param_dtype": jnp.float16, "dtype": jnp.float16, "eval": ("linen",),
    },
    "no scale": {"use_scale": False},
    "no bias": {"use_bias": False},
    "no scale, no bias": {"use_scale": False, "use_bias": False},
    "no scale, no bias, bfloat16 x": {"x": jnp.bfloat16, "use_scale": False, "use_bias": False, "eval": ()},
    "momentum 0.9": {"momentum": 0.9, "eval": ()},
    "momentum 0": {"momentum": 0.0, "eval": ()},
    "momentum 1": {"momentum": 1.0, "eval": ()},
    "epsilon 0.1": {"epsilon": 0.1},
    "axis 1": {"axis": 1},
    "axis -2": {"axis": -2, "eval": ()},
    "two passes": {"use_fast_variance": False, "eval": ()},
    "rank 2": {"shape": (6, 5)},
    "mask by example": {"call": {"mask": HALF}},
    "mask of the full shape": {"call": {"mask": np.asarray(random(*IMAGE, seed=9) > 0)}, "eval": ()},
    "mask by position and channel": {"call": {"mask": np.asarray(random(3, 2, 5, seed=9) > -0.8)}, "eval": ()},
    "mask and two passes": {"call": {"mask": HALF}, "use_fast_variance": False, "eval": ()},
    "mask and bfloat16 x": {"call": {"mask": HALF}, "x": jnp.bfloat16, "eval": ()},
}  # fmt: skip
LINEN = {
    "axis (1, -1)": {"axis": (1, -1)},
    "axis (-1, 1)": {"axis": (-1, 1)},
    "integer mask": {"call": {"mask": HALF.astype(np.int32)}},
    "float mask": {"call": {"mask": HALF * 0.25}},
    "complex x": {"x": jnp.complex64},
    "complex x, two passes": {"x": jnp.complex64, "use_fast_variance": False},
    "complex dtype of real x": {"dtype": jnp.complex64},
    "force_float32_reductions=False": {"force_float32_reductions": False},
}


def case(api, *, x=jnp.float32, shape=IMAGE, call=None, eval=APIS, **attributes):
    axes = attributes.get("axis", -1)
    axes = sorted(a % len(shape) for a in (axes if isinstance(axes, tuple) else (axes,)))
    params, stats = start(
        tuple(shape[a] for a in axes),
        attributes.get("param_dtype", jnp.float32),
        attributes.get("use_scale", True),
        attributes.get("use_bias", True),
    )
    if not attributes.get("force_float32_reductions", True):
        stats = jax.tree.map(lambda t: t.astype(attributes.get("param_dtype", jnp.float32)), stats)
    values = random(*shape, dtype=x) * (1 if jnp.issubdtype(x, jnp.integer) else 2) + jnp.ones((), x)
    return values, params, stats, call, attributes, api in eval


@pytest.mark.parametrize(
    ("api", "options"),
    [pytest.param(api, case, id=f"{api}-{name}") for api in APIS for name, case in BOTH.items()]
    + [pytest.param("linen", case, id=f"linen-{name}") for name, case in LINEN.items()],
)
def test_same_as_flax(api, options):
    x, params, stats, call, attributes, evaluate = case(api, **options)

    @jax.jit
    def run(x, params, stats):
        return [
            [RUN[api](cls, x, params, stats, train=train, call=call, **attributes) for cls in (OURS[api], FLAX[api])]
            for train in ((True, False) if evaluate else (True,))
        ]

    for ours, flax in run(x, params, stats):
        assert_same(ours, flax)


@pytest.mark.filterwarnings("ignore:scatter inputs have incompatible types")  # Flax's nnx
@pytest.mark.parametrize("options", [{"x": jnp.float64}, {"dtype": jnp.float64}], ids=["x", "dtype"])
@pytest.mark.parametrize("api", APIS)
def test_float64(api, options):
    """As Flax's; but the running state stays as wide as it was (linen's becomes float64 on the way, nnx's does not)."""
    with jax.enable_x64(True):
        x, params, stats, _, attributes, _ = case(api, **options)

        @jax.jit
        def run(x, params, stats):
            return [RUN[api](cls[api], x, params, stats, gradients=False, **attributes) for cls in (OURS, FLAX)]

        ours, flax = run(x, params, stats)
        for name in ("mean", "var"):
            assert ours["stats"][name].dtype == stats[name].dtype == jnp.float32
            np.testing.assert_allclose(ours["stats"][name], flax["stats"][name], rtol=2e-7)
        # Measured: 4e-16 and 4e-14 (E[x^2] - E[x]^2 in Flax).
        assert_same(ours["y"], flax["y"], rounding=1000)
