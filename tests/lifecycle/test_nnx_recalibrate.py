"""`bnjax.nnx.recalibrate` and `adapt` against float64 numpy, on models that know nothing of bnjax."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from bnjax.nnx import BatchNorm, BatchRenorm, adapt, freeze, recalibrate
from tests.kit.devices import mesh
from tests.lifecycle.nnx_models import Block, C, Chain, drawn, norm_inputs, randomize, stacked

BATCHES = [drawn(n, seed) for n, seed in ((8, 0), (3, 1), (1, 2))]
ALL = np.concatenate(BATCHES).astype(np.float64)


def make(norm=nnx.BatchNorm, **options):
    return randomize(Chain(nnx.Rngs(0), norm, **options))


def small():
    return randomize(nnx.Sequential(nnx.BatchNorm(C, rngs=nnx.Rngs(0)), Block(nnx.Rngs(0))))


def assert_measured(pair, x, tolerance=1e-6):
    """Mean and variance of all of x but its last axis; the mean is compared in units of the deviation."""
    axes = tuple(range(x.ndim - 1))
    mean, var = (np.asarray(pair[name][...], np.float64) for name in ("mean", "var"))
    want = x.var(axes)
    np.testing.assert_allclose((mean - x.mean(axes)) / np.sqrt(want), 0, atol=tolerance)
    np.testing.assert_allclose(var, want, rtol=tolerance)


def assert_same(got, want, tolerance=1e-6):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance), got, want)


def test_the_first_norm_has_the_statistics_of_all_batches_together():
    state, report = recalibrate(make(), BATCHES)
    assert_measured(state["first"], ALL)
    assert report.done == ("blocks/0/norm", "blocks/1/norm", "first", "stack/norm")
    assert report["first"].evidence["count"] == len(ALL)


@pytest.mark.parametrize("options", [{}, {"use_fast_variance": False, "axis_name": "nowhere"}])
def test_by_layer_every_norm_and_every_slice_of_a_stack_is_exact(options):
    model = make(**options)
    state, _ = recalibrate(model, BATCHES, by_layer=True)
    nnx.update(model, state)
    for path, x in norm_inputs(model, ALL).items():
        norm = state
        for name in path.rstrip("012").rstrip("/").split("/") if path.startswith("stack") else path.split("/"):
            norm = norm[int(name) if name.isdigit() else name]
        pair = {n: norm[n][...][int(path[-1])] if path.startswith("stack") else norm[n][...] for n in ("mean", "var")}
        assert_measured(pair, x, 1e-5)


def test_one_pass_is_not_exact_beyond_the_first_norm():
    model = make()
    nnx.update(model, recalibrate(model, BATCHES)[0])
    with pytest.raises(AssertionError):
        assert_measured(nnx.state(model)["blocks"][1]["norm"], norm_inputs(model, ALL)["blocks/1/norm"], 1e-2)


@pytest.mark.parametrize("by_layer", [False, True])
def test_uneven_batches_are_those_that_are_padded_and_masked(by_layer):
    want, _ = recalibrate(make(), BATCHES, by_layer=by_layer)
    padded = [(np.pad(b, ((0, 8 - len(b)), (0, 0)), constant_values=1e3), np.arange(8) < len(b)) for b in BATCHES]
    got, report = recalibrate(
        make(), padded, call=lambda model, batch: model(batch[0]), valid=lambda batch: batch[1], by_layer=by_layer
    )
    assert_same(got, want, 2e-6)
    assert report["first"].evidence["count"] == len(ALL)


def test_valid_joins_the_mask_of_the_call():
    x, own = drawn(6, 4, 7), np.arange(7) < 4
    valid = np.random.default_rng(0).random((6, 7)) < 0.6
    model = nnx.BatchNorm(C, rngs=nnx.Rngs(0))
    state, _ = recalibrate(model, [x], call=lambda m, x: m(x, mask=own[:, None]), valid=lambda x: jnp.asarray(valid))
    assert_measured(state, x[valid & own].astype(np.float64))


def test_a_mask_is_that_of_its_batch_in_functions_that_were_jitted_before():
    model, x = Block(nnx.Rngs(0)), drawn(6, 5)
    for keep in (4, 2, 5):
        state, _ = recalibrate(
            model, [x], call=lambda m, x: jit_of_a_user(m, x), valid=lambda x, keep=keep: jnp.arange(6) < keep
        )
        assert_measured(state["norm"], np.asarray(model.layer(x[:keep]), np.float64), 2e-6)


@nnx.jit
def jit_of_a_user(model, x):
    return model(x)


def test_a_mask_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"`valid` must give .* at 'layers/0' has the shape \(8, 5\)"):
        recalibrate(small(), BATCHES[:1], valid=lambda batch: jnp.ones(4, bool))


def test_the_model_is_left_alone_and_the_state_is_like_its_own():
    model = make()
    before = jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(model)))
    graphdef = nnx.graphdef(model)
    state, _ = recalibrate(model, BATCHES)
    assert nnx.graphdef(model) == graphdef
    jax.tree.map(np.testing.assert_array_equal, before, nnx.to_pure_dict(nnx.state(model)))
    assert jax.tree.structure(state) == jax.tree.structure(nnx.state(model, nnx.BatchStat))
    assert isinstance(state, nnx.State)


def test_dtypes_and_shardings_are_those_of_the_old_statistics():
    model = nnx.BatchNorm(C, rngs=nnx.Rngs(0))
    places = NamedSharding(mesh(4, names=("model",)), P())
    model.mean.set_value(model.mean[...].astype(jnp.bfloat16))
    model.var.set_value(jax.device_put(model.var[...], places))
    model.scale.set_value(jax.device_put(model.scale[...], places))
    model.bias.set_value(jax.device_put(model.bias[...], places))
    model.mean.set_value(jax.device_put(model.mean[...], places))
    state, _ = recalibrate(model, [jax.device_put(b, places) for b in BATCHES])
    assert state["mean"][...].dtype == jnp.bfloat16
    assert state["var"][...].sharding == places
    assert_measured(state | {"mean": ALL.mean(0)}, ALL)


def test_bfloat16_is_measured_in_float32():
    x = [jnp.asarray(b, jnp.bfloat16) for b in BATCHES]
    state, _ = recalibrate(nnx.BatchNorm(C, dtype=jnp.bfloat16, rngs=nnx.Rngs(0)), x)
    assert_measured(state, np.concatenate(x).astype(np.float64))


def test_complex_inputs():
    model = nnx.BatchNorm(C, param_dtype=jnp.complex64, rngs=nnx.Rngs(0))
    model.mean.set_value(model.mean[...].astype(jnp.complex64))
    x = [a + 1j * b for a, b in zip((drawn(4, 0), drawn(3, 1)), (drawn(4, 2), drawn(3, 3)), strict=True)]
    state, _ = recalibrate(model, x)
    both = np.concatenate(x).astype(np.complex128)
    np.testing.assert_allclose(state["mean"][...], both.mean(0), rtol=1e-6)
    np.testing.assert_allclose(state["var"][...], both.var(0), rtol=1e-6)


def test_four_devices_measure_what_one_does():
    x = [drawn(8, seed) for seed in range(3)]
    over = NamedSharding(mesh(4), P("d"))
    want, _ = recalibrate(make(), x, by_layer=True)
    got, _ = recalibrate(make(), [jax.device_put(b, over) for b in x], by_layer=True)
    assert_same(got, want, 1e-5)


def over_devices(model, x):
    spread = nnx.shard_map(lambda m, x: m(x), mesh=mesh(4), in_specs=(P(), P("d")), out_specs=P("d"))
    return spread(model, x)


def over_mapped_devices(model, x):
    shards = nnx.pmap(lambda m, x: m(x), in_axes=(None, 0), out_axes=0, axis_name="d", devices=jax.devices()[:4])
    return shards(model, x.reshape(4, -1, C))


def over_mapped_axis(model, x):
    return nnx.vmap(lambda m, x: m(x), in_axes=(None, 0), out_axes=0, axis_name="d")(model, x.reshape(4, -1, C))


@pytest.mark.parametrize("call", [over_devices, over_mapped_devices, over_mapped_axis])
@pytest.mark.parametrize("by_layer", [False, True])
def test_statistics_inside_of_maps_are_those_of_the_whole_batch(call, by_layer):
    model = nnx.Sequential(*(Block(nnx.Rngs(n), axis_name="d") for n in range(2)))
    x = [drawn(8, seed) for seed in range(2)]
    want, _ = recalibrate(model, x, by_layer=by_layer)
    got, _ = recalibrate(model, x, call=call, by_layer=by_layer)
    assert_same(got, want, 1e-5)


def test_devices_are_measured_over_though_the_model_names_no_axis():
    model, x = Block(nnx.Rngs(0)), drawn(8, 0)
    assert_same(recalibrate(model, [x], call=over_devices)[0], recalibrate(model, [x])[0], 1e-5)


def test_a_map_over_examples_that_shares_the_statistics_is_refused():
    with pytest.raises(ValueError, match=r"`call` maps or scans .* `axis_name` of the map"):
        recalibrate(Block(nnx.Rngs(0)), [drawn(8, 0, 3)], call=nnx.vmap(lambda m, x: m(x), in_axes=(None, 0)))


def test_stacks_that_are_mapped_are_norms_of_their_own():
    model, x = stacked(nnx.Rngs(0)), drawn(7, 0)
    state, _ = recalibrate(model, [x], call=nnx.vmap(lambda m, x: m(x), in_axes=(0, None)))
    for n in range(3):
        h = x.astype(np.float64) @ np.asarray(model.layer.kernel[n], np.float64)
        assert_measured({name: state["norm"][name][n] for name in ("mean", "var")}, h, 2e-6)


class Shared(nnx.Module):
    """A block at three places of the model, whose first is neither the first of the class nor of the calls."""

    def __init__(self, rngs):
        self.z = Block(rngs)
        self.b = nnx.List([nnx.Linear(C, C, rngs=rngs), self.z])
        self.a = nnx.Dict(other=self.b[1])

    def __call__(self, x):
        return self.a["other"](self.b[0](self.z(x)))


def test_a_shared_norm_has_one_row_at_its_first_path_and_pools_its_calls():
    model = randomize(Shared(nnx.Rngs(0)))
    state, report = recalibrate(model, BATCHES)
    assert [row.path for row in report] == ["a/other/norm"]
    assert report["a/other/norm"].reason == "called several times a batch, its calls are pooled"
    affine = lambda x, layer: x @ np.asarray(layer.kernel[...], np.float64) + np.asarray(layer.bias[...], np.float64)  # noqa: E731
    first = affine(ALL, model.z.layer)
    once = np.maximum(normalized_by_batch(model.z.norm, first), 0) + ALL
    again = affine(affine(once, model.b[0]), model.z.layer)
    assert_measured(state["a"]["other"]["norm"], np.concatenate([first, again]), 1e-5)
    _, report = recalibrate(model, BATCHES, by_layer=True)
    assert report["a/other/norm"].reason.endswith("`by_layer` promises nothing there")


def test_two_norms_that_share_their_statistics_pool_them():
    model = nnx.Sequential(nnx.BatchNorm(C, rngs=nnx.Rngs(0)), lambda x: 2 * x + 1, nnx.BatchNorm(C, rngs=nnx.Rngs(0)))
    one, _, other = model.layers
    other.mean, other.var = one.mean, one.var
    call = lambda m, x: [m.layers[0](x), m.layers[2](2 * x + 1)]  # noqa: E731
    state, report = recalibrate(model, BATCHES, call=call)
    assert report.done == ("layers/0",)
    assert_measured(state["layers"][0], np.concatenate([ALL, 2 * ALL + 1]))


class Own(nnx.Module):
    """Somebody's own batch norm."""

    def __init__(self):
        self.mean, self.var = nnx.BatchStat(jnp.ones(C)), nnx.BatchStat(jnp.ones(C))

    def __call__(self, x):
        return x - self.mean[...][None]


class Calls(nnx.BatchNorm):
    """A subclass that adds to Flax's call."""

    def __call__(self, x, *args, **kwargs):
        return 2 * super().__call__(x, *args, **kwargs)


class CallsNot(nnx.BatchNorm):
    """A subclass that replaces Flax's call."""

    def __call__(self, x):
        return x - self.mean[...][None]


class Zoo(nnx.Module):
    def __init__(self, rngs):
        self.loose = nnx.data({name: nnx.BatchStat(jnp.ones(C)) for name in ("mean", "var")})
        self.calls, self.calls_not, self.own = Calls(C, rngs=rngs), CallsNot(C, rngs=rngs), Own()
        self.frozen, self.never, self.ours = (cls(C, rngs=rngs) for cls in (nnx.BatchNorm, nnx.BatchNorm, BatchNorm))
        self.renorm, self.layer, self.copied = BatchRenorm(C, rngs=rngs), nnx.LayerNorm(C, rngs=rngs), Block(rngs)
        self.stateless = BatchNorm(C, track_running_stats=False, rngs=rngs)
        freeze(self, "^frozen")

    def __call__(self, x):
        x = self.calls_not(self.own(self.frozen(self.ours(self.calls(x)))))
        return nnx.clone(self.copied)(self.stateless(self.layer(self.renorm(x))))


def test_every_pair_is_done_or_refused_with_its_reason():
    model = randomize(Zoo(nnx.Rngs(0)))
    state, report = recalibrate(model, BATCHES[:2])  # one example is too few for what has no running state
    x = ALL[:11]
    assert report.done == ("calls", "ours")
    assert {row.path: row.reason for row in report if not row.done} == {
        "calls_not": "its class `CallsNot` has a call of its own, which does not call that of `BatchNorm`",
        "copied/norm": "it was called on a copy, or where a transformation takes the module as a constant",
        "frozen": "it is frozen",
        "loose": "`dict` is no norm of Flax or bnjax",
        "never": "it was not called",
        "own": "`Own` is no norm of Flax or bnjax",
        "renorm": "a norm of kind 'renorm', not a batch norm",
        "renorm/step": "no mean and no variance",
    }
    assert report["own"].kind == "Own"
    assert_measured(state["calls"], x)
    assert_measured(state["ours"], 2 * normalized_by_batch(model.calls, x), 1e-5)
    for path in report.refused[:-1]:
        keys = path.split("/")
        old, new = nnx.state(model, nnx.BatchStat), state
        for key in keys:
            old, new = old[key], new[key]
        jax.tree.map(np.testing.assert_array_equal, old, new)


def normalized_by_batch(norm, x=ALL):
    """The batches, each normalized by itself, in float64."""
    scale, bias = np.asarray(norm.scale[...], np.float64), np.asarray(norm.bias[...], np.float64)
    each = [b for b in np.split(x, (8, 11)) if len(b)]
    return np.concatenate([(b - b.mean(0)) / np.sqrt(b.var(0) + 1e-5) * scale + bias for b in each])


def test_a_scan_that_takes_the_module_as_a_constant_is_said():
    @nnx.scan(in_axes=(None, nnx.Carry), out_axes=nnx.Carry, length=2)
    def twice(block, x):
        return block(x)

    with pytest.raises(ValueError, match="takes the module as a constant"):
        recalibrate(Block(nnx.Rngs(0)), BATCHES, call=twice)


@pytest.mark.parametrize(
    ("model", "batches", "options", "words"),
    [
        (nnx.Linear(C, C, rngs=nnx.Rngs(0)), BATCHES, {}, "found nothing to do"),
        (Own(), BATCHES, {}, "`Own` is no norm of Flax or bnjax"),
        (Block(nnx.Rngs(0)), BATCHES, {"call": lambda model, x: model.layer(x)}, "norm (batch): it was not called"),
        (Block(nnx.Rngs(0)), [], {}, "`batches` is empty"),
        (Block(nnx.Rngs(0)), iter(BATCHES), {"by_layer": True}, "can be read once only"),
        ({"norm": Block(nnx.Rngs(0))}, BATCHES, {}, "`model` must be an `nnx.Module`, but it is a dict"),
        (Block(nnx.Rngs(0)), BATCHES, {"law": "pool"}, "`law` must be one of"),
    ],
)
def test_what_cannot_be_done_raises(model, batches, options, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        recalibrate(model, batches, **options)


def test_a_generator_is_read_once():
    state, _ = recalibrate(small(), (b for b in BATCHES))
    assert_measured(state["layers"][0], ALL)


OPTIONS = [
    {"virtual_batch_size": 2}, {"momentum": None}, {"unbiased": True}, {"pivot": None}, {"pivot": "running"},
    {"activation": "relu"}, {"zero_masked": True}, {"momentum": None, "virtual_batch_size": 3},
]  # fmt: skip


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_what_our_module_can_do_in_training_does_not_matter(options):
    model = nnx.Sequential(BatchNorm(C, rngs=nnx.Rngs(0), **options), BatchNorm(C, rngs=nnx.Rngs(0), **options))
    randomize(model)
    state, report = recalibrate(model, BATCHES)
    assert report.done == ("layers/0", "layers/1")
    assert_measured(state["layers"][0], ALL)
    y = normalized_by_batch(model.layers[0])
    assert_measured(state["layers"][1], np.maximum(y, 0) if "activation" in options else y, 1e-5)


def test_the_prior_of_adapt():
    model = small()
    norm = model.layers[0]
    old = {n: np.asarray(getattr(norm, n)[...], np.float64) for n in ("mean", "var")}
    share = 16 / (16 + len(ALL))
    weights = [len(b) / len(ALL) for b in BATCHES]
    within = sum(w * b.astype(np.float64).var(0) for w, b in zip(weights, BATCHES, strict=True))
    between = share * (1 - share) * (old["mean"] - ALL.mean(0)) ** 2
    want = {
        "average": share * old["var"] + (1 - share) * within,
        "merge": share * old["var"] + (1 - share) * ALL.var(0) + between,
    }
    for options in ({}, {"law": "merge"}):
        state = adapt(model, BATCHES, **options)[0]["layers"][0]
        mean = share * old["mean"] + (1 - share) * ALL.mean(0)
        np.testing.assert_allclose(state["mean"][...], mean, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(state["var"][...], want[options.get("law", "average")], rtol=1e-5)


def test_attributes_of_somebodys_class_are_not_taken_for_ours():
    class Activated(nnx.BatchNorm):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.activation, self.pivot, self.held, self.path = jnp.tanh, 3, True, "here"

        def __call__(self, x):
            return self.activation(super().__call__(x))

    model = nnx.Sequential(Activated(C, rngs=nnx.Rngs(0)), nnx.BatchNorm(C, rngs=nnx.Rngs(0)))
    state, _ = recalibrate(model, BATCHES)
    assert_measured(state["layers"][1], np.tanh(normalized_by_batch(model.layers[0])), 1e-5)


def test_the_mode_and_what_call_does_to_its_copy_stay_there():
    model = small()
    kernel = np.asarray(model.layers[1].layer.kernel[...])

    def call(model, x):
        model.train()
        model.layers[1].layer.kernel[...] = 0 * model.layers[1].layer.kernel[...]
        return model.layers[0](x)

    state, _ = recalibrate(model, BATCHES, call=call)
    assert not model.layers[0].use_running_average
    np.testing.assert_array_equal(model.layers[1].layer.kernel[...], kernel)
    assert_measured(state["layers"][0], ALL)
