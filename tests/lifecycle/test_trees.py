"""Random trees of modules: every pair of statistics is in the report once, and what is done has the right numbers."""

from functools import partial

import jax
import numpy as np
from flax import linen as nn
from hypothesis import given, settings
from hypothesis import strategies as st

from bnjax.linen import freeze, recalibrate, summary, swap, upgrade
from tests.kit import oddities_linen as odd
from tests.kit import population
from tests.kit.cases import as_if_trained

RNG = np.random.default_rng(0)
BATCHES = [RNG.normal(1, 2, (n, 2, 2, 4)).astype(np.float32) for n in (3, 2)]
NORM = partial(nn.BatchNorm, use_running_average=True)


class Root(nn.Module):
    """The path of the root is empty; it may have statistics itself."""

    tree: object

    @nn.compact
    def __call__(self, x):
        return Tree(self.tree, name="tree")(x)


class Tree(nn.Module):
    """A leaf is the name of a block; a tuple is a module with children, and says how it is lifted."""

    tree: object

    @nn.compact
    def __call__(self, x):
        if isinstance(self.tree, str):
            return BLOCKS[self.tree](x)
        how, *children = self.tree
        for i, child in enumerate(children):
            lifted = {"variable_axes": {"params": 0, "batch_stats": 0}, "split_rngs": {"params": True}}
            if how == "scan":
                module = Tree(child, name=f"child{i}")
                x, _ = nn.scan(lambda m, x, _: (m(x), None), length=2, **lifted)(module, x, None)
            else:
                x = {"plain": Tree, "remat": nn.remat(Tree), "jit": nn.jit(Tree)}[how](child, name=f"child{i}")(x)
        return nn.relu(x) + x


def twice(x):
    norm = NORM()
    return norm(norm(x) + x)


BLOCKS = {
    "norm": lambda x: NORM()(x),
    "dense": lambda x: NORM()(nn.Dense(4)(x)),
    "first": lambda x: NORM(axis=1)(x),
    "subclass": lambda x: odd.NormRelu(use_running_average=True)(x),
    "own": lambda x: odd.OwnBatchNorm()(x, False),
    "layer": lambda x: nn.LayerNorm()(x),
    "twice": twice,
    "branch": lambda x: NORM()(x) if x.shape[0] > 99 else x + 0 * NORM()(x),
}
LEAVES = st.sampled_from(sorted(BLOCKS))
LIFTS = st.sampled_from(["plain", "scan", "remat", "jit"])


def nodes(children):
    return st.builds(lambda how, some: (how, *some), LIFTS, st.lists(children, min_size=1, max_size=2))


TREES = nodes(LEAVES | nodes(LEAVES))


@settings(max_examples=6)
@given(TREES)
def test_every_pair_is_in_the_report_once(tree):
    model = Root(tree)
    variables = as_if_trained(jax.jit(model.init)(jax.random.key(0), BATCHES[0]))
    pairs = population.pairs_of({"batch_stats": variables.get("batch_stats", {})})
    run = lambda: jax.eval_shape(model.apply, variables, BATCHES[0])  # noqa: E731
    own = {path for path in pairs if "OwnBatchNorm" in path}
    for context in (upgrade, freeze, partial(swap, "layer", kind="batch")):
        if pairs.keys() - own:
            with context() as report:
                run()
            # A layer norm has no pair, but it was asked for, and says why `freeze` does nothing to it.
            rows = [row for row in report if row.kind != "layer"]
            assert sorted(row.path for row in rows) == sorted(pairs)
            assert {row.path for row in rows if not row.done} == own
    if pairs:
        paths = [row.path for row in summary(model, variables, BATCHES[0]).rows]
        assert pairs.keys() <= set(paths)
        assert len(paths) == len(set(paths))
    if not pairs.keys() - own:
        return
    stats, report = recalibrate(model, variables, BATCHES)
    assert sorted(row.path for row in report) == sorted(pairs)
    assert set(report.refused) == own
    want = population.one_pass(population.Subject(variables, model.apply, population.linen_heard), BATCHES)
    got = population.pairs_of({"batch_stats": stats})
    assert set(want) == set(report.done)
    for path in want:
        std = np.sqrt(want[path].var)
        assert np.max(abs(got[path].mean - want[path].mean) / std) < 1e-4
        assert np.max(abs(got[path].var / want[path].var - 1)) < 1e-4
