"""Labels for optax."""

import jax
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax.core import freeze as frozen

from bnjax.linen import frozen_labels
from tests.kit import models_linen

PARAMS = {"conv1": {"kernel": 1.0, "bias": 2.0}, "norm": {"scale": 3.0}, "convs": {"kernel": 4.0}}


def test_paths_of_leaves_are_searched():
    assert frozen_labels(PARAMS, "^conv1/") == {
        "conv1": {"kernel": "frozen", "bias": "frozen"}, "norm": {"scale": "train"}, "convs": {"kernel": "train"},
    }  # fmt: skip
    assert frozen_labels(PARAMS, "kernel$")["convs"] == {"kernel": "frozen"}
    assert frozen_labels(frozen(PARAMS), ".") == frozen(jax.tree.map(lambda _: "frozen", PARAMS))


@pytest.mark.parametrize("name", ["boxed", "lifted_last", "frozendict"])
def test_optax_takes_them_and_a_box_has_one_label(name):
    params = models_linen.variables(name)["params"]
    labels = frozen_labels(params, "scale$")
    tx = optax.multi_transform({"train": optax.scale(2.0), "frozen": optax.set_to_zero()}, labels)
    ones = jax.tree.map(np.ones_like, params)
    updates, _ = tx.update(ones, tx.init(params), params)
    assert jax.tree.structure(updates) == jax.tree.structure(params)
    for path, update in jax.tree_util.tree_leaves_with_path(nn.meta.unbox(updates)):
        assert (np.asarray(update) == (0 if path[-1].key == "scale" else 2)).all()


def test_what_is_wrong_is_said():
    with pytest.raises(ValueError, match=r"`match` is found in no path: it is 'head'.*conv1/kernel"):
        frozen_labels(PARAMS, "head")
    with pytest.raises(ValueError, match=r"`match`.*regular expression"):
        frozen_labels(PARAMS, "(")
    with pytest.raises(ValueError, match=r"`match`.*regular expression.*None"):
        frozen_labels(PARAMS, None)
