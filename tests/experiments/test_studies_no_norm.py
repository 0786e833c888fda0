"""The study without norms: what its starts promise, and what is called the largest rate."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from experiments.lab.rates import metric
from experiments.results.evidence import Evidence, Row, cell_name
from experiments.studies import no_norm


def after_the_blocks(way, blocks, x):
    net = no_norm.Residual(way, blocks)
    variables = net.init(jax.random.key(0), x, False)
    params = variables["params"]
    stem = nn.Dense(no_norm.WIDTH).apply({"params": params["stem"]}, x)
    block = no_norm.Block(way, blocks, False)
    y = stem
    for i in range(blocks):
        own = jax.tree.map(lambda p, i=i: p[i], params["blocks"])
        stats = jax.tree.map(lambda p, i=i: p[i], variables.get("batch_stats", {}).get("blocks", {}))
        y, _ = block.apply({"params": own, "batch_stats": stats}, y, jnp.array(1 + no_norm.ALPHA**2 * i))
    return net, variables, stem, y


@pytest.mark.parametrize("way", ["zero", "fixup"])
def test_blocks_that_begin_at_zero_add_nothing(way):
    x = jax.random.normal(jax.random.key(1), (5, 7))
    _, _, stem, y = after_the_blocks(way, 3, x)
    np.testing.assert_array_equal(y, stem)


@pytest.mark.parametrize("way", ["batch", "zero", "fixup", "scaled_ws"])
def test_scanned_blocks_are_those_that_are_written_out(way):
    x = jax.random.normal(jax.random.key(1), (5, 7))
    net, variables, _, y = after_the_blocks(way, 3, x)
    stats = variables.get("batch_stats", {}).get("norm", {})
    last = no_norm.active(way, False, "norm")
    if way in no_norm.NORMS:
        module = no_norm.bnn.make_norm(way, **({"use_running_average": True} if way == "batch" else {}))()
        y = jax.nn.relu(module.apply({"params": variables["params"]["norm"], "batch_stats": stats}, y))
    else:
        y = last(y)
    logits = nn.Dense(10).apply({"params": variables["params"]["head"]}, y)
    np.testing.assert_allclose(net.apply(variables, x, False), logits, atol=1e-5)


def test_scaled_weights_keep_the_variance_that_is_followed():
    """At the start a block gets numbers of a variance near one: 1 + ALPHA^2 i of them all, divided by it."""
    x = jax.random.normal(jax.random.key(1), (4000, 256))
    _, _, stem, y = after_the_blocks("scaled_ws", 8, x)
    grown = jnp.var(y) / jnp.var(stem)
    # The stem does not give a variance of exactly one, and the width is 32: within a fifth.
    np.testing.assert_allclose(grown, 1 + no_norm.ALPHA**2 * 8, rtol=0.2)


def test_the_largest_rate_is_the_largest_that_is_nearly_the_best():
    of_rates = {0.01: 0.90, 0.03: 0.99, 0.1: 0.95, 0.3: 0.88, 1.0: 0.10}
    cell = cell_name({"norm": "batch", "blocks": no_norm.BLOCKS[-1]})
    rows = [Row("s", cell, 0, metric(r), 300, of_rates.get(r, 0.1), "d", "c", "v") for r in no_norm.RATES]
    # 0.9 of 0.99 is 0.891: the rate 0.3 is a little below it.
    np.testing.assert_allclose(no_norm.largest_rates(Evidence(rows), "batch"), [-1.0])
