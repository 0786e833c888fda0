"""Numbers whose deviation is 1e13 or more: their squares fit into float32, the cubes of their inverses do not."""

import jax
import numpy as np
import pytest

from bnjax import NORMS
from tests.kit.formulas import ROWS
from tests.kit.norms import expected, gradients, inputs, sample

POINTWISE = ["lrn", *(name for name in ROWS if not NORMS[name].statistics)]  # no division by a deviation


@pytest.mark.parametrize("sigma", [1e13, 1e15])
@pytest.mark.parametrize("name", [name for name in ROWS if name not in POINTWISE])
def test_gradients_do_not_underflow(name, sigma):
    x, g, variables = sample(name)
    x = (x * sigma).astype(np.float32)
    dx, dparams = gradients(name, x, g, variables, None, inputs(name, x))[2:]
    # JAX's derivative of `eigh`, in the formula, is NaN for numbers above 1e8. Epsilon is nothing beside either size.
    unit = sigma / 1e4 if name == "dbn" else 1
    (*_, want_dx, want_dparams), _ = expected(name, x.astype(np.float64) / unit, g, variables)
    want_dx = want_dx / unit
    for got, want in zip(jax.tree.leaves((dx, dparams)), jax.tree.leaves((want_dx, want_dparams)), strict=True):
        assert np.abs(np.asarray(got, np.float64) - want).max() <= 1e-5 * np.abs(want).max()
