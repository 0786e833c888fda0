"""The table of the norms of a model."""

import jax
import numpy as np
import pytest
from flax import linen as nn

from bnjax import linen as bnn
from bnjax.linen import summary
from tests.kit import models_linen
from tests.kit.models_linen import LINEN


@pytest.mark.parametrize("name", ["axis", "boxed", "own", "shared", "odd", "frozendict", "transformer", "wrapped"])
def test_every_norm_has_a_row(name):
    case, variables = LINEN[name], models_linen.variables(name)
    table = summary(case.make(), variables, case.example, call=case.call)
    rows = {row.path: row for row in table.rows}
    assert len(rows) == len(table.rows)
    flat = dict(jax.tree_util.tree_leaves_with_path(nn.meta.unbox(variables)))
    leaves = {tuple(k.key for k in path): leaf for path, leaf in flat.items()}
    for (collection, *own, last), leaf in leaves.items():
        if collection == "batch_stats" and (collection, *own, "var") in leaves and last in ("mean", "var"):
            low, high = getattr(rows["/".join(own)], last)
            np.testing.assert_allclose((low, high), (leaf.min(), leaf.max()), rtol=1e-6)
        if last == "scale" and collection == "params":
            assert rows["/".join(own)].parameters["scale"] == leaf.shape
    lines = str(table).splitlines()
    assert len(lines) == len(rows) + 2
    assert all(row.path in str(table) for row in table.rows)


def test_what_a_row_says():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.BatchNorm(use_running_average=True, momentum=0.8, axis=1, axis_name="i", name="flax")(x)
            x = bnn.GroupNorm(num_groups=1, name="ours")(x)
            if self.is_initializing():
                x = nn.BatchNorm(use_running_average=True, name="idle")(x)
            return nn.LayerNorm(name="layer", use_bias=False)(x)

    x = jax.ShapeDtypeStruct((2, 3, 4), np.float32)
    variables = Net().init(jax.random.key(0), np.ones((2, 3, 4), np.float32))
    rows = {row.path: row for row in summary(Net(), variables, x).rows}
    flax, ours, layer, idle = (rows[name] for name in ("flax", "ours", "layer", "idle"))
    assert (flax.kind, flax.axis, flax.momentum, flax.axis_name) == ("batch", 1, 0.8, "i")
    assert (flax.mean, flax.var, flax.parameters) == ((0, 0), (1, 1), {"bias": (3,), "scale": (3,)})
    assert (ours.kind, layer.kind, layer.mean, layer.momentum) == ("group", "layer", None, None)
    assert layer.parameters == {"scale": (4,)}
    assert (idle.called, flax.called) == (False, True)
    assert "not called" in str(summary(Net(), variables, x))


def test_a_model_without_norms_raises():
    model = nn.Dense(2)
    with pytest.raises(ValueError, match=r"`summary` found nothing to do. The model has no norm"):
        summary(model, model.init(jax.random.key(0), np.ones((1, 2))), np.ones((1, 2)))
