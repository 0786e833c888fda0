"""PyTorch, replayed from files that it wrote (`golden/make.py`): steps of BatchNorm, the others' gradients."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bnjax
from bnjax import Moments, batch_norm, normalize
from tests.norms.golden.make import DTYPES, LAYERS, RATE, SHAPES, STEPS

FOLDER = Path(__file__).parent / "golden"
FILES = sorted(FOLDER.glob("nc*.npz"))  # of BatchNorm
TOLERANCES = {"float64": {"rtol": 1e-11, "atol": 1e-13}, "float32": {"rtol": 1e-5, "atol": 2e-6}}


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
                assert value.dtype == dtype
                np.testing.assert_allclose(value, want, err_msg=f"{name}, step {i}", **TOLERANCES[str(dtype)])
            scale, bias = scale - RATE * dscale, bias - RATE * dbias


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", LAYERS)
def test_output_and_gradients_are_those_of_pytorch(name, dtype):
    with np.load(FOLDER / f"layers_{dtype}.npz") as golden:
        arrays = {k.split("/")[1]: golden[k] for k in golden if k.startswith(f"{name}/")}
    x, g, y, dx = (arrays.pop(k) for k in ("x", "g", "y", "dx"))
    slopes = {k: arrays.pop(f"d{k}") for k in list(arrays) if f"d{k}" in arrays}
    params = {k: arrays.pop(k) for k in slopes}  # what is left are buffers

    def loss(x, params):
        y = LAYERS[name].ours(bnjax, x, params | arrays)
        return (y * g).sum(), y

    with jax.enable_x64(dtype == "float64"):
        grads, got = jax.jit(jax.grad(loss, (0, 1), has_aux=True))(x, params)
    assert jax.tree.structure(grads) == jax.tree.structure((dx, slopes))
    for value, want in zip(jax.tree.leaves((got, grads)), jax.tree.leaves((y, (dx, slopes))), strict=True):
        assert value.dtype == dtype
        np.testing.assert_allclose(value, want, **TOLERANCES[dtype])


def test_all_files_are_there():
    assert [f.stem for f in FILES] == [f"{s}_{d}" for s in sorted(SHAPES) for d in DTYPES]
    assert {f.stem for f in FOLDER.glob("*.npz")} - {f.stem for f in FILES} == {f"layers_{d}" for d in DTYPES}
