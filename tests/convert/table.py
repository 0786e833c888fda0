"""The errors of every layout in every direction."""

import jax
import numpy as np
from flax import linen as nn  # noqa: F401
from flax import nnx

from bnjax import linen as bl
from bnjax import nnx as bx
from tests.convert import sources
from tests.convert.cases import CASES, shapes_of


def difference(got, want):
    """The largest, as a part of the largest entry."""
    got, want = np.asarray(got), np.asarray(want)
    assert got.shape == want.shape
    return float(np.abs(got - want).max() / np.abs(want).max())


def torch_to_linen(case):
    module = sources.torch_module(case.torch)
    model, shapes = shapes_of(case)
    variables, _ = bl.from_torch(module, model, shapes, case.x)
    return difference(model.apply(variables, case.x), sources.torch_output(module, case.x))


def torch_to_nnx(case):
    module = sources.torch_module(case.torch)
    model = case.nnx(nnx.Rngs(0))
    bx.from_torch(module, model, case.x)
    model.eval()
    return difference(model(jax.numpy.asarray(case.x)), sources.torch_output(module, case.x))


def linen_to_torch(case):
    """The output of a module of PyTorch with the arrays of a linen model, against that model."""
    import torch

    module = sources.torch_module(case.torch)
    model, shapes = shapes_of(case)
    variables, report = bl.from_torch(module, model, shapes, case.x)
    moved = jax.tree.map(lambda t: t * 0.9, variables)
    other = sources.torch_module(case.torch, seed=1)
    arrays = bl.to_torch(model, moved, case.x, rename=report)
    if not case.back and "weight" in arrays and hasattr(other, "parametrizations"):
        torch.nn.utils.parametrize.remove_parametrizations(other, "weight")
    other.load_state_dict({name: torch.from_numpy(np.array(value)) for name, value in arrays.items()})
    return difference(sources.torch_output(other, case.x), model.apply(moved, case.x))


def keras_to_linen(case):
    source = sources.keras_model(case.keras, case.x)
    model, shapes = shapes_of(case)
    variables, _ = bl.from_keras(source, model, shapes, case.x)
    return difference(model.apply(variables, case.x), source(case.x))


def keras_to_nnx(case):
    source = sources.keras_model(case.keras, case.x)
    model = case.nnx(nnx.Rngs(0))
    bx.from_keras(source, model, case.x)
    model.eval()
    return difference(model(jax.numpy.asarray(case.x)), source(case.x))


DIRECTIONS = {
    "PyTorch to linen": (torch_to_linen, ("torch",)),
    "PyTorch to nnx": (torch_to_nnx, ("torch", "nnx")),
    "linen to PyTorch": (linen_to_torch, ("torch",)),
    "Keras to linen": (keras_to_linen, ("keras",)),
    "Keras to nnx": (keras_to_nnx, ("keras", "nnx")),
}
ALL = [
    (direction, name)
    for direction, (_, needs) in DIRECTIONS.items()
    for name, case in CASES.items()
    if all(getattr(case, need) is not None for need in needs)
]


def error(direction, name):
    """The error of one layout in one direction."""
    with jax.default_matmul_precision("highest"):
        return DIRECTIONS[direction][0](CASES[name])
