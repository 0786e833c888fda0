"""The models that the tests of this folder run on do run, by Flax alone."""

import jax
import numpy as np
import pytest
from flax.core import unfreeze

from tests.kit import models_linen
from tests.kit.models_linen import LINEN


def finite(tree):
    return all(np.isfinite(np.asarray(t, np.float64)).all() for t in jax.tree.leaves(tree))


@pytest.mark.parametrize("name", LINEN)
def test_linen_models_run(name):
    case, variables = LINEN[name], models_linen.variables(name)
    assert finite(models_linen.evaluate(name, variables, case.example))
    if "broadcast" in case.flags:
        with pytest.raises(ValueError, match="broadcast"):
            models_linen.train(name, variables, case.example)
        return
    y, stats = models_linen.train(name, variables, case.example)
    old = unfreeze(variables.get("batch_stats", {}))
    assert finite((y, stats))
    assert jax.tree.structure(unfreeze(stats)) == jax.tree.structure(old)
    assert bool(jax.tree.leaves(stats)) == ("none" not in case.flags)
    if "none" not in case.flags:
        assert any((a != b).any() for a, b in zip(jax.tree.leaves(stats), jax.tree.leaves(old), strict=True))
