"""`fold`: the pairs that are right, against the model's own output; the refusals, each by its reason."""

import warnings
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from jax import lax

from bnjax import linen as bl
from bnjax import nnx as bx
from bnjax._lifecycle.graph import CALLS, Graph
from bnjax._lifecycle.leaves import CARRIES, PRODUCTS, REARRANGES
from bnjax._lifecycle.tags import Tag, tagged
from bnjax._lifecycle.walk import ALIKE, RESHAPES
from tests.kit import models_linen
from tests.kit.cases import as_if_trained
from tests.kit.convnets_linen import Basic, Bottleneck, ResNet
from tests.kit.models_linen import LINEN

X = np.random.default_rng(0).normal(size=(4, 6)).astype(np.float32)
IMAGES = np.random.default_rng(0).normal(size=(2, 5, 5, 4)).astype(np.float32)
Norm = partial(nn.BatchNorm, use_running_average=True)
PLACE = jax.sharding.SingleDeviceSharding(jax.devices()[0])
ADDS = "the norm adds the shift, because a layer has no bias"


class Model(nn.Module):
    """A model in one function."""

    run: object

    @nn.compact
    def __call__(self, x):
        return self.run(self, x)


def trained(model, x, call=lambda model, x: model(x)):
    """Variables; their kernels are drawn here, because to compile the initializers takes longer than all else."""
    rng = np.random.default_rng(1)

    def drawn(leaf):
        value = rng.normal(size=leaf.shape) / np.sqrt(np.prod(leaf.shape[:-1], initial=1))
        return value.astype(leaf.dtype)

    return as_if_trained(jax.tree.map(drawn, jax.eval_shape(nn.init(call, model), jax.random.key(0), x)))


def folded(run, x=X):
    """Of a model of one norm: its row."""
    model = run if isinstance(run, nn.Module) else Model(run)
    _, report = bl.fold(model, trained(model, x), x)
    (row,) = (row for row in report if row.kind == "batch")
    assert not row.done or row.evidence["error"] <= 1e-6
    return row


def refused(run, x=X):
    with pytest.raises(ValueError, match="found nothing to do") as error:
        folded(run, x)
    return str(error.value)


def after(layer, **norm):
    return lambda self, x: Norm(**norm)(layer()(x))


def test_by_hand():
    """The variables, against the formula in float64."""
    model = nn.Sequential([nn.Dense(5), Norm(epsilon=1e-3)])
    variables = trained(model, X)
    new, report = bl.fold(model, variables, X)
    old, norm, stats = (jax.tree.map(np.float64, variables[c][n]) for c, n in
                        (("params", "layers_0"), ("params", "layers_1"), ("batch_stats", "layers_1")))  # fmt: skip
    a = norm["scale"] / np.sqrt(stats["var"] + 1e-3)
    got = new["params"]["layers_0"]
    np.testing.assert_allclose(got["kernel"], old["kernel"] * a, rtol=1e-6)
    np.testing.assert_allclose(got["bias"], (old["bias"] - stats["mean"]) * a + norm["bias"], rtol=1e-5, atol=1e-6)
    assert np.all(new["params"]["layers_1"]["scale"] == 1)
    assert not np.any(new["params"]["layers_1"]["bias"])
    assert not np.any(new["batch_stats"]["layers_1"]["mean"])
    y = X @ np.asarray(got["kernel"], np.float64) + np.asarray(got["bias"], np.float64)
    np.testing.assert_allclose(model.apply(variables, X), y, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(model.apply(new, X), nn.Dense(5).apply({"params": got}, X))  # the norm is nothing
    assert report["layers_1"].evidence["into"] == "layers_0"
    assert report["layers_1"].evidence["mean_over_std"] == np.max(np.abs(stats["mean"]) / np.sqrt(stats["var"]))


def test_without_a_bias_the_norm_adds_the_shift():
    assert folded(after(partial(nn.Dense, 5, use_bias=False))).reason == ADDS
    assert folded(after(partial(nn.Dense, 5, use_bias=False), use_bias=False, use_scale=False)).reason == ADDS


@pytest.mark.parametrize(
    ("layer", "axis"),
    [
        (partial(nn.Conv, 6, (3, 3), feature_group_count=2), -1),
        (partial(nn.Conv, 8, (3, 3), feature_group_count=4), -1),
        (partial(nn.Conv, 5, 3, padding="CIRCULAR"), -1),
        (partial(nn.Conv, 5, (2, 2, 2)), -1),
        (partial(nn.ConvTranspose, 5, (3, 3), strides=(2, 2)), -1),
        (partial(nn.ConvTranspose, 5, (3, 3), transpose_kernel=True), -1),
        (partial(nn.ConvLocal, 5, (3, 3)), -1),
        (partial(nn.DenseGeneral, (2, 3), axis=(-1, -2)), -1),
        (partial(nn.DenseGeneral, (2, 3)), -2),
        (partial(nn.DenseGeneral, 5, batch_dims=(0,)), -1),
    ],
    ids=["grouped", "depthwise", "1d", "3d", "transposed", "transposed kernel", "local", "two", "first", "batch_dims"],
)
def test_layers(layer, axis):
    x = IMAGES[None] if layer.args[-1] == (2, 2, 2) else IMAGES
    assert folded(after(layer, axis=axis), x).done


def rearranged(self, x):
    y = nn.Dense(5, dtype=jnp.float32)(x).reshape(2, 2, 5).transpose(2, 0, 1)
    return Norm(axis=0)(jax.ad_checkpoint.checkpoint_name(y, "y")[:, None])


def branches(self, x):
    def branch(sign):
        return lambda _, x: Norm(name="norm")(nn.Dense(5, name="dense")(sign * x))

    return nn.cond(x.sum() > 0, branch(1), branch(-1), self, x)


def twice(self, x):
    dense, norm = nn.Dense(6), Norm()
    return norm(dense(jnp.tanh(norm(dense(x)))))


def loop(self, x):
    dense, norm = nn.Dense(6), Norm()
    x = norm(dense(x))
    step = lambda _, c: (c[0] + 1, jnp.tanh(norm(dense(c[1]))))  # noqa: E731
    shared = {"broadcast_variables": ("params", "batch_stats")}
    return nn.while_loop(lambda _, c: c[0] < 3, step, self, (0, x), **shared)[1]


def used_twice_afterwards(self, x):
    return jnp.tanh(y := Norm()(nn.jit(nn.Dense)(5)(x))) + y


@pytest.mark.parametrize("run", [rearranged, branches, twice, loop, used_twice_afterwards], ids=lambda f: f.__name__)
def test_what_stands_between_and_around(run):
    assert folded(run).done


def hidden(self, x):
    y = nn.Dense(5)(x)
    return Norm()(y) + y.sum()


class Tied(nn.Module):
    leaf: str

    def setup(self):
        self.dense, self.norm = nn.Dense(5), Norm()

    def __call__(self, x):
        y, leaf = self.norm(self.dense(x)), self.dense.variables["params"][self.leaf]
        return y @ leaf.T if leaf.ndim == 2 else y + leaf[None]


def two_norms(self, x):
    dense = nn.Dense(5)
    return Norm(name="a")(dense(x)) + Norm(name="b")(dense(-x))


class DenseRelu(nn.Dense):
    @nn.compact
    def __call__(self, x):
        return nn.relu(super().__call__(x))


class Standardized(nn.Dense):
    """The kernel of the product is not the kernel among the variables."""

    def param(self, name, *args, **kwargs):
        value = super().param(name, *args, **kwargs)
        return value / jnp.linalg.norm(value) if name == "kernel" else value


REFUSED = {
    "hidden": (hidden, "its input is used 2 times"),
    "tied kernel": (Tied("kernel"), "the kernel of 'dense' is used 2 times, but the layer is called 1 times"),
    "tied bias": (Tied("bias"), "the bias of 'dense' is used 2 times, but the layer is called 1 times"),
    "two norms": (two_norms, "the layer 'Dense_0' is called 2 times, and feeds 'a', 'b'"),
    "weight norm": (lambda self, x: Norm()(nn.WeightNorm(nn.Dense(5))(x)), "no variable of the model as it is"),
    "computed kernel": (
        after(partial(Standardized, 5)),
        "the kernel of 'Standardized_0' is used for something else than the layer",
    ),
    "layer with relu": (after(partial(DenseRelu, 5)), "`max` stands between it and a layer"),
    "no layer": (lambda self, x: Norm()(x), "no layer of this model makes its input"),
    "unknown": (lambda self, x: Norm()(lax.erf_inv(nn.Dense(5)(x))), "`erf_inv` stands between it and a layer"),
    "reversed": (lambda self, x: Norm()(nn.Dense(5)(x)[:, ::-1]), "`rev` stands between it and a layer"),
    "mixed": (lambda self, x: Norm()(nn.Dense(5)(x).reshape(2, 10)), "`reshape` stands between it and a layer"),
    "other axis": (lambda self, x: Norm(axis=0)(nn.Dense(5)(x)), "an axis that is not one of the features"),
    "two axes": (after(partial(nn.DenseGeneral, (2, 3)), axis=(-1, -2)), "it has several feature axes"),
    "training": (lambda self, x: nn.BatchNorm(use_running_average=False)(nn.Dense(5)(x)), "it normalizes by the batch"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    run, why = REFUSED[name]
    assert why in refused(run)


def test_two_norms_after_each_other_fold_the_first():
    model = Model(lambda self, x: Norm(name="b")(Norm(name="a")(nn.Dense(5)(x))))
    _, report = bl.fold(model, trained(model, X), X)
    assert (report.done, report["b"].reason) == (("a",), "the norm 'a' makes its input")


@pytest.mark.parametrize("own", [{}, {"activation": "relu"}, {"momentum": None}, {"use_bias": False}], ids=str)
def test_our_batch_norm(own):
    given = {"bias": jnp.full(5, 2.0)} if "use_bias" in own else {"residual": jnp.ones((4, 5))}
    run = lambda self, x: bl.BatchNorm(use_running_average=True, **own)(nn.Dense(5)(x), **given)  # noqa: E731
    assert folded(run).done


def test_a_scale_that_is_given_at_the_call_is_refused():
    norm = partial(bl.BatchNorm, use_running_average=True, use_scale=False)
    assert "its scale is given at the call" in refused(lambda self, x: norm()(nn.Dense(5)(x), scale=jnp.full(5, 2.0)))


class Block(nn.Module):
    """The features are not last, so that the place of the mapped axis matters."""

    @nn.compact
    def __call__(self, x):
        return Norm(axis=1)(nn.Conv(3, (1, 1))(x).transpose(0, 3, 1, 2))


@pytest.mark.parametrize(
    ("params", "stats", "why"),
    [(0, 0, ""), (1, -1, ""), (None, None, ""), (None, 0, "not stacked as"), (0, None, "not stacked as")],
)
def test_under_vmap(params, stats, why):
    """Three features, three models: no shape says which axis is which."""
    axes = {"variable_axes": {"params": params, "batch_stats": stats}, "split_rngs": {"params": params is not None}}
    if params is None and stats == 0:
        axes["variable_axes"] = {"params": None, "batch_stats": 0}
    run = lambda self, x: nn.vmap(Block, in_axes=2, out_axes=1, **axes)()(jnp.stack([x, -x, 2 * x], 2))  # noqa: E731
    assert why in refused(run, IMAGES) if why else folded(run, IMAGES).done


@pytest.mark.parametrize(
    ("block", "stages", "norms"), [(Basic, (2, 2, 2, 2), 20), (Bottleneck, (3, 4, 6, 3), 53)], ids=["18", "50"]
)
def test_resnets(block, stages, norms):
    model, x = ResNet(block, 2, stages), np.random.default_rng(0).normal(size=(2, 16, 16, 3)).astype(np.float32)
    call = lambda model, x: model(x, train=False)  # noqa: E731
    _, report = bl.fold(model, trained(model, x, call), x, call=call)
    assert (len(report.done), len(report.refused)) == (norms, 0)
    assert max(row.evidence["error"] for row in report) <= 2e-6


@pytest.mark.parametrize(
    ("name", "done", "left"), [("boxed", 5, 0), ("lifted_last", 5, 0), ("shared", 1, 3), ("own", 2, 1)]
)
def test_kit(name, done, left):
    """Stacks that lead and that do not, boxes; every mean and variance has one row."""
    case, variables = LINEN[name], models_linen.variables(name)
    new, report = bl.fold(case.make(), variables, case.example, call=case.call)
    assert (len(report.done), len(report.refused)) == (done, left)
    assert jax.tree.structure(new) == jax.tree.structure(variables)
    assert max(row.evidence.get("error", 0) for row in report) <= 1e-6


def test_dtypes_places_and_containers_stay():
    model = nn.Sequential([nn.Dense(5, param_dtype=jnp.bfloat16), Norm()])
    device = jax.devices()[0]
    variables = jax.tree.map(jnp.asarray, trained(model, X))
    variables["params"]["layers_0"]["kernel"] = jax.device_put(variables["params"]["layers_0"]["kernel"], device)
    new, _ = bl.fold(model, variables, X)
    described = lambda tree: jax.tree.map(lambda t: (t.dtype, t.shape, t.sharding, t.committed), tree)  # noqa: E731
    assert described(new) == described(variables)
    assert isinstance(bl.fold(model, nn.FrozenDict(variables), X)[0], nn.FrozenDict)


def test_x64():
    with jax.enable_x64(True):
        model = nn.Sequential([nn.Dense(5, param_dtype=float), Norm(param_dtype=float, force_float32_reductions=False)])
        x = X.astype(float)
        _, report = bl.fold(model, trained(model, x), x)
    assert report["layers_1"].evidence["error"] < 1e-15


@pytest.mark.parametrize(("far", "warned"), [(5.0, False), (50.0, True)])
def test_bfloat16_far_from_zero_is_warned_of(far, warned):
    model = nn.Sequential([nn.Dense(5, dtype=jnp.bfloat16), Norm()])
    variables = trained(model, X)
    variables["batch_stats"]["layers_1"] = {"mean": np.full(5, far, np.float32), "var": np.ones(5, np.float32)}
    _, report = bl.fold(model, variables, X)
    assert ("warning: |mean| is up to 50 times" in report["layers_1"].reason) == warned


def test_a_kernel_that_would_overflow_is_refused():
    model = nn.Sequential([nn.Dense(5, param_dtype=jnp.float16), Norm()])
    variables = trained(model, X)
    variables["batch_stats"]["layers_1"]["var"] = np.zeros(5, np.float32)
    variables["params"]["layers_1"]["scale"] = np.full(5, 1e6, np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ValueError, match="'params/layers_0/kernel' would overflow in float16"):
            bl.fold(model, variables, X)


def test_outputs_that_differ_raise():
    model = nn.Sequential([nn.Dense(5), Norm()])
    variables = trained(model, X)
    run = lambda model, x: model(x) + model.variables["batch_stats"]["layers_1"]["mean"][None]  # noqa: E731
    with pytest.raises(ValueError, match=r"`fold` would change the output by .* nothing was changed"):
        bl.fold(model, variables, X, call=run)


def names(f, *args):
    """Of the operations of a program."""
    graph = Graph(jax.make_jaxpr(f)(*args))
    return {node.name for users in graph.users.values() for node in users}


@pytest.mark.parametrize(
    ("f", "name"),
    [
        (lambda x: x.astype(jnp.float16), "convert_element_type"), (jnp.copy, "copy"), (jnp.transpose, "transpose"),
        (lambda x: jax.ad_checkpoint.checkpoint_name(x, "x"), "name"),
        (lax.optimization_barrier, "optimization_barrier"),
        (lambda x: lax.reduce_precision(x, 8, 7), "reduce_precision"), (lambda x: x.reshape(-1), "reshape"),
        (lambda x: lax.squeeze(x[None], (0,)), "squeeze"), (lambda x: x[None], "broadcast_in_dim"),
        (lambda x: lax.rev(x, (0,)), "rev"), (lambda x: x @ x.T, "dot_general"), (lambda x: x + x, "add"),
        (lambda x: lax.conv(x[None, None], x[None, None], (1, 1), "SAME"), "conv_general_dilated"),
        (lambda x: lax.with_sharding_constraint(x, PLACE), "sharding_constraint"),
        (lambda x: lax.map(jnp.sin, x), "scan"), (lambda x: lax.while_loop(jnp.all, jnp.sin, x[0, 0]), "while"),
        (lambda x: lax.cond(x[0, 0] > 0, jnp.sin, jnp.cos, x), "cond"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)  # fmt: skip
def test_names_of_operations(f, name):
    """JAX does not promise them: one that it renames would be refused, and here it is seen."""
    assert name in names(f, X)
    assert name in {*ALIKE, *RESHAPES, *REARRANGES, *PRODUCTS, *CARRIES, "transpose", "add"}


@pytest.mark.parametrize(
    "f",
    [jax.jit(jnp.tanh), jax.checkpoint(jnp.tanh), jax.nn.relu, jax.nn.gelu, partial(tagged, tag=Tag("leaf", "", 2))],
    ids=["jit", "checkpoint", "custom_jvp", "jit in jit", "custom_vmap"],
)
def test_calls_are_written_out(f):
    assert not names(f, X) & (CALLS.keys() | {"custom_vjp_call"})


class Stack(nnx.Module):
    """Shared, stacked, under remat, and each of the layers."""

    def __init__(self, rngs):
        norm = partial(nnx.BatchNorm, rngs=rngs)
        self.stem = nnx.Conv(4, 4, (3, 3), rngs=rngs)
        self.first = norm(4)
        self.shared, self.norm = nnx.Linear(4, 4, rngs=rngs), norm(4)
        make = lambda rngs: Pair(rngs)  # noqa: E731
        self.stack = nnx.split_rngs(splits=4)(nnx.vmap(make))(rngs)
        self.up, self.up_norm = nnx.ConvTranspose(4, 4, (2, 2), use_bias=False, rngs=rngs), norm(4)
        self.general, self.general_norm = nnx.LinearGeneral(4, (2, 3), rngs=rngs), norm(2, axis=1)
        self.used, self.used_norm = nnx.Linear(3, 3, rngs=rngs), norm(3)
        self.own = bx.BatchNorm(3, activation="relu", rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.first(self.stem(x)))
        x = self.norm(self.shared(nnx.relu(self.norm(self.shared(x)))))
        step = nnx.remat(lambda pair, x: pair(x))
        x = nnx.scan(step, in_axes=(0, nnx.Carry), out_axes=nnx.Carry)(self.stack, x)
        x = self.general_norm(self.general(self.up_norm(self.up(x)).mean((1, 2))))
        x = self.used(x)
        return self.own(self.used_norm(x) + x)


class Pair(nnx.Module):
    def __init__(self, rngs):
        self.layer, self.norm = nnx.Linear(4, 4, use_bias=False, rngs=rngs), nnx.BatchNorm(4, rngs=rngs)

    def __call__(self, x):
        return nnx.relu(self.norm(self.layer(x))) + x


def trained_nnx(model):
    nnx.update(model, as_if_trained(nnx.state(model, (nnx.Param, nnx.BatchStat))))
    return model


def test_nnx():
    model = trained_nnx(Stack(nnx.Rngs(0)))
    before = nnx.to_pure_dict(nnx.state(model))
    copy, report = bx.fold(model, IMAGES)
    assert set(report.done) == {"first", "norm", "stack/norm", "up_norm", "general_norm"}
    assert report["used_norm"].reason == "its input is used 2 times"
    assert "`add` stands between" in report["own"].reason
    assert (report["stack/norm"].reason, report["up_norm"].reason) == (ADDS, ADDS)
    assert [type(m) for _, m in nnx.iter_modules(copy)] == [type(m) for _, m in nnx.iter_modules(model)]
    assert nnx.graphdef(copy) == nnx.graphdef(model)  # in the mode of the model, without a trace of the tags
    jax.tree.map(np.testing.assert_array_equal, before, nnx.to_pure_dict(nnx.state(model)))
    for module in (model, copy):
        module.eval()
    want = nnx.jit(lambda m: m(IMAGES))(model)
    np.testing.assert_allclose(nnx.jit(lambda m: m(IMAGES))(copy), want, atol=1e-6 * np.abs(want).max())
    assert not np.array_equal(copy.stem.kernel[...], model.stem.kernel[...])


class LinearRelu(nnx.Linear):
    def __call__(self, x):
        return nnx.relu(super().__call__(x))


class Doubled(nnx.BatchNorm):
    """What it does before its base's call stands between."""

    def __call__(self, x):
        return super().__call__(2 * x)


class Later(nnx.BatchNorm):
    def __call__(self, x):
        return nnx.relu(super().__call__(x))


@pytest.mark.parametrize(
    ("layer", "norm", "why"),
    [
        (LinearRelu, nnx.BatchNorm, "`max` stands between it and a layer"),
        (nnx.Linear, Doubled, "`mul` stands between it and a layer"),
        (nnx.Linear, Later, ""),
        (lambda *args, rngs: nnx.WeightNorm(nnx.Linear(*args, rngs=rngs), rngs=rngs), nnx.BatchNorm, "computed from"),
    ],
    ids=["layer", "before", "after", "weight"],
)
def test_nnx_subclasses_and_wrappers(layer, norm, why):
    model = trained_nnx(nnx.Sequential(layer(6, 5, rngs=nnx.Rngs(0)), norm(5, rngs=nnx.Rngs(0))))
    if why:
        with pytest.raises(ValueError, match=why):
            bx.fold(model, X)
    else:
        assert bx.fold(model, X)[1].done == ("layers/1",)
