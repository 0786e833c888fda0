"""The small variants of all architectures run, under jit: forward, backward, masks, two APIs, every norm that fits."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from jax.sharding import PartitionSpec as P

from experiments.config import NORMS
from experiments.models import (
    alexnet,
    bert,
    bn_inception,
    densenet,
    mlp,
    recurrent,
    resnet,
    transformer,
    vgg,
    xception,
)
from experiments.models.dropout import Noise, attention_by_example, by_example
from experiments.models.norms import NormChoice
from tests.kit.comparison import assert_trees_close

N, LENGTH = 6, 5
IMAGES = jax.random.normal(jax.random.key(1), (N, 8, 8, 1))
TOKENS = jax.random.randint(jax.random.key(2), (N, LENGTH), 1, 8)
EXAMPLES = jnp.array([True, True, False, True, True, False])
POSITIONS = jnp.arange(LENGTH)[None] < jnp.array([5, 3, 0, 4, 5, 2])[:, None]
PAIR = {"source": TOKENS, "target": TOKENS[::-1, :4]}
PAIRS = {"source": POSITIONS, "target": jnp.arange(4)[None] < jnp.array([2, 4, 0, 4, 1, 3])[:, None]}
# As small as can be with every kind of layer. Dropout is tested by itself.
MODELS = {
    "mlp": (mlp.build, {"width": 8}, IMAGES, EXAMPLES),
    "resnet": (resnet.build, {"stages": (1, 1), "filters": 4}, IMAGES, EXAMPLES),
    "resnet50": (resnet.build, {"size": "50", "stages": (1,), "filters": 4, "classes": 3}, IMAGES, EXAMPLES),
    "vgg": (vgg.build, {"stages": ((4,), (4,)), "hidden": 8, "dropout": 0.0}, IMAGES, EXAMPLES),
    "alexnet": (alexnet.build, {"dropout": 0.0}, IMAGES, EXAMPLES),
    "densenet": (densenet.build, {"blocks": (1, 1), "growth": 4}, IMAGES, EXAMPLES),
    "xception": (xception.build, {"middle": 1, "stem": (4, 4), "entry": (8,), "exits": (8, 8, 8, 8)}, IMAGES, EXAMPLES),
    "bn_inception": (bn_inception.build, {"modules": ("3a",), "divided_by": 32}, IMAGES, EXAMPLES),
    "transformer": (transformer.build, {"features": 8, "hidden": 16, "heads": 2, "blocks": 1}, PAIR, PAIRS),
    "bert": (bert.build, {"features": 8, "blocks": 1, "vocabulary": 9}, TOKENS, POSITIONS),
    "lstm": (recurrent.build, {"features": 4}, IMAGES, EXAMPLES),
    "gru": (recurrent.build, {"size": "small_gru", "features": 4}, IMAGES, EXAMPLES),
}
CASES = [
    *[(name, norm) for name in MODELS if name not in ("gru", "alexnet") for norm in ("batch", "none")],
    ("resnet", "group"), *[(name, "layer") for name in ("bert", "lstm", "gru")],
    ("alexnet", "lrn"), ("alexnet", "batch"), ("gru", "none"), ("transformer", "dyt"), ("vgg", "evonorm_b0"),
]  # fmt: skip


def built(name, norm, **more):
    build, sizes, _, _ = MODELS[name]
    return build(norm=NormChoice(norm), **{"size": "small", **sizes, **more})


def drawn(variables):
    """Variables of these shapes and dtypes, at random: no branch starts at zero, and no variance is small."""
    random = np.random.default_rng(3)

    def draw(path, x):
        weights = path[-1].key in ("kernel", "embedding")
        return (random.normal(0, 0.4, x.shape) if weights else random.uniform(0.7, 1.3, x.shape)).astype(x.dtype)

    return jax.tree_util.tree_map_with_path(draw, variables)


def counted(mask, logits):
    """What counts of the logits, zeros elsewhere."""
    mask = mask["target"] if isinstance(mask, dict) else mask
    return jnp.where(mask.reshape(mask.shape + (1,) * (logits.ndim - mask.ndim)), logits, 0)


@functools.partial(jax.jit, static_argnums=0)
def run(model, variables, x, mask):
    """What counts of a step: the logits, the gradients and the statistics in training, and the logits at evaluation."""

    def loss(params):
        given = variables | {"params": params}
        logits, new = model.apply(given, x, train=True, mask=mask, mutable="batch_stats")
        logits = counted(mask, logits)
        return (jax.nn.log_softmax(logits)[..., 0] * (logits[..., 0] != 0)).sum(), (logits, new)

    (_, (logits, new)), gradients = jax.value_and_grad(loss, has_aux=True)(variables["params"])
    return logits, gradients, new, counted(mask, model.apply(variables, x, train=False, mask=mask))


def spoilt(x, mask):
    """Other inputs where nothing counts."""
    if isinstance(x, dict):
        return {name: spoilt(x[name], mask[name]) for name in x}
    other = 8 - x if jnp.issubdtype(x.dtype, jnp.integer) else 50 + x
    return jnp.where(mask.reshape(mask.shape + (1,) * (x.ndim - mask.ndim)), x, other)


@pytest.mark.parametrize(("name", "norm"), CASES)
def test_a_small_model_trains_and_what_is_masked_changes_nothing(name, norm):
    _, _, x, mask = MODELS[name]
    model = built(name, norm)
    variables = drawn(jax.eval_shape(functools.partial(model.init, train=False), jax.random.key(0), x))
    found = run(model, variables, x, mask)
    _, gradients, new, _ = found
    assert all(bool(jnp.isfinite(t).all()) for t in jax.tree.leaves(found))
    for path, slope in jax.tree_util.tree_leaves_with_path(gradients):
        assert path[-1].key not in ("kernel", "scale", "embedding") or bool(slope.any()), path
    assert bool(new) == (norm in ("batch", "evonorm_b0"))
    # As in a mask's own tests: what is masked is no part of any sum, and rounding alone may differ.
    assert_trees_close(run(model, variables, spoilt(x, mask), mask), found, rtol=1e-5, atol=1e-6)


# linen and nnx

TWINS = {
    "mlp": (mlp.build_nnx, "batch", {"inputs": 64}),
    "resnet": (resnet.build_nnx, "batch", {"channels": 1}),
    "transformer": (transformer.build_nnx, "rms", {}),
}


def nnx_model(name, norm, **more):
    make, _, given = TWINS[name]
    sizes = {"size": "small", **MODELS[name][1], **given, **more}
    return make(norm=NormChoice(norm), rngs=nnx.Rngs(0), **sizes)


def of_nnx(net, kind):
    return nnx.to_pure_dict(nnx.state(net, kind))


@pytest.mark.parametrize("name", TWINS)
def test_linen_and_nnx_compute_the_same(name):
    norm, more = TWINS[name][1], {"remat": True} if name == "resnet" else {}
    _, _, x, mask = MODELS[name]
    model = built(name, norm, **more)
    variables = drawn(jax.eval_shape(functools.partial(model.init, train=False), jax.random.key(0), x))
    graph = nnx.graphdef(nnx.eval_shape(lambda: nnx_model(name, norm, **more)))

    @jax.jit
    def linen(variables):
        logits, new = model.apply(variables, x, train=True, mask=mask, mutable="batch_stats")
        return logits, new.get("batch_stats", {}), model.apply(variables, x, train=False, mask=mask)

    @jax.jit
    def twin(variables):
        params, stats = variables["params"], variables.get("batch_stats", {})
        net = nnx.merge(graph, params, stats)
        evaluated = net(x, train=False, mask=mask)
        return net(x, train=True, mask=mask), of_nnx(net, nnx.BatchStat), evaluated

    assert_trees_close(twin(variables), linen(variables), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "norm", "more"),
    [
        ("resnet", "none", {"branch": "fixup"}),
        ("resnet", "none", {}),
        ("resnet", "pixel", {}),
        ("resnet", "frn", {"bottleneck": True, "shortcut": "projection"}),
        ("transformer", "layer", {"pre": True, "dropout": 0.1}),
        ("mlp", "none", {"dropout": 0.1}),
    ],
)
def test_linen_and_nnx_name_and_shape_everything_alike(name, norm, more):
    x = MODELS[name][2]
    variables = jax.eval_shape(functools.partial(built(name, norm, **more).init, train=False), jax.random.key(0), x)
    net = nnx.eval_shape(lambda: nnx_model(name, norm, **more))
    for collection, kind in (("params", nnx.Param), ("batch_stats", nnx.BatchStat)):
        shapes = [
            jax.tree.map(lambda t: (t.shape, t.dtype), t) for t in (variables.get(collection, {}), of_nnx(net, kind))
        ]
        assert shapes[0] == shapes[1]


# How branches start


@pytest.mark.parametrize(
    ("norm", "branch"), [("batch", "zero"), ("none", "zero"), ("none", "fixup"), ("none", "scaled")]
)
def test_branches_that_start_at_zero_leave_their_input(norm, branch):
    """Blocks are relu of their input, of what the stem gives, then: without a projection in between."""
    model = built("resnet", norm, branch=branch, stages=(3,))
    variables = jax.jit(functools.partial(model.init, train=False))(jax.random.key(0), IMAGES)
    _, seen = jax.jit(functools.partial(model.apply, train=False, capture_intermediates=True))(variables, IMAGES)
    stem, stage = (seen["intermediates"][name]["__call__"][0] for name in ("stem", "stage0"))
    np.testing.assert_array_equal(stem, stage)
    assert bool(stem.any())
    if branch == "fixup":
        assert not np.any(variables["params"]["dense"]["kernel"])
        kernels = (
            variables["params"]["stage0"]["block0"]["conv1"]["kernel"],
            variables["params"]["stem"]["conv"]["kernel"],
        )
        assert np.std(kernels[0]) == pytest.approx((2 / (9 * 4)) ** 0.5 * 3**-0.5, rel=0.2)  # 144 numbers


@pytest.mark.parametrize("branch", ["fixup", "scaled"])
def test_branches_that_take_the_place_of_norms_refuse_one(branch):
    with pytest.raises(ValueError, match=f"`branch` is '{branch}', which is without norms, but `norm` is 'batch'"):
        built("resnet", "batch", branch=branch).init(jax.random.key(0), IMAGES)


def test_scaled_weight_standardization_is_that_of_its_formula():
    """Of the first convolution at one pixel, and the scale of one behind a relu: deviations stay as they are."""
    model = built("resnet", "none", branch="scaled")
    params = jax.jit(functools.partial(model.init, train=False))(jax.random.key(0), IMAGES)["params"]
    _, seen = model.apply({"params": params}, IMAGES, train=False, capture_intermediates=True)
    found = seen["intermediates"]["stem"]["conv"]["__call__"][0][:, 1, 1]
    w = np.float64(params["stem"]["conv"]["layer_instance"]["kernel"])
    w = (w - w.mean((0, 1, 2))) / np.sqrt(9 * w.var((0, 1, 2)))
    np.testing.assert_allclose(found, np.einsum("nhwi,hwio->no", IMAGES[:, :3, :3], w), rtol=1e-5, atol=1e-5)
    behind = params["stage0"]["block0"]["conv1"]["layer_instance/kernel/scale"]
    normal = np.random.default_rng(0).normal(size=10**6)
    np.testing.assert_allclose(behind * np.maximum(normal, 0).std(), 1, rtol=0.01)
    sizes = [sum(x.size for x in jax.tree.leaves(t)) for t in (params, of_nnx(scaled_nnx(), nnx.Param))]
    assert sizes[0] == sizes[1]


def scaled_nnx():
    return nnx.eval_shape(lambda: nnx_model("resnet", "none", branch="scaled"))


# What all have in common


def shapes_of(model, x, **rngs):
    """Of the variables, and of the logits and new statistics in training."""
    variables = jax.eval_shape(functools.partial(model.init, train=False), jax.random.key(0), x)
    apply = functools.partial(model.apply, train=True, mutable="batch_stats", rngs=rngs)
    return variables, jax.eval_shape(apply, variables, x)


@pytest.mark.parametrize("name", MODELS)
def test_in_bfloat16_parameters_and_statistics_stay_float32(name):
    model = built(name, "layer" if name == "gru" else "batch", dtype=jnp.bfloat16)
    variables, (logits, new) = shapes_of(model, MODELS[name][2])
    assert logits.dtype == jnp.bfloat16
    assert {x.dtype for x in jax.tree.leaves((variables, new))} == {jnp.dtype(jnp.float32)}


@pytest.mark.parametrize("name", MODELS)
def test_with_parameters_of_float64_all_is_float64(name, x64):
    """As the training program has it: parameters and inputs are cast, the model is told nothing. With a second norm."""

    def wide(tree):
        return jax.tree.map(lambda t: t.astype(np.float64) if t.dtype == np.float32 else t, tree)

    model = built(name, "layer" if name in ("lstm", "gru", "mlp", "bert") else "group")
    x, mask = jax.tree.map(np.asarray, MODELS[name][2:])
    variables = jax.eval_shape(functools.partial(model.init, train=False), jax.random.key(0), x)

    def loss(variables, x):
        return model.apply(variables, x, train=True, mask=mask).sum()

    found = jax.eval_shape(lambda v, x: jax.value_and_grad(loss)(wide(v), wide(x)), variables, x)
    assert {t.dtype for t in jax.tree.leaves(found)} == {np.dtype(np.float64)}


@pytest.mark.parametrize("norm", ["none", "batch"])
def test_a_recurrent_network_runs_on_devices_that_each_have_a_part(norm):
    model = recurrent.build(norm=NormChoice(norm, batch={"axis_name": "data"} if norm == "batch" else {}), features=4)
    one = recurrent.build(norm=NormChoice(norm), features=4)
    variables = jax.eval_shape(functools.partial(one.init, train=False), jax.random.key(0), IMAGES)

    @functools.partial(
        jax.shard_map, mesh=jax.make_mesh((2,), ("data",), (jax.sharding.AxisType.Auto,)),
        in_specs=(P(), P("data"), P("data")), out_specs=P("data"),
    )  # fmt: skip
    def logits(variables, x, mask):
        return model.apply(variables, x, train=True, mask=mask, mutable="batch_stats")[0]

    assert jax.eval_shape(logits, variables, IMAGES, EXAMPLES).shape == (N, 10)


@pytest.mark.parametrize("name", ["mlp", "vgg", "alexnet", "densenet", "transformer", "bert"])
def test_dropout_drops_in_training_alone(name):
    model, x = built(name, "none", dropout=0.5), MODELS[name][2]
    with pytest.raises(Exception, match='needs PRNG for "dropout"'):
        shapes_of(model, x)
    shapes_of(model, x, dropout=jax.random.key(1))


class Attends(nn.Module):
    """Attention that looks at all positions alike, and hands out its weights, with dropout at a rate of a quarter."""

    @nn.compact
    def __call__(self, n, deterministic=False):
        alike, key = jnp.zeros((n, LENGTH, 2, 3)), None if deterministic else self.make_rng("dropout")
        values = jnp.tile(jnp.eye(LENGTH)[None, :, None], (n, 1, 2, 1))
        return attention_by_example(
            alike, alike, values, dropout_rng=key, dropout_rate=0.25, deterministic=deterministic
        )


def test_attention_drops_for_each_example_and_head_by_itself():
    def weights(examples, **how):
        with by_example(Noise(jax.random.key(0), jnp.array(examples))):
            return np.asarray(Attends().apply({}, len(examples), rngs={"dropout": jax.random.key(0)}, **how))

    found = weights(range(N))
    np.testing.assert_allclose(np.unique(found), [0, 1 / LENGTH / 0.75], rtol=1e-6)
    assert abs((found > 0).mean() - 0.75) < 0.1  # of 300 weights
    masks = {np.packbits(mask > 0).tobytes() for example in found for mask in example.swapaxes(0, 1)}
    assert len(masks) == 2 * N
    np.testing.assert_array_equal(weights([4, 1]), found[[4, 1]])
    np.testing.assert_allclose(weights(range(N), deterministic=True), 1 / LENGTH, rtol=1e-6)


def test_later_tokens_change_nothing_before_them():
    causal = built("bert", "layer", causal=True)
    translates = built("transformer", "layer", pre=True)
    for model, x in ((causal, {"": TOKENS}), (translates, PAIR)):
        variables = drawn(jax.eval_shape(model.init, jax.random.key(0), x.get("", x)))
        changed = {name: t.at[:, -1].set(7 - t[:, -1]) if name != "source" else t for name, t in x.items()}
        apply = jax.jit(functools.partial(model.apply, mask=jax.tree.map(lambda t: t > 0, x.get("", x))))
        a, b = (apply(variables, t.get("", t)) for t in (x, changed))
        np.testing.assert_allclose(a[:, :-1], b[:, :-1], rtol=1e-5, atol=1e-6)
        assert np.abs(a[:, -1] - b[:, -1]).max() > 1e-3


def test_sequences_that_are_too_long_are_refused():
    long, longer = jnp.ones((1, 129), int), built("bert", "layer", length=129)
    assert jax.eval_shape(longer.init, jax.random.key(0), long)["params"]["positions"]["embedding"].shape == (129, 8)
    with pytest.raises(ValueError, match="`inputs` must have at most 128 positions, but they have 129"):
        built("bert", "layer").init(jax.random.key(0), long)


OF_IMAGES = {"instance", "frn", "evonorm_b0", "evonorm_s0", "grn", "switchable"}
CANNOT = {"mlp": OF_IMAGES, "bert": OF_IMAGES | {"example_weighted", "bcn"}}


@pytest.mark.parametrize("norm", NORMS)
def test_every_norm_sits_in_a_resnet(norm):
    model = built("resnet", norm, filters=32, stages=(1,), dtype=jnp.float32)
    jax.eval_shape(functools.partial(model.init, train=False), jax.random.key(0), IMAGES[:1])


@pytest.mark.parametrize("name", CANNOT)
def test_norms_that_are_no_use_are_refused_with_the_choices(name):
    for norm in CANNOT[name]:
        with pytest.raises(
            ValueError, match=f"`norm` '{norm}' cannot sit at .*8.*: .* Choose one of none, batch, "
        ) as e:
            built(name, norm).init(jax.random.key(0), MODELS[name][2])
        said = str(e.value).partition("Choose one of ")[2].rstrip(".").split(", ")
        assert said == ["none", *(other for other in NORMS if other not in CANNOT[name])]


def test_wrong_names_are_refused_with_the_choices():
    with pytest.raises(ValueError, match=r"`norm` must be one of none, batch, .*'bach'"):
        NormChoice("bach")
    with pytest.raises(ValueError, match=r"`size` must be one of 18, 34, 50, .* 'fifty'"):
        resnet.build(norm=NormChoice(), size="fifty")
    with pytest.raises(ValueError, match=r"`norm` 'group' cannot sit in a cell 'gru'.* Choose one of none, layer"):
        built("gru", "group").init(jax.random.key(0), IMAGES)
    with pytest.raises(
        ValueError, match="measures all examples of a step together, but `batch` has `axis_index_groups`"
    ):
        recurrent.build(norm=NormChoice(batch={"axis_index_groups": ((0,), (1,))})).init(jax.random.key(0), IMAGES)
    with pytest.raises(ValueError, match=r"`norm` 'instance' cannot sit at images of one pixel .n, 1, 1, 4."):
        built("vgg", "instance", stages=((4,),) * 4, pools=4).init(jax.random.key(0), IMAGES)
