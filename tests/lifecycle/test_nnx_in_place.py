"""`upgrade`, `swap`, `freeze` and `unfreeze` of nnx models, in place."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import bnjax.nnx as bx
from bnjax import NORMS
from bnjax.nnx import BatchNorm, freeze, make_norm, swap, unfreeze, upgrade
from tests.lifecycle.nnx_models import Block, C, Chain, drawn, randomize, stacked

X = drawn(8, 0)
BATCH = ("blocks/0/norm", "blocks/1/norm", "first", "stack/norm")


def make(norm=nnx.BatchNorm, **options):
    return randomize(Chain(nnx.Rngs(0), norm, **options))


def one(norm=nnx.BatchNorm, **options):
    return randomize(norm(C, rngs=nnx.Rngs(0), **options))


def stats(model):
    return jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(model, nnx.BatchStat)))


def parameters(model):
    return jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(model, nnx.Param)))


def assert_trees(check, a, b, **tolerance):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        check(x, y, **tolerance)


def assert_equal(a, b):
    assert_trees(np.testing.assert_array_equal, a, b)


def assert_close(a, b, tolerance=1e-5):
    assert_trees(np.testing.assert_allclose, a, b, rtol=tolerance, atol=tolerance)


@nnx.jit
def trained(model, x):
    """Output and gradients in training, whatever the model's mode; the statistics step."""
    model.train()

    def loss(model):
        y = model(x)
        return (jnp.sin(y)).sum(), y

    gradients, y = nnx.grad(loss, has_aux=True)(model)
    return y, nnx.to_pure_dict(gradients)


@nnx.jit
def evaluated(model, x):
    model.eval()
    return model(x)


# upgrade


def test_an_upgraded_model_computes_what_flax_does():
    want, got = make(), make()
    trained(got, X)  # jitted before
    got = make()
    before = parameters(got)
    report = upgrade(got)
    assert report.done == BATCH
    assert type(got.first) is BatchNorm
    assert type(got.stack.norm) is BatchNorm
    assert_equal(parameters(got), before)
    assert_close(evaluated(got, X), evaluated(want, X), 1e-6)
    (y, g), (y_flax, g_flax) = trained(got, X), trained(want, X)
    scale = max(float(abs(t).max()) for t in jax.tree.leaves(g_flax))  # a bias before a norm has a gradient of nearly 0
    assert_close(y, y_flax, 2e-5)
    assert_close(jax.tree.map(lambda t: t / scale, g), jax.tree.map(lambda t: t / scale, g_flax))
    assert_close(stats(got), stats(want), 1e-6)


OPTIONS = [
    {"unbiased": True}, {"pivot": None}, {"pivot": "sample"}, {"virtual_batch_size": 2}, {"activation": "relu"},
    {"momentum": None}, {"zero_masked": True}, {"epsilon": 0.1}, {"momentum": 0.5, "unbiased": True},
    {"track_running_stats": False}, {"dtype": jnp.bfloat16}, {"axis": 0},
]  # fmt: skip


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_options_give_what_our_module_gives(options):
    x = X[:C] if "axis" in options else X
    want, got = one(BatchNorm, **options), one()
    for name in ("scale", "bias", "mean", "var"):
        if getattr(want, name) is not None:
            getattr(want, name)[...] = getattr(got, name)[...]
    upgrade(got, **options)
    mask = np.arange(len(x)) < 4
    for _ in range(2):
        assert_equal(got(x, mask=mask[:, None]), want(x, mask=mask[:, None]))
    for name in ("mean", "var", "count"):
        if isinstance(getattr(want, name, None), nnx.BatchStat):
            assert_equal(getattr(got, name)[...], getattr(want, name)[...])
    got.eval(), want.eval()
    assert_equal(got(x), want(x))


def test_a_model_in_evaluation_can_be_upgraded_to_have_no_running_state():
    model, want = one(), one(BatchNorm)
    model.eval()
    upgrade(model, track_running_stats=False)
    assert_close(model(X), want(X), 1e-6)


def test_axis_name_synchronizes_somebody_elses_model():
    want, got = (nnx.Sequential(one(), jnp.tanh, one()) for _ in range(2))
    upgrade(got, axis_name="d")
    spread = nnx.vmap(lambda m, x: m(x), in_axes=(None, 0), out_axes=0, axis_name="d")
    y = spread(got, X.reshape(4, 2, C))
    assert_close(y.reshape(8, -1), want(X), 2e-5)
    assert_close(stats(got), stats(want))


def test_optimizers_that_were_made_before_go_on():
    model, want = make(), make()
    optimizers = [nnx.Optimizer(m, optax.sgd(1e-2, 0.9), wrt=nnx.Param) for m in (model, want)]
    upgrade(model)

    @nnx.jit
    def step(model, optimizer, x):
        optimizer.update(model, nnx.grad(lambda m: (m(x) ** 2).mean())(model))

    for m, optimizer in zip((model, want), optimizers, strict=True):
        for _ in range(3):
            step(m, optimizer, X)
    assert_close(parameters(model), parameters(want), 1e-4)


def test_split_merge_and_clone_keep_what_was_done():
    model = make()
    upgrade(model, unbiased=True)
    freeze(model, "stack", parameters=True)
    copies = [nnx.clone(model), nnx.merge(*nnx.split(nnx.clone(model)))]
    y, g = trained(model, X)
    for copy in copies:
        assert type(copy.stack.norm) is type(model.stack.norm)
        got, gradients = trained(copy, X)
        assert_equal((got, gradients, stats(copy)), (y, g, stats(model)))
    unfreeze(copies[0])
    assert type(copies[0].stack.norm) is BatchNorm


class Twice(nnx.BatchNorm):
    def __call__(self, x, *args, **kwargs):
        return 2 * self.normalized(x, *args, **kwargs)

    def normalized(self, x, *args, **kwargs):
        return super().__call__(x, *args, **kwargs)


class Mixin:
    """A base that is no module."""


class Mixed(Mixin, nnx.BatchNorm):
    pass


class CallsNot(nnx.BatchNorm):
    def __call__(self, x):
        return x - self.mean[...][None]


class Activated(nnx.BatchNorm):
    activation = staticmethod(jnp.tanh)

    def __call__(self, x, *args, **kwargs):
        return self.activation(super().__call__(x, *args, **kwargs))


def test_what_a_subclass_adds_is_kept():
    want, got, ours = one(Twice), one(Twice), one(BatchNorm, unbiased=True)
    upgrade(got, unbiased=True)
    assert isinstance(got, Twice)
    assert isinstance(got, BatchNorm)
    assert_close(got(X), want(X), 1e-5)
    ours(X)
    assert_equal(got.var[...], ours.var[...])
    upgrade(got, unbiased=False)
    assert not got.unbiased
    plain = one(Mixed)
    upgrade(plain)
    assert_close(plain(X), one()(X))


@pytest.mark.parametrize(
    ("norm", "verb", "reason"),
    [
        (CallsNot, upgrade, "does not call that of `BatchNorm`"),
        (CallsNot, freeze, "does not call that of `BatchNorm`"),
        (CallsNot, lambda m: swap(m, "layer"), "has a call of its own, which would be lost"),
        (Mixed, lambda m: swap(m, "layer"), "has further bases"),
        (Activated, upgrade, "has an attribute `activation` of its own"),
        (nnx.LayerNorm, upgrade, "a norm of kind 'layer', not a batch norm"),
        (nnx.LayerNorm, freeze, "`parameters=True` holds its parameters"),
        (nnx.LayerNorm, lambda m: swap(m, "rms", kind="group"), "a norm of kind 'layer', not 'group'"),
        (nnx.LayerNorm, unfreeze, "it is not frozen"),
        (nnx.BatchNorm, unfreeze, "it is not frozen"),
        (nnx.BatchNorm, lambda m: freeze(m, "nothing"), "`match` does not select it"),
        (bx.BatchRenorm, lambda m: freeze(m, update=True), "steps only where it normalizes by the batch"),
    ],
)
def test_what_cannot_be_done_raises_with_the_reason(norm, verb, reason):
    model = nnx.Sequential(one(norm))
    before, cls = nnx.graphdef(model), type(model.layers[0])
    with pytest.raises(ValueError, match=f"(?s)found nothing to do.*layers/0.*{reason}"):
        verb(model)
    assert type(model.layers[0]) is cls
    assert nnx.graphdef(model) == before


def test_wrappers_of_weights_are_refused_by_name():
    model = nnx.Sequential(one(), nnx.WeightNorm(nnx.Linear(C, C, rngs=nnx.Rngs(0)), rngs=nnx.Rngs(0)))
    assert "wraps a layer" in freeze(model, parameters=True)["layers/1"].reason
    assert "wraps a layer" in swap(model, "renorm")["layers/1"].reason


@pytest.mark.parametrize(
    ("verb", "words"),
    [
        (lambda m: upgrade(m, axiss=1), "`axiss` is no argument of"),
        (lambda m: upgrade(m, use_scale=False), "`use_scale` is no argument of"),
        (lambda m: upgrade(m, axis_index_groups=[[0], [1]]), "`axis_index_groups` must be hashable"),
        (lambda m: upgrade(m, virtual_batch_size=0), "`virtual_batch_size` must be"),
        (lambda m: upgrade(m, track_running_stats=False, unbiased=True), "`unbiased=True` is about the running state"),
        (lambda m: upgrade(m, "("), "`match` must be a regular expression"),
        (lambda m: upgrade([m]), "`model` must be an `nnx.Module`, but it is a list"),
        (lambda m: freeze(m, use=False, update=True), "holds nothing"),
        (lambda m: freeze(m, use="yes"), "`use` must be True or False"),
        (lambda m: swap(m, "lair"), "layer"),
        (lambda m: swap(m, "spectral"), "wraps a layer"),
        (lambda m: swap(m, "group", groups=2), "`groups`"),
    ],
)
def test_wrong_arguments_raise_before_anything_is_done(verb, words):
    model = make()
    before = nnx.graphdef(model)
    with pytest.raises(ValueError, match=words):
        verb(model)
    assert nnx.graphdef(model) == before


# Options of norms, so that they take eight examples of five channels.
FIT = {"bcn": {"num_groups": 1}, "ghost": {"virtual_batch_size": 4}, "prms": {"fraction": 0.5}}


# freeze


def frozen_step(use, update):
    """The output and the new statistics of a frozen norm in training, in float64."""
    norm = one()
    mean, var, scale, bias = (np.asarray(getattr(norm, n)[...], np.float64) for n in ("mean", "var", "scale", "bias"))
    x = X.astype(np.float64)
    by = (mean, var) if use else (x.mean(0), x.var(0))
    new = {"mean": 0.99 * mean + 0.01 * x.mean(0), "var": 0.99 * var + 0.01 * x.var(0)}
    return (x - by[0]) / np.sqrt(by[1] + 1e-5) * scale + bias, new if update else {"mean": mean, "var": var}


@pytest.mark.parametrize("norm", [nnx.BatchNorm, BatchNorm, Mixed])
@pytest.mark.parametrize(("use", "update"), [(True, False), (True, True), (False, False)])
def test_a_frozen_batch_norm(norm, use, update):
    model = one(norm)
    freeze(model, use=use, update=update)
    y, _ = trained(model, X)
    want, new = frozen_step(use, update)
    np.testing.assert_allclose(y, want, rtol=2e-5, atol=2e-5)
    for name in ("mean", "var"):
        np.testing.assert_allclose(getattr(model, name)[...], new[name], rtol=1e-6, atol=1e-6)


def test_frozen_survives_train_and_jit_and_the_rest_moves():
    model = make()
    trained(model, X)  # jitted before
    freeze(model, "stack")
    before = stats(model)
    model.eval(), model.train()
    trained(model, X)
    assert_equal(stats(model.stack), before["stack"])
    assert (model.first.mean[...] != before["first"]["mean"]).any()


@pytest.mark.parametrize("norm", [nnx.BatchNorm, BatchNorm, nnx.LayerNorm, bx.RMSNorm, nnx.GroupNorm, bx.BatchRenorm])
def test_no_gradient_reaches_parameters_that_are_held(norm):
    options = {"num_groups": 1} if norm is nnx.GroupNorm else {}
    want, got = (randomize(nnx.Sequential(one(norm, **options), Block(nnx.Rngs(0), norm, **options))) for _ in range(2))
    freeze(got, use=False, update=True, parameters=True)
    (y, g), (y_free, g_free) = trained(got, X), trained(want, X)
    assert_close(y, y_free)
    g, g_free = g["layers"], g_free["layers"]
    assert all((t == 0).all() for t in jax.tree.leaves((g[0], g[1]["norm"])))
    assert all((t != 0).any() for t in jax.tree.leaves((g_free[0], g_free[1]["norm"])))
    assert_close(g[1]["layer"]["kernel"], g_free[1]["layer"]["kernel"], 1e-4)
    assert_close(stats(got), stats(want))


@pytest.mark.parametrize("name", [n for n, row in NORMS.items() if row.takes_running_average])
def test_a_frozen_norm_with_another_state(name):
    model = make_norm(name, C, rngs=nnx.Rngs(0), **FIT.get(name, {}))
    trained(model, X)
    before, y = stats(model), evaluated(model, X)
    freeze(model)
    assert_close(trained(model, X)[0], y, 1e-6)
    assert_equal(stats(model), before)
    unfreeze(model)
    freeze(model, use=False)
    held, _ = trained(model, X)
    assert_equal(stats(model), before)
    unfreeze(model)
    assert_close(held, trained(model, X)[0], 1e-6)
    assert any((a != b).any() for a, b in zip(jax.tree.leaves(stats(model)), jax.tree.leaves(before), strict=True))


def test_unfreeze_gives_back_exactly_what_there_was():
    model = make(Twice)
    before = nnx.graphdef(model)
    freeze(model, parameters=True)
    freeze(model, "stack", use=False)
    assert nnx.graphdef(model) != before
    report = unfreeze(model, "stack|blocks")
    assert report.done == ("blocks/0/norm", "blocks/1/norm", "stack/norm")
    assert type(model.first) is not Twice
    unfreeze(model, "first")
    assert nnx.graphdef(model) == before


def test_what_is_frozen_twice_is_held_by_either():
    model = one()
    freeze(model, parameters=True, use=False, update=True)
    freeze(model)
    before = stats(model)
    _, g = trained(model, X)
    assert_equal(stats(model), before)
    assert all((t == 0).all() for t in jax.tree.leaves(g))


@pytest.mark.parametrize("order", ["freeze first", "upgrade first"])
def test_freeze_wins_over_upgrade_in_either_order(order):
    model = nnx.Dict(first=one(), other=one())
    verbs = [lambda: freeze(model, "first"), lambda: upgrade(model, unbiased=True, axis_name=None)]
    reports = [verb() for verb in (verbs if order == "freeze first" else verbs[::-1])]
    if order == "freeze first":
        assert reports[1]["first"].reason == "it is frozen, too"
    before = stats(model)
    trained(model.first, X)
    assert_equal(stats(model.first), before["first"])
    unfreeze(model)
    assert type(model.first) is BatchNorm
    ours = one(BatchNorm, unbiased=True)
    for name in ("mean", "var"):
        getattr(ours, name)[...] = before["first"][name]
    trained(model.first, X), ours(X)
    assert_close(stats(model.first), stats(ours), 1e-6)


def test_freeze_wins_over_swap_in_either_order():
    for swap_first in (True, False):
        model = one()
        verbs = [lambda m: freeze(m), lambda m: swap(m, "renorm")]
        for verb in verbs[::-1] if swap_first else verbs:
            verb(model)
        before = stats(model)
        trained(model, X)
        assert_equal(stats(model), before)
        unfreeze(model)
        assert type(model) is bx.BatchRenorm
        trained(model, X)
        assert model.step[...] == 1


def test_somebodys_activation_is_not_taken_for_ours():
    model, plain = one(Activated), one(BatchNorm)
    freeze(model)
    plain.eval()
    assert_close(trained(model, X)[0], jnp.tanh(plain(X)))


# swap


TARGETS = [n for n, row in NORMS.items() if not row.wraps]


@pytest.mark.parametrize("name", TARGETS)
def test_a_batch_norm_becomes_any_norm_of_activations(name):
    model = nnx.Sequential(one(momentum=0.9), one())
    old = model.layers[0]
    variables = {n: v for n, v in vars(old).items() if isinstance(v, nnx.Variable)}
    report = swap(model, name, "layers/0", rngs=nnx.Rngs(1), **FIT.get(name, {}))
    assert report.done == ("layers/0",)
    assert model.layers[0] is old
    for n, v in vars(old).items():
        if isinstance(v, nnx.Variable) and n in variables and v.shape == variables[n].shape:
            assert v is variables[n]
    own = {"momentum": 0.9, "epsilon": 1e-5} if NORMS[name].takes_running_average else {}
    groups = {"num_groups": C} if name in ("group", "evonorm_s0") else {}
    want = make_norm(name, C, rngs=nnx.Rngs(1), **own, **groups, **FIT.get(name, {}))
    kept = [n for n, v in vars(want).items() if isinstance(v, nnx.Variable) and n in variables]
    for n in kept:
        if getattr(want, n).shape == variables[n].shape:
            getattr(want, n)[...] = variables[n][...]
    assert_equal(old(X), want(X))
    assert_equal(stats(old), stats(want))
    assert set(vars(old)) == set(vars(want))


@pytest.mark.parametrize("norm", [nnx.LayerNorm, nnx.RMSNorm, nnx.InstanceNorm, bx.DynamicTanh, bx.LayerNorm])
def test_other_norms_become_batch_norms(norm):
    model = one(norm)
    swap(model, "batch", rngs=nnx.Rngs(0))
    want = BatchNorm(C, rngs=nnx.Rngs(0))
    for n in ("scale", "bias"):
        getattr(want, n)[...] = getattr(model, n)[...]
    assert_equal(model(X), want(X))
    assert_equal(stats(model), stats(want))


def test_groups_are_those_that_divide_the_channels():
    model = randomize(nnx.BatchNorm(48, rngs=nnx.Rngs(0)))
    swap(model, "group")
    assert model.num_groups == 24
    swap(model, "batch")
    swap(model, "group", num_groups=None, group_size=3)
    assert (model.num_groups, model.group_size) == (16, 3)


def test_parameters_that_are_missing_raise_and_nothing_is_changed():
    model = nnx.Sequential(one(), nnx.RMSNorm(C, rngs=nnx.Rngs(0)))
    before = nnx.graphdef(model)
    with pytest.raises(ValueError, match=r"norm at 'layers/1' a 'layer', because `bias` of it .* `rngs=nnx.Rngs\(0\)`"):
        swap(model, "layer")
    assert nnx.graphdef(model) == before
    swap(model, "layer", rngs=nnx.Rngs(0))
    assert_equal(model.layers[1].bias[...], np.zeros(C))


def test_stacked_and_shared_norms_stay_stacked_and_shared():
    model = nnx.Dict(a=nnx.Dict(norm=one()), stack=stacked(nnx.Rngs(0)))
    model.b = nnx.Dict(norm=model.a.norm)
    scale = model.stack.norm.scale
    swap(model, "renorm")
    assert type(model.b.norm) is bx.BatchRenorm
    assert model.b.norm is model.a.norm
    assert model.stack.norm.scale is scale
    assert model.stack.norm.step.shape == (3,)

    @nnx.jit
    def run(stack, x):
        return nnx.scan(lambda b, x: b(x), in_axes=(0, nnx.Carry), out_axes=nnx.Carry)(stack, x)

    run(model.stack, X)
    assert_equal(model.stack.norm.step[...], np.ones(3))
    swap(model, "layer", "stack", use_bias=False)
    swap(model, "layer", "stack", rngs=nnx.Rngs(0), use_bias=True, bias_init=nnx.initializers.normal())
    bias = np.asarray(model.stack.norm.bias[...])
    assert bias.shape == (3, C)
    assert (bias[0] != bias[1]).any()
    run(model.stack, X)


def test_stacks_along_another_axis_are_refused():
    @nnx.split_rngs(splits=3)
    @nnx.vmap(in_axes=0, out_axes=1)
    def last(rngs):
        return Block(rngs)

    with pytest.raises(ValueError, match="stacked along another axis"):
        swap(last(nnx.Rngs(0)), "layer")


def test_arguments_by_position_mean_what_they_meant():
    model = one()
    swap(model, "layer")
    want = nnx.LayerNorm(C, rngs=nnx.Rngs(0))
    want.scale, want.bias = model.scale, model.bias
    assert_close(model(X, False), want(X), 1e-6)
    assert_close(model(X, use_running_average=True), want(X), 1e-6)
    model = nnx.RMSNorm(C, rngs=nnx.Rngs(0))
    mask = np.arange(8)[:, None] < 4
    swap(model, "batch", rngs=nnx.Rngs(0))
    model(X, mask)
    np.testing.assert_allclose(model.mean[...], 0.01 * X[:4].mean(0), rtol=1e-5)


def test_the_mode_and_the_axis_go_on_and_the_identity_forgets_all():
    model = one(axis=0)
    model.eval()
    swap(model, "renorm")
    assert model.use_running_average
    assert model.axis == 0
    model = nnx.Sequential(one(axis=0))
    with pytest.raises(ValueError, match="channels on the last axis alone"):
        swap(model, "group")
    swap(model, "none")
    assert_equal(model(X), X)
    assert jax.tree.leaves(nnx.state(model)) == []


def test_a_norm_that_was_swapped_or_upgraded_is_found_again():
    model = make()
    upgrade(model)
    swap(model, "renorm", "first")
    report = upgrade(model, unbiased=True)
    assert report["first"].reason == "a norm of kind 'renorm', not a batch norm"
    swap(model, "batch", kind="renorm")
    assert upgrade(model).done == BATCH
    assert_close(evaluated(model, X), evaluated(make(), X), 1e-6)


def test_what_is_no_norm_of_ours_is_named_as_what_it_is():
    model = nnx.Dict(norm=one(), loose=nnx.Dict(one=nnx.BatchStat(jnp.ones(2))))
    model.plain = nnx.data({name: nnx.BatchStat(jnp.ones(C)) for name in ("mean", "var")})
    for verb in (upgrade, freeze, unfreeze):
        report = verb(model)
        assert {row.path: (row.kind, row.reason) for row in report if not row.done} == {
            "plain": ("dict", "`dict` is no norm of Flax or bnjax"),
            "loose/one": ("leaf", "no mean and no variance"),
        }
