"""Another norm in the place of a norm: its numbers, what it keeps, and what it refuses."""

from functools import partial

import jax
import numpy as np
import pytest
from flax import linen as nn

from bnjax import NORMS
from bnjax import linen as bnn
from bnjax.linen import make_norm, swap
from tests.kit import models_linen
from tests.kit.models_linen import LINEN

X = np.random.default_rng(0).normal(1, 2, (4, 3, 16)).astype(np.float32)


class Net(nn.Module):
    norm: type = partial(nn.BatchNorm, momentum=0.9, epsilon=1e-3)
    argument: str | None = "use_running_average"

    @nn.compact
    def __call__(self, x, train):
        mode = {self.argument: not train} if self.argument else {}
        return self.norm(name="norm")(nn.Dense(16, name="dense")(x), **mode)


VARIABLES = models_linen.as_if_trained(Net().init(jax.random.key(0), X, True))
OPTIONS = {"ghost": {"virtual_batch_size": 2}}
ACTIVATIONS = [n for n in NORMS if n not in ("spectral", "weight", "ws", "scaled_ws", "batch")]


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_numbers_are_those_of_the_module_built_so(name):
    options = OPTIONS.get(name, {})
    own = make_norm(name, **options)
    known = set(own.func.__dataclass_fields__)
    kept = {"momentum": 0.9, "epsilon": 1e-3} if "momentum" in known else {}
    if "num_groups" in known:
        kept["num_groups"] = 16
    model = Net(partial(own, **kept))
    init = {"rngs": jax.random.key(1), "x": X, "train": True}
    shapes = jax.eval_shape(lambda: model.init(**init))

    @jax.jit
    def run(variables):
        with swap(name, **options) as report:
            got = Net().apply(variables, X, False), Net().apply(variables, X, True, mutable=["batch_stats"])
        assert report.done == ("norm",)
        return got, (model.apply(variables, X, False), model.apply(variables, X, True, mutable=["batch_stats"]))

    with swap(name, **options):
        assert jax.eval_shape(lambda: Net().init(**init)) == shapes
    variables = models_linen.as_if_trained(jax.tree.map(lambda t: np.ones(t.shape, t.dtype), shapes))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-6), *run(variables))


def test_parameters_of_equal_name_and_shape_are_kept():
    with swap("layer") as report:
        got = Net().apply(VARIABLES, X, True)
    want = Net(bnn.LayerNorm, None).apply({"params": VARIABLES["params"]}, X, True)
    np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-6)
    assert report.done == ("norm",)


def test_what_is_missing_raises_and_init_inside_makes_it():
    words = r"`swap` cannot make the norm at 'norm' a 'scale', because a parameter(.|\n)*with swap(.|\n)*model\.init"
    with pytest.raises(ValueError, match=words), swap("scale"):
        Net().apply(VARIABLES, X, False)
    with swap("scale"):
        variables = Net().init(jax.random.key(0), X, True)
        Net().apply(variables, X, False)


@pytest.mark.parametrize(("channels", "asked", "groups"), [(16, 32, 16), (48, 32, 24), (7, 4, 1), (12, 5, 4)])
def test_groups_are_the_largest_divisor(channels, asked, groups):
    x = np.random.default_rng(1).normal(1, 2, (2, 3, channels)).astype(np.float32)
    model = nn.BatchNorm(use_running_average=True)
    with swap("group", num_groups=asked):
        got = model.apply(model.init(jax.random.key(0), x), x)
    t = x.astype(float).reshape(2, 3, groups, -1)
    t = (t - t.mean((1, 3), keepdims=True)) / np.sqrt(t.var((1, 3), keepdims=True) + 1e-6)
    np.testing.assert_allclose(got, t.reshape(x.shape), rtol=1e-5, atol=1e-5)


def test_axes_that_a_layer_norm_reduces_are_kept():
    model = nn.LayerNorm(reduction_axes=(-2, -1), feature_axes=-1)
    with swap("rms"):
        got = model.apply(model.init(jax.random.key(0), X), X)
    wide = X.astype(float)
    np.testing.assert_allclose(got, wide / np.sqrt(np.square(wide).mean((-2, -1), keepdims=True) + 1e-6), rtol=1e-5)


def test_none_is_the_identity():
    model = nn.BatchNorm(use_running_average=False)
    with swap("none"):
        np.testing.assert_array_equal(model.apply(model.init(jax.random.key(0), X), X), X)


def test_kinds_and_wrappers():
    case, variables = LINEN["transformer"], models_linen.variables("transformer")
    run = lambda: jax.eval_shape(nn.apply(case.call, case.make()), variables, case.example)  # noqa: E731
    with swap("rms", kind="layer") as report:
        run()
    assert {row.kind for row in report if row.done} == {"layer"}
    with swap("none") as report:
        run()
    assert {row.kind for row in report if row.done} == {"layer", "rms", "group", "instance"}
    case, variables = LINEN["wrapped"], models_linen.variables("wrapped")
    with swap("layer") as report:
        run()
    reasons = {row.kind: row.reason for row in report if not row.done and row.kind != "leaf"}
    assert set(reasons) == {"spectral", "weight"}
    assert set(reasons.values()) == {"it wraps a layer, whose weights it normalizes"}
    with pytest.raises(ValueError, match=r"`name`.*'spectral' wraps a layer"), swap("spectral"):
        pass


def test_what_is_wrong_is_said():
    for words, options in (
        ("`name`.*'grup'.*did you mean 'group'", {"name": "grup"}),
        ("`kind`|`name`", {"name": "group", "kind": "no"}),
        ("num_group", {"name": "group", "num_group": 3}),
        (r"`match`.*'\('", {"name": "group", "match": "("}),
        ("`num_groups`.*hashable", {"name": "group", "num_groups": np.ones(3)}),
    ):
        with pytest.raises((ValueError, TypeError), match=words), swap(**options):
            pass
    words = r"`swap` found nothing to do(.|\n)*norm \(batch\): `match` does not select it"
    with pytest.raises(ValueError, match=words), swap("group", "third"):
        Net().apply(VARIABLES, X, False)
    model = nn.BatchNorm(axis=1, use_running_average=True)
    variables = model.init(jax.random.key(0), X)
    with pytest.raises(ValueError, match=r"`name` is 'group'.*`axis=1`"), swap("group"):
        model.apply(variables, X)
