"""Every layout against what PyTorch and Keras computed (`make.py`), where neither is installed."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from bnjax import linen as bl
from bnjax import nnx as bx
from tests.convert.cases import CASES, shapes_of
from tests.convert.make import KERAS, read

# Of which several layers have one shape.
ALIKE = ("attention", "stack")
# In nnx the layers are found in another way; what is done with their arrays is the same.
NNX = ("transposed", "dense after flatten", "stack", "weight norm of Flax", "norm of one's own, 1 + scale")


def check(name, output):
    return {"expect": (CASES[name].x, output)} if name in ALIKE else {}


def assert_close(got, want):
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-6 * np.abs(want).max())


@pytest.mark.parametrize("name", CASES)
def test_arrays_of_pytorch_and_back(name):
    case = CASES[name]
    arrays, output = read("torch", name)
    model, shapes = shapes_of(case)
    variables, report = bl.from_torch(arrays, model, shapes, case.x, **check(name, output))
    assert_close(model.apply(variables, case.x), output)
    back = bl.to_torch(model, variables, case.x, rename=report)
    assert all(value.flags.c_contiguous for value in back.values())
    if case.back:
        assert back.keys() == arrays.keys()
        for key, value in arrays.items():
            assert (back[key].dtype, back[key].shape) == (value.dtype, value.shape)
            np.testing.assert_array_equal(back[key], value, err_msg=key)


@pytest.mark.parametrize("name", NNX)
def test_arrays_of_pytorch_and_back_in_nnx(name):
    case = CASES[name]
    arrays, output = read("torch", name)
    model = case.nnx(nnx.Rngs(0))
    report = bx.from_torch(arrays, model, case.x, **check(name, output))
    back = bx.to_torch(model, case.x, rename=report)
    model.eval()
    assert_close(model(jnp.asarray(case.x)), output)
    for key, value in arrays.items() if case.back else ():
        np.testing.assert_array_equal(back[key], value, err_msg=key)


@pytest.mark.parametrize("name", KERAS)
def test_arrays_of_keras(name):
    case = CASES[name]
    arrays, output = read("keras", name)
    model, shapes = shapes_of(case)
    variables, _ = bl.from_keras(arrays, model, shapes, case.x, **check(name, output))
    assert_close(model.apply(variables, case.x), output)
