"""Which parameters are those of norms: those that weight decay should leave alone."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx

import bnjax.linen as bnn
import bnjax.nnx as bnnx
from bnjax import NORMS
from tests.kit.formulas import ROWS

RNGS = partial(nnx.Rngs, 0)

# The parameters of a module, by name, and whether they are those of a norm.
NORMS_OF_OTHERS = {
    "torch's": {"weight": (4,), "bias": (4,)},
    "of a public transformer": {"gamma": (4,), "beta": (4,)},
    "weight alone": {"weight": (4,)},
    "rms, as g": {"g": (1, 1, 4)},
    "g and b": {"g": (4,), "b": (1, 4)},
    "haiku's": {"scale": (4,), "offset": (4,)},
    "a kernel of one axis": {"kernel": (4,), "shift": (4,)},
    "scale of any rank": {"scale": (2, 3, 4), "other": (5, 5)},
    "one scale": {"scale": ()},
    "LayerScale": {"gamma": (4,)},
    "stacked by a scan": {"scale": (12, 4), "bias": (12, 4)},
}
NO_NORMS = {
    "Dense (8, 1)": {"kernel": (8, 1), "bias": (1,)},
    "Dense (1, 8)": {"kernel": (1, 8), "bias": (8,)},
    "torch's Linear (1, 8)": {"weight": (1, 8), "bias": (1,)},
    "convolution of one channel": {"kernel": (3, 3, 1, 1), "bias": (1,)},
    "depthwise convolution": {"kernel": (1, 1, 1, 4)},
    "Embed (10, 1)": {"embedding": (10, 1)},
    "Embed of its own name": {"weight": (10, 1)},
    "an embedding with a scale": {"embedding": (10, 4), "scale": (4,)},
    "a dense layer with a scale": {"kernel": (4, 4), "scale": (4,)},
    "class token": {"cls": (1, 1, 4)},
    "position table": {"pos_embedding": (1, 10, 4)},
    "relative bias": {"rel_embedding": (32, 4)},
    "PReLU slope": {"negative_slope": (4,)},
    "temperature": {"temperature": ()},
    "logit scale": {"logit_scale": (1,)},
    "a gate of one number": {"gamma": ()},
    "a lone bias": {"bias": (4,)},
    "gamma beside another": {"gamma": (4,), "token": (4,)},
    "gamma of two axes": {"gamma": (2, 4)},
}
CASES = {k: (v, True) for k, v in NORMS_OF_OTHERS.items()} | {k: (v, False) for k, v in NO_NORMS.items()}


class Holder(nnx.Module):
    """A module of those parameters."""

    def __init__(self, shapes):
        for name, shape in shapes.items():
            setattr(self, name, nnx.Param(jnp.ones(shape)))


def plain(mask):
    return nnx.to_pure_dict(mask) if isinstance(mask, nnx.State) else mask


@pytest.mark.parametrize("case", CASES)
def test_a_norm_is_told_by_its_parameters(case):
    """In a module, its state, its pure dict and a tree of linen, alone and in a list; not by what is beside it."""
    shapes, is_norm = CASES[case]
    want = {
        "a": dict.fromkeys(shapes, is_norm),
        "dense": {"kernel": False},
        "blocks": {0: dict.fromkeys(shapes, is_norm)},
    }
    module = nnx.Dict(a=Holder(shapes), dense=Holder({"kernel": (4, 4)}), blocks=nnx.List([Holder(shapes)]))
    state = nnx.state(module)
    for model in (module, state, nnx.to_pure_dict(state)):
        mask = bnnx.norm_params_mask(model)
        assert plain(mask) == want
        assert jax.tree.structure(mask) == jax.tree.structure(state if model is module else model)
    tree = jax.tree.map(lambda shape: jnp.ones(shape), shapes, is_leaf=lambda t: isinstance(t, tuple))
    linen = {"a": tree, "dense": {"kernel": jnp.ones((4, 4))}, "blocks": [tree]}
    assert bnn.norm_params_mask(linen) == want | {"blocks": [want["a"]]}
    assert bnn.norm_params_mask(tree) == want["a"]


def test_children_tell_nothing_of_their_parent():
    """A module with a child is no norm by its `gamma`; one with a child `scale` that is a layer is none by that."""
    child, own = {"kernel": jnp.ones((4, 4))}, jnp.ones(4)
    for parent in (
        {"gamma": own, "mlp": child},
        {"bias": own, "scale": child},
        {"weight": own, "norm": {"scale": own}},
    ):
        mask = bnn.norm_params_mask({"block": parent})["block"]
        assert not any(v for v in mask.values() if not isinstance(v, dict))
    assert mask["norm"]["scale"]
    assert bnn.norm_params_mask({"scale": own, "mlp": child}) == {"scale": True, "mlp": {"kernel": False}}


def test_names_are_of_submodules():
    bias = {"shift": {"bias": jnp.ones(4)}, "dense": {"bias": jnp.ones(4)}}
    want = {"shift": {"bias": True}, "dense": {"bias": False}}
    for names in ("shift", ("shift",), ["shift", "nothing"]):
        assert bnn.norm_params_mask(bias, names) == bnnx.norm_params_mask(bias, names=names) == want


def test_classes_are_of_modules():
    """A norm without a scale is told by its class; a state has none, and says so where classes are asked of it."""
    model = nnx.Dict(norm=nnx.BatchNorm(4, use_scale=False, rngs=RNGS()), dense=nnx.Linear(4, 1, rngs=RNGS()))
    assert plain(bnnx.norm_params_mask(model))["norm"] == {"bias": True}
    assert plain(bnnx.norm_params_mask(nnx.state(model, nnx.Param)))["norm"] == {"bias": False}
    assert plain(bnnx.norm_params_mask(nnx.state(model, nnx.Param), names=("norm",)))["norm"] == {"bias": True}
    assert all(plain(bnnx.norm_params_mask(model, (nnx.Linear,)))["dense"].values())
    with pytest.raises(ValueError, match=r"`types` needs a module, but `model` is of type State.*`names`"):
        bnnx.norm_params_mask(nnx.state(model), (nnx.Linear,))


def test_a_state_of_statistics_is_no_parameter():
    """Whole states hold running statistics and streams of random numbers, too."""
    model = nnx.Dict(norm=bnnx.BatchNorm(4, rngs=RNGS()), drop=nnx.Dropout(0.5, rngs=RNGS()))
    mask = bnnx.norm_params_mask(nnx.state(model))
    assert jax.tree.structure(mask) == jax.tree.structure(nnx.state(model))
    assert plain(mask)["norm"] == {"scale": True, "bias": True, "mean": False, "var": False}
    assert not any(jax.tree.leaves(plain(mask)["drop"]))


def decayed(norm_params_mask):
    return lambda params: jax.tree.map(lambda is_norm: not is_norm, norm_params_mask(params))


def test_weight_decay_under_an_optimizer_of_nnx():
    """It hands the mask a state of `Param` at first, and one of arrays at each update."""
    model = nnx.Dict(norm=bnnx.LayerNorm(4, rngs=RNGS()), dense=nnx.Linear(4, 2, rngs=RNGS()), own=Holder({"g": (4,)}))
    before = nnx.to_pure_dict(nnx.clone(nnx.state(model)))
    tx = optax.adamw(0.1, weight_decay=0.5, mask=decayed(bnnx.norm_params_mask))
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer):
        grads = nnx.grad(lambda model: 0.0 * model.dense(model.norm(jnp.ones((2, 4)))).sum())(model)
        optimizer.update(model, grads)

    step(model, optimizer)
    after = nnx.to_pure_dict(nnx.state(model))
    np.testing.assert_array_equal(after["norm"]["scale"], before["norm"]["scale"])
    np.testing.assert_array_equal(after["own"]["g"], before["own"]["g"])
    np.testing.assert_allclose(after["dense"]["kernel"], 0.95 * before["dense"]["kernel"], rtol=1e-6)


def test_weight_decay_of_a_tree_of_linen():
    params = {"norm": {"scale": jnp.ones(4)}, "dense": {"kernel": jnp.ones((4, 2))}}
    tx = optax.adamw(0.1, weight_decay=0.5, mask=decayed(bnn.norm_params_mask))
    update, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
    np.testing.assert_array_equal(update["norm"]["scale"], 0)
    np.testing.assert_allclose(update["dense"]["kernel"], -0.05)


def test_norm_params_mask_of_linen():
    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.Embed(5, 4, name="embed")(x)
            for name in ROWS:
                options = dict(ROWS[name].options) | {"name": name}
                call = {"use_running_average": True} if NORMS[name].takes_running_average else {}
                x = nn.Dense(6)(bnn.make_norm(name, **options)()(nn.Dense(6)(x), **call))
            return bnn.BatchNorm(use_running_average=True, use_scale=False, name="shift")(x)

    params = jax.eval_shape(Model().init, jax.random.key(0), jnp.ones((4, 3, 2), jnp.int32))["params"]
    for names, shift in (((), False), (("shift",), True)):
        mask = bnn.norm_params_mask(params, names)
        assert {k for k, v in mask.items() if all(jax.tree.leaves(v))} == (
            (set(ROWS) & set(params)) | ({"shift"} if shift else set())
        )
        assert not any(jax.tree.leaves({k: v for k, v in mask.items() if k not in ROWS and k != "shift"}))


def test_norm_params_mask_of_nnx():
    norms = {name: bnnx.make_norm(name, 6, **ROWS[name].options, rngs=RNGS()) for name in ROWS}
    model = nnx.Dict(
        **norms, dense=nnx.Linear(2, 3, rngs=RNGS()), weight=bnnx.WeightNorm(nnx.Linear(2, 3, rngs=RNGS()), rngs=RNGS())
    )
    mask = nnx.to_pure_dict(bnnx.norm_params_mask(model))
    assert {k for k, v in mask.items() if any(jax.tree.leaves(v))} == set(ROWS) - {"lrn", "pixel"}
    assert all(all(jax.tree.leaves(v)) for k, v in mask.items() if k in ROWS)
    assert jax.tree.leaves(bnnx.norm_params_mask(nnx.Dict(a=nnx.Linear(2, 2, rngs=RNGS())), (nnx.Linear,))) == [
        True,
        True,
    ]


@pytest.mark.parametrize("name", ["LayerNormLSTMCell", "LayerNormGRUCell", "BatchNormLSTMCell"])
def test_norm_params_mask_of_recurrent_cells(name):
    more = {"max_steps": 2} if "Batch" in name else {}
    mask = nnx.to_pure_dict(bnnx.norm_params_mask(getattr(bnnx, name)(2, 3, rngs=RNGS(), **more)))
    rnn = nn.RNN(getattr(bnn, name)(3), variable_axes={"batch_stats": 0} if "Batch" in name else {})
    params = jax.eval_shape(rnn.init, jax.random.key(0), jnp.ones((1, 2, 2)))["params"]["cell"]
    want = jax.tree_util.tree_map_with_path(lambda path, _: path[0].key.startswith("norm_"), params)
    assert mask == bnn.norm_params_mask(params) == want


def test_norm_params_mask_of_boxes_and_lists():
    """Parameters that say how they are sharded, and modules in lists."""
    part = lambda init, *names: nn.with_partitioning(init, names)  # noqa: E731

    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.Dense(4, kernel_init=part(nn.initializers.lecun_normal(), None, "model"))(x)
            return bnn.LayerNorm(scale_init=part(nn.initializers.ones, "model"))(x)

    params = Model().init(jax.random.key(0), jnp.ones((2, 3)))["params"]
    mask = bnn.norm_params_mask(params)
    assert jax.tree.structure(mask) == jax.tree.structure(params)
    norm, dense = {"scale": True, "bias": True}, {"kernel": False, "bias": False}
    assert nn.unbox(mask) == {"Dense_0": dense, "LayerNorm_0": norm}
    decay = optax.add_decayed_weights(1.0, jax.tree.map(lambda norm: not norm, mask))
    update = nn.unbox(decay.update(jax.tree.map(jnp.zeros_like, params), decay.init(params), params)[0])
    assert update["Dense_0"]["kernel"].any()
    assert not update["LayerNorm_0"]["scale"].any()
    blocks = {"blocks": [{"scale": 1.0, "bias": 1.0}, ({"kernel": 1.0, "bias": 1.0}, {"shift": {"bias": 1.0}})]}
    assert bnn.norm_params_mask(blocks) == {"blocks": [norm, (dense, {"shift": {"bias": False}})]}
    assert bnn.norm_params_mask(blocks, "shift") == {"blocks": [norm, (dense, {"shift": {"bias": True}})]}


def test_weight_decay_leaves_norms_alone():
    """With optax, in both APIs."""
    model = nnx.Dict(dense=nnx.Linear(2, 2, rngs=RNGS()), norm=bnnx.LayerNorm(2, rngs=RNGS()))
    keep = jax.tree.map(lambda norm: not norm, bnnx.norm_params_mask(model))
    params = nnx.state(model, nnx.Param)
    for tree, mask in ((params, keep), (nnx.to_pure_dict(params), nnx.to_pure_dict(keep))):
        decay = optax.add_decayed_weights(1.0, mask)
        update, _ = decay.update(jax.tree.map(jnp.zeros_like, tree), decay.init(tree), tree)
        update = nnx.to_pure_dict(update) if isinstance(update, nnx.State) else update
        assert not update["norm"]["scale"].any()
        np.testing.assert_array_equal(update["dense"]["kernel"], model.dense.kernel[...])
