"""PyTorch, replayed from files that it wrote (`tests/golden/make.py`): five training steps and an evaluation."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bnjax import Moments, batch_norm, normalize
from tests.golden.make import DTYPES, RATE, SHAPES, STEPS

FILES = sorted((Path(__file__).parent / "golden").glob("*.npz"))


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.stem)
@pytest.mark.parametrize("channels", ["first", "last"])
def test_five_steps_and_an_evaluation_are_those_of_pytorch(file, channels):
    golden = np.load(file)
    dtype = golden["x"].dtype
    axis = 1 if channels == "first" else -1
    exact = dtype == np.float64

    def place(t):
        return t if channels == "first" else np.moveaxis(t, 1, -1)

    def step(x, g, scale, bias, running, train):
        def loss(x, scale, bias):
            if train:
                y, new = batch_norm(x, running, scale, bias, axis=axis, momentum=0.9, unbiased=True)
            else:
                y, new = normalize(x, running, scale, bias, axis=axis), running
            return (y * g).sum(), (y, new)

        return jax.grad(loss, (0, 1, 2), has_aux=True)(x, scale, bias)

    with jax.enable_x64(exact):
        step = jax.jit(step, static_argnames="train")
        scale, bias = jnp.asarray(golden["scale"]), jnp.asarray(golden["bias"])
        running = Moments(jnp.zeros((), dtype), jnp.zeros_like(scale), jnp.ones_like(scale))
        for i in range(STEPS + 1):
            (dx, dscale, dbias), (y, running) = step(
                place(golden["x"][i]), place(golden["g"][i]), scale, bias, running, train=i < STEPS
            )
            got = {"y": y, "dx": dx, "dscale": dscale, "dbias": dbias}
            got |= {"running_mean": running.mean, "running_var": running.var}
            for name, value in got.items():
                want = place(golden[name][i]) if name in ("y", "dx") else golden[name][i]
                tolerance = {"rtol": 1e-11, "atol": 1e-13} if exact else {"rtol": 1e-5, "atol": 2e-6}
                assert value.dtype == dtype
                np.testing.assert_allclose(value, want, err_msg=f"{name}, step {i}", **tolerance)
            scale, bias = scale - RATE * dscale, bias - RATE * dbias


def test_all_files_are_there():
    assert [f.stem for f in FILES] == [f"{s}_{d}" for s in sorted(SHAPES) for d in DTYPES]
