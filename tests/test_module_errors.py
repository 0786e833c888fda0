"""Modules that do not fit: what they say, and that they say it when they are made or first called."""

import inspect
from functools import partial

import jax
import numpy as np
import pytest
from flax import nnx

import bnjax.linen as bnn
import bnjax.nnx as bnnx
from bnjax import NORMS
from tests.family import ROWS

RNGS = partial(nnx.Rngs, 0)
X = np.random.default_rng(0).normal(size=(4, 2, 2, 6)).astype(np.float32)
STATEFUL = [name for name in ROWS if NORMS[name].takes_running_average]
SYNCED = [name for name in ROWS if "axis_name" in inspect.signature(NORMS[name].function).parameters]


def training(name, train=True):
    return {"use_running_average": not train} if NORMS[name].takes_running_average else {}


# Names


@pytest.mark.parametrize("name", SYNCED)
def test_every_norm_says_where_an_axis_name_is_bound(name):
    options = dict(ROWS[name].options) | {"axis_name": "nowhere"}
    linen = bnn.make_norm(name, **options)()
    model = bnnx.make_norm(name, 6, **options, rngs=RNGS())
    variables = linen.clone(axis_name=None).init(jax.random.key(0), X, **training(name))
    said = r"`axis_name` is 'nowhere', but no axis 'nowhere' is bound here.*`jit` needs none"
    with pytest.raises(ValueError, match=said):
        jax.eval_shape(lambda: linen.apply(variables, X, **training(name), mutable="batch_stats"))
    with pytest.raises(ValueError, match=said):
        model(X, **training(name))


def test_recurrent_cells_say_where_an_axis_name_is_bound():
    cell = bnnx.BatchNormLSTMCell(6, 3, max_steps=2, axis_name="nowhere", rngs=RNGS())
    with pytest.raises(ValueError, match="no axis 'nowhere' is bound here"):
        cell(cell.initialize_carry((4, 6)), X[:, 0, 0])
