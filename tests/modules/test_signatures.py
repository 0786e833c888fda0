"""The arguments of every class are written out: they cannot differ from those of its function and of Flax's class."""

import inspect
import re
from typing import get_args

import flax.linen
import flax.nnx
import jax
import jax.numpy as jnp
import pytest

import bnjax.linen
import bnjax.nnx
from bnjax import NORMS
from tests.kit.formulas import ROWS

APIS = {"linen": (bnjax.linen, flax.linen), "nnx": (bnjax.nnx, flax.nnx)}
OF_THE_CALL = {"where", "residual", "train", "domain"}
FLAX_NAMES = {"axis": "feature_axes", "pivot": "use_fast_variance"}
NOT_IN_FLAX = {"group": {"feature_axes"}}  # always the last axis
OWN_DEFAULTS = {"ws": {"use_scale": False}}
KEYWORD_ONLY = inspect.Parameter.KEYWORD_ONLY


def constructor(thing):
    """The arguments: name, whether it is given by name only, default."""
    parameters = list(inspect.signature(thing.__init__).parameters.values())[1:]
    assert all(p.kind in (KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD) for p in parameters), "not written out"
    return {p.name: (p.kind is KEYWORD_ONLY, p.default) for p in parameters if p.name not in ("parent", "name")}


def keywords(function):
    parameters = inspect.signature(function).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is KEYWORD_ONLY and p.name not in OF_THE_CALL}


def arrays(function):
    parameters = inspect.signature(function).parameters.values()
    return [p.name for p in parameters if p.kind is not KEYWORD_ONLY and p.name not in ("x", "running")]


@pytest.mark.parametrize("api", APIS)
@pytest.mark.parametrize("name", [name for name, row in NORMS.items() if not hasattr(flax.linen, row.module)])
def test_a_class_of_ours_takes_what_its_function_takes(name, api):
    row, (ours, theirs) = NORMS[name], APIS[api]
    got = constructor(getattr(ours, row.module))
    if row.wraps:
        want = {k: default for k, (_, default) in constructor(theirs.WeightNorm).items()}
        want |= {k: v for k, v in keywords(row.function).items() if k not in ("axis", "dtype")}
        want |= OWN_DEFAULTS.get(name, {})
    else:
        want = keywords(row.function) | {"dtype": None, "param_dtype": jnp.float32, "zero_masked": False}
        want |= {f"use_{array}": True for array in arrays(row.function)}
        want |= {f"{array}_init": None for array in arrays(row.function)}
        if row.takes_running_average:
            want["use_running_average"] = None if api == "linen" else False
        if api == "nnx":
            want |= {"num_features": inspect.Parameter.empty, "rngs": inspect.Parameter.empty}
    assert {k: default for k, (_, default) in got.items()} == want
    if api == "nnx":
        assert [k for k, (by_name, _) in got.items() if not by_name] == list(got)[:1]


@pytest.mark.parametrize("api", APIS)
@pytest.mark.parametrize("name", [name for name, row in NORMS.items() if hasattr(flax.linen, row.module)])
def test_a_class_of_flax_takes_what_flax_and_the_function_take(name, api):
    row, (ours, theirs) = NORMS[name], APIS[api]
    got, flaxes = (list(constructor(getattr(module, row.module)).items()) for module in (ours, theirs))
    assert got[: len(flaxes)] == flaxes
    added, function = dict(got[len(flaxes) :]), keywords(row.function)
    function |= {"track_running_stats": True} if row.module == "BatchNorm" else {}
    assert {k: default for k, (_, default) in added.items()} == {k: function[k] for k in added}
    assert all(by_name for by_name, _ in added.values()) or api == "linen"
    missing = function.keys() - dict(got).keys()
    assert {FLAX_NAMES.get(k, k) for k in missing} - NOT_IN_FLAX.get(name, set()) <= dict(flaxes).keys()


def test_the_types_of_names_are_the_names():
    assert get_args(bnjax.NormName) == tuple(NORMS)


def test_help_shows_the_names_of_types_and_not_what_they_are_short_for():
    """`ArrayLike` alone is a union of eight types."""
    public = [t for t in vars(bnjax).values() if inspect.isfunction(t)]
    public += [t for api, _ in APIS.values() for t in vars(api).values() if inspect.isfunction(t)]
    public += [t.__init__ for t in vars(bnjax.nnx).values() if inspect.isclass(t)]
    for function in public:
        if function.__module__.startswith("bnjax"):
            annotations = {k: v for k, v in function.__annotations__.items() if not isinstance(v, str)}
            assert "ndarray" not in str(annotations), function


@pytest.mark.parametrize("api", APIS)
def test_all_classes_have_their_arguments_written_out(api):
    module, _ = APIS[api]
    classes = [
        thing for thing in vars(module).values() if inspect.isclass(thing) and thing is not bnjax.nnx.BatchMoments
    ]
    assert len(classes) >= 27
    for thing in classes:
        assert constructor(thing), thing


@pytest.mark.parametrize("api", APIS)
def test_help_says_what_each_argument_of_a_class_means(api):
    module, flax_module = APIS[api]
    title = "Attributes" if api == "linen" else "Args"
    for cls in vars(module).values():
        if not (inspect.isclass(cls) and issubclass(cls, flax_module.Module)):
            continue
        said = inspect.getdoc(cls).replace("\n    ", " ")
        assert said.count(f"\n{title}:\n") == 1, cls
        assert not re.search(r"^  \w+: likewise", said, re.MULTILINE), cls
        for name in constructor(cls):
            assert len(re.findall(rf"^  {name}: \S.*\S\.$", said, re.MULTILINE)) == 1, (cls, name)


def call_of(api, name, **how):
    """What a module is traced to; a weight norm wraps a layer that takes an input and nothing else."""
    x, row = jnp.ones((2, 3, 3, 6)), NORMS[name]
    options = ROWS[name].options if name in ROWS else {}
    how |= {"update_stats": False} if name == "spectral" else {}
    if api == "linen":
        norm = bnjax.linen.make_norm(name, **options)
        layer = norm(flax.linen.Dense(2)) if row.wraps else norm()
        variables = layer.init(jax.random.key(0), x, **({"update_stats": False} if name == "spectral" else {}))
        return str(jax.make_jaxpr(lambda x: layer.apply(variables, x, **how))(x))
    rngs = flax.nnx.Rngs(0)
    first = flax.nnx.Linear(6, 2, rngs=rngs) if row.wraps else 6
    layer = bnjax.nnx.make_norm(name, first, **options, rngs=rngs)
    return str(jax.make_jaxpr(lambda x: layer(x, **how))(x))


@pytest.mark.parametrize("api", APIS)
@pytest.mark.parametrize("name", [name for name, row in NORMS.items() if not row.takes_running_average])
def test_a_norm_without_a_running_state_ignores_use_running_average(name, api):
    """So that one program calls all norms alike; a layer that is wrapped does not get it."""
    plain, *others = (call_of(api, name, **how) for how in ({}, *({"use_running_average": v} for v in (True, False))))
    assert others == [plain, plain]


@pytest.mark.parametrize("api", APIS)
def test_a_recurrent_cell_with_batch_norm_takes_what_one_with_layer_norm_takes(api):
    module, _ = APIS[api]
    want, got = constructor(module.LayerNormLSTMCell), constructor(module.BatchNormLSTMCell)
    assert {k: got.get(k) for k in want} == want
    assert got.keys() - want.keys() == {"momentum", "axis_name", "use_running_average"} | (
        {"max_steps"} if api == "nnx" else set()
    )
