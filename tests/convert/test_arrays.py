"""What is done with arrays alone: how they are read, matched, refused and written. Needs neither PyTorch nor Keras."""

import json
import re
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from flax.core import freeze
from safetensors.numpy import load, save, save_file

import bnjax
from bnjax import linen as bl
from bnjax import nnx as bx
from tests.convert.cases import Chain, Compact, Own
from tests.kit import models_linen

X = np.random.default_rng(0).normal(size=(2, 6, 5, 4)).astype(np.float32)
ROW = X[:, 0, 0]
DENSE = Compact(lambda x: nn.Dense(3)(x))
TWO = Compact(lambda x: nn.Dense(4, name="b")(nn.tanh(nn.Dense(4, name="a")(x))))


def shapes(model, x=ROW):
    return jax.eval_shape(model.init, jax.random.key(0), x)


def arrays(dtype=np.float32, **layers):
    """Of dense layers (out, in) by name."""
    rng = np.random.default_rng(len(layers))
    found = {}
    for name, (rows, columns) in layers.items():
        found[f"{name}.weight"] = rng.normal(size=(rows, columns)).astype(dtype)
        found[f"{name}.bias"] = rng.normal(size=rows).astype(dtype)
    return found


ONE = arrays(fc=(3, 4))


def of_dense(source, **options):
    variables, _ = bl.from_torch(source, DENSE, shapes(DENSE), ROW, **options)
    return variables["params"]["Dense_0"]


def test_neither_pytorch_nor_keras_is_imported(monkeypatch):
    for name in ("torch", "keras", "safetensors"):
        monkeypatch.setitem(sys.modules, name, None)  # an import of it raises
    np.testing.assert_array_equal(of_dense(ONE)["kernel"], ONE["fc.weight"].T)


def test_files(tmp_path):
    half = {name: value.astype(jnp.bfloat16) for name, value in ONE.items()}
    save_file(ONE, tmp_path / "one.safetensors")
    save_file(half, tmp_path / "half.safetensors")
    np.savez(tmp_path / "one.npz", **ONE)
    for n, (name, value) in enumerate(ONE.items()):
        save_file({name: value, f"{n}": value}, tmp_path / f"part-{n}.safetensors")
    places = {name: f"part-{n}.safetensors" for n, name in enumerate(ONE)}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    for file in ("one.safetensors", "one.npz", "model.safetensors.index.json"):
        np.testing.assert_array_equal(of_dense(str(tmp_path / file))["kernel"], ONE["fc.weight"].T)
    want = half["fc.weight"].astype(np.float32).T
    np.testing.assert_array_equal(of_dense(tmp_path / "half.safetensors")["kernel"], want)


def bad_files(folder):
    """Files that cannot be read, with what is said of them."""
    good = save(ONE)
    (folder / "cut.safetensors").write_bytes(good[:-8])
    header = json.dumps({"w": {"dtype": "F8_E4M3", "shape": [2], "data_offsets": [0, 2]}}).encode()
    (folder / "small.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"ab")
    np.savez(folder / "object.npz", w=np.array([{}], dtype=object))
    (folder / "text.npz").write_text("no zip")
    (folder / "list.json").write_text("[]")
    (folder / "index.json").write_text(json.dumps({"weight_map": {"w": "one.safetensors"}}))
    save_file(ONE, folder / "one.safetensors")
    return {
        "cut.safetensors": "cannot read", "small.safetensors": "float8", "object.npz": "pickle", "text.npz": "savez",
        "list.json": "weight_map", "index.json": "'w' is not in 'one.safetensors'", "none.npz": "no such file",
        "model.pt": "weights_only=True", "model.weights.h5": "Load the model in Keras",
        "model.onnx": "must be a mapping",
    }  # fmt: skip


def test_files_that_cannot_be_read(tmp_path):
    for file, words in bad_files(tmp_path).items():
        with pytest.raises(ValueError, match=f"(?s)`source` .*{re.escape(words)}") as error:
            of_dense(tmp_path / file)
        assert file in str(error.value)


@pytest.mark.parametrize("places", [["a"], None, {"a": 3}, {"a": "i.safetensors.index.json"}])
def test_an_index_that_names_no_files(places, tmp_path):
    file = tmp_path / "i.safetensors.index.json"  # which would name itself without end
    file.write_text(json.dumps({"weight_map": places}))
    with pytest.raises(ValueError, match=r"`source` is .*`weight_map`"):
        of_dense(file)


def test_a_file_of_safetensors_which_sorts_10_before_2_is_read_as_it_was_defined(tmp_path):
    model = Compact(lambda x: [x := nn.tanh(nn.Dense(4)(x)) for _ in range(11)][-1])
    source = arrays(**{f"net.{2 * n}": (4, 4) for n in range(11)})
    output = ROW
    for n in range(11):
        output = np.tanh(output @ source[f"net.{2 * n}.weight"].T + source[f"net.{2 * n}.bias"])
    save_file(source, tmp_path / "one.safetensors")
    (tmp_path / "i.safetensors.index.json").write_text(
        json.dumps({"weight_map": dict.fromkeys(sorted(source), "one.safetensors")})
    )
    for file in tmp_path.iterdir():
        _, report = bl.from_torch(file, model, shapes(model), ROW, expect=(ROW, output))
        assert [row.evidence["from"] for row in report] == [f"net.{2 * n}" for n in range(11)]


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (3, "but it is a int"),
        (ONE | {"fc.weight": ONE["fc.weight"] * 1j}, "complex numbers for 'params/Dense_0/kernel'"),
        ({"state_dict": ONE}, r"give `source\['state_dict'\]`"),
        ({"fc.weight": "x"}, "arrays of numbers"),
        ({"fc.weight_orig": ONE["fc.weight"], "fc.weight_u": ONE["fc.bias"]}, "remove_parametrizations"),
        ({"fc.weight": ONE["fc.weight"][:2], "fc.bias": ONE["fc.bias"][:2]}, "do not fit together"),
        (ONE | {"fc.bias": np.zeros(5)}, r"cannot put 'fc.bias' of shape \(5,\) into 'params/Dense_0/bias'"),
        (ONE | {"fc.running_mean": np.zeros(3)}, "do not fit together"),
    ],
    ids=["number", "complex", "nested", "text", "spectral", "shape", "bias", "statistics"],
)  # fmt: skip
def test_sources_that_do_not_fit(source, words):
    with pytest.raises(ValueError, match=words):
        of_dense(source)


def test_what_is_ambiguous_raises_with_both_lists_side_by_side():
    source = arrays(x=(4, 4), y=(4, 4))
    with pytest.raises(ValueError, match=r"`from_torch` cannot tell .* `expect=\(batch, output\)`") as error:
        bl.from_torch(source, TWO, shapes(TWO), ROW)
    assert [re.sub(" +", " ", line) for line in str(error.value).splitlines()[1:]] == [
        "the Flax model | the source",
        "a (dense): (4, 4) | x: weight (4, 4), bias (4,)",
        "b (dense): (4, 4) | y: weight (4, 4), bias (4,)",
    ]
    one = {name: value for name, value in source.items() if name.startswith("x")}
    with pytest.raises(ValueError, match=r"\? b \(dense\): \(4, 4\)|\? a"):
        bl.from_torch(one, TWO, shapes(TWO), ROW)


def test_names_decide_if_they_are_the_same_and_prefixes_do_not_count():
    source = {f"module.{name}": value for name, value in arrays(b=(4, 4), a=(4, 4)).items()}
    variables, report = bl.from_torch(source, TWO, shapes(TWO), ROW)
    np.testing.assert_array_equal(variables["params"]["a"]["kernel"], source["module.a.weight"].T)
    assert {row.path: row.evidence["from"] for row in report} == {"a": "module.a", "b": "module.b"}


def test_an_expected_output_that_does_not_come():
    source = arrays(x=(4, 4), y=(4, 4))
    right = bl.from_torch(source, TWO, shapes(TWO), ROW, rename=rename(x="a", y="b"))[0]
    output = TWO.apply(right, ROW)
    found, _ = bl.from_torch(source, TWO, shapes(TWO), ROW, expect=(ROW, output))
    jax.tree.map(np.testing.assert_array_equal, found, right)
    for batch, wrong, words in (
        (ROW, output + 1, r"(?s)the output differs by .*b \(dense\): \(4, 4\) \| y"),
        (ROW, output[:, :2], r"with the shapes \(2, 4\)"),
        (ROW[:, :2], output, "`expect` has a batch that the model does not take"),
    ):
        with pytest.raises(ValueError, match=words):
            bl.from_torch(source, TWO, shapes(TWO), ROW, expect=(batch, wrong))


def rename(**layers):
    """Of dense layers, by their names."""

    def renamed(name):
        layer, _, leaf = name.partition(".")
        return layers.get(layer) and f"params/{layers[layer]}/{'kernel' if leaf == 'weight' else leaf}"

    return renamed


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (rename(fc="Dense_1"), r"gives 'params/Dense_1/kernel'; did you mean 'params/Dense_0/kernel'"),
        (rename(), "has nothing for 'params/Dense_0/bias', 'params/Dense_0/kernel'"),
        (lambda name: "params/Dense_0/kernel" if "weight" in name else None, "has nothing for 'params/Dense_0/bias'"),
        (lambda name: "params/Dense_0/kernel", "for 'fc.weight' and for 'fc.bias'; give one of them"),
        ({"fc.weight": "params/Dense_0/kernel"}, "`rename` must be a function of a name, but it is a dict"),
        (lambda name: ["params/Dense_0/kernel"], r"`rename` must give .* for 'fc.weight' it gives \['params"),
        (lambda name: ("params/Dense_0/kernel", 3), "`rename` must give .* a pair of a name and a function"),
    ],
    ids=["unknown", "none", "one", "twice", "mapping", "list", "pair"],
)
def test_names_that_do_not_fit(given, words):
    with pytest.raises(ValueError, match=words):
        of_dense(ONE, rename=given)


def test_a_function_of_the_array():
    half = lambda w: w / 2  # noqa: E731
    renamed = lambda name: ("params/Dense_0/kernel", half) if "weight" in name else "params/Dense_0/bias"  # noqa: E731
    np.testing.assert_array_equal(of_dense(ONE, rename=renamed)["kernel"], ONE["fc.weight"].T / 2)
    variables = {"params": {"Dense_0": of_dense(ONE)}}
    back = bl.to_torch(DENSE, variables, ROW, rename=lambda path: ("w", half) if "kernel" in path else None)
    assert list(back) == ["w"]
    np.testing.assert_array_equal(back["w"], ONE["fc.weight"] / 2)


def test_a_new_head():
    source = arrays(body=(4, 4), head=(7, 4))
    model = Compact(lambda x: nn.Dense(3, name="new")(nn.Dense(4)(x)))
    variables = model.init(jax.random.key(0), ROW)
    new, report = bl.from_torch(source, model, variables, ROW, keep="^params/new/")
    assert new["params"]["new"]["kernel"] is variables["params"]["new"]["kernel"]
    np.testing.assert_array_equal(new["params"]["Dense_0"]["kernel"], source["body.weight"].T)
    assert [(row.path, row.reason) for row in report if not row.done] == [
        ("new", "it is kept as it was"), ("source: head", "it goes nowhere"),
    ]  # fmt: skip
    more = source | arrays(other=(9, 4))
    with pytest.raises(ValueError, match=r"\? other"):
        bl.from_torch(more, model, variables, ROW, keep="^params/new/")
    for keep, words in (
        ("(", "`keep` must be a regular expression"),
        ("haed", "`keep` is 'haed', which is found in no path of the model; the model has 'params/Dense_0/bias'"),
        (".", "`from_torch` found nothing to do. `keep` leaves all as it is"),
    ):
        with pytest.raises(ValueError, match=words):
            bl.from_torch(source, model, variables, ROW, keep=keep)
    with pytest.raises(ValueError, match="`variables` must have numbers for what `keep` leaves as it is"):
        bl.from_torch(source, model, shapes(model), ROW, keep="^params/new/")


def test_integers_that_rename_puts_in_place_are_weights():
    source = {name: (100 * value).astype(np.int8) for name, value in ONE.items()}
    variables, report = bl.from_torch(source, DENSE, shapes(DENSE), ROW, rename=rename(fc="Dense_0"))
    np.testing.assert_array_equal(variables["params"]["Dense_0"]["kernel"], source["fc.weight"].T)
    assert [(row.path, row.done) for row in report] == [("Dense_0", True)]


def test_models_and_variables_that_are_none():
    with pytest.raises(ValueError, match="`model` must be a module of linen"):
        bl.from_torch(DENSE, {}, shapes(DENSE), ROW)
    with pytest.raises(ValueError, match="`variables` must have collections"):
        bl.from_torch(ONE, DENSE, shapes(DENSE)["params"], ROW)
    with pytest.raises(ValueError, match="`call` must be a function"):
        bl.from_torch(ONE, DENSE, shapes(DENSE), ROW, call=None)
    with pytest.raises(ValueError, match="`variables` has shapes"):
        bl.to_torch(DENSE, shapes(DENSE), ROW)
    with pytest.raises(ValueError, match="`model` has shapes"):
        bx.to_torch(nnx.eval_shape(lambda: nnx.Linear(4, 3, rngs=nnx.Rngs(0))), ROW)
    _, other = bl.from_torch(arrays(x=(4, 4), y=(4, 4)), TWO, shapes(TWO), ROW, rename=rename(x="a", y="b"))
    with pytest.raises(ValueError, match="`rename` is a report of another model"):
        bl.to_torch(DENSE, DENSE.init(jax.random.key(0), ROW), ROW, rename=other)


@pytest.mark.parametrize("name", ["lifted_last", "wrapped", "more"])
def test_there_and_back_by_names(name):
    """Stacked along several axes, under spectral and weight norm, and with a count among the statistics."""
    case, variables = models_linen.LINEN[name], models_linen.variables(name)
    there = bl.to_torch(case.make(), variables, case.example, call=case.call)
    blank = jax.tree.map(jnp.zeros_like, variables)
    back, _ = bl.from_torch(there, case.make(), blank, case.example, call=case.call)
    assert jax.tree.structure(back) == jax.tree.structure(variables)
    jax.tree.map(np.testing.assert_array_equal, back, variables)


class Named(nn.Module):
    """Boxed, and in bfloat16."""

    @nn.compact
    def __call__(self, x):
        axes = nn.with_partitioning(nn.initializers.lecun_normal(), (None, "data"))
        return nn.Dense(8, kernel_init=axes, param_dtype=jnp.bfloat16)(x)


def test_containers_boxes_dtypes_and_places_stay():
    source = arrays(fc=(8, 4))
    mesh = bnjax.data_mesh()
    place = jax.NamedSharding(mesh, jax.P(None, mesh.axis_names[0]))
    variables = Named().init(jax.random.key(0), ROW)
    box = variables["params"]["Dense_0"]["kernel"]
    variables["params"]["Dense_0"]["kernel"] = box.replace_boxed(jax.device_put(box.unbox(), place))
    for given in (
        freeze(variables),
        jax.tree.map(lambda t: jax.ShapeDtypeStruct(t.shape, t.dtype, sharding=t.sharding), variables),
    ):
        new, _ = bl.from_torch(source, Named(), given, ROW)
        assert jax.tree.structure(new) == jax.tree.structure(given)
        kernel = new["params"]["Dense_0"]["kernel"].unbox()
        assert kernel.dtype == jnp.bfloat16
        assert kernel.sharding == place
        np.testing.assert_array_equal(kernel, source["fc.weight"].T.astype(jnp.bfloat16))


def test_what_would_overflow_is_refused():
    model = Compact(lambda x: nn.Dense(3, param_dtype=jnp.float16)(x))
    with pytest.raises(ValueError, match=r"overflow at 'params/Dense_0/kernel': its dtype is float16"):
        bl.from_torch(ONE | {"fc.weight": np.full((3, 4), 1e6)}, model, shapes(model), ROW)


def test_an_nnx_model_keeps_its_variables_and_stays_as_it_is_where_it_fails():
    model = Chain(nnx.Linear(4, 4, rngs=nnx.Rngs(0)), nnx.tanh, nnx.Linear(4, 3, rngs=nnx.Rngs(1)))
    kernel, before = model.layers[0].kernel, nnx.to_pure_dict(nnx.state(model))
    with pytest.raises(ValueError, match="do not fit together"):
        bx.from_torch(arrays(x=(4, 4)), model, ROW)
    jax.tree.map(np.testing.assert_array_equal, before, nnx.to_pure_dict(nnx.state(model)))
    source = arrays(x=(4, 4), y=(3, 4))
    report = bx.from_torch(source, model, ROW)
    assert report.done == ("layers/0", "layers/2")
    assert model.layers[0].kernel is kernel
    assert type(model.layers[0]) is nnx.Linear
    np.testing.assert_array_equal(kernel[...], source["x.weight"].T)
    with pytest.raises(ValueError, match=r"`model` must be an `nnx.Module`"):
        bx.from_torch(source, DENSE, ROW)


def test_slices_of_a_stack_by_rename():
    stack = Compact(
        lambda x: nn.scan(Layer, variable_axes={"params": 1}, split_rngs={"params": True}, length=2)()(x, None)[0]
    )
    source = arrays(x=(4, 4), y=(4, 4))
    places = {"x": 1, "y": 0}
    path = "params/ScanLayer_0/Dense_0/{}[{}]"
    renamed = lambda n: path.format("kernel" if "weight" in n else "bias", places[n[0]])  # noqa: E731
    new, _ = bl.from_torch(source, stack, shapes(stack), ROW, rename=renamed)
    kernel = new["params"]["ScanLayer_0"]["Dense_0"]["kernel"]
    np.testing.assert_array_equal(kernel[:, 1], source["x.weight"].T)
    np.testing.assert_array_equal(kernel[:, 0], source["y.weight"].T)
    whole = lambda n: path.format("kernel" if "weight" in n else "bias", 0)[:-3]  # noqa: E731
    with pytest.raises(ValueError, match=r"did you mean 'params/ScanLayer_0/Dense_0/kernel\[0\]' or"):
        bl.from_torch(source, stack, shapes(stack), ROW, rename=whole)


class Layer(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        return nn.tanh(nn.Dense(4)(x)), None


class Theirs(nn.Module):
    """A dense layer of somebody's own; (out, in), as in PyTorch, or as in Flax."""

    features: int
    outputs_first: bool

    @nn.compact
    def __call__(self, x):
        shape = (self.features, x.shape[-1]) if self.outputs_first else (x.shape[-1], self.features)
        w = self.param("w", nn.initializers.lecun_normal(), shape)
        return x @ (w.T if self.outputs_first else w)


@pytest.mark.parametrize("outputs_first", [True, False])
def test_a_layer_of_somebody_s_own(outputs_first):
    weight = ONE["fc.weight"]
    model = Compact(lambda x: Theirs(3, outputs_first)(x))
    new, report = bl.from_torch({"fc.weight": weight}, model, shapes(model), ROW)
    np.testing.assert_allclose(model.apply(new, ROW), ROW @ weight.T, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(bl.to_torch(model, new, ROW, rename=report)["fc.weight"], weight)
    square = Compact(lambda x: Theirs(4, outputs_first)(x))
    with pytest.raises(ValueError, match="its kernel is square"):
        bl.from_torch({"fc.weight": np.ones((4, 4))}, square, shapes(square), ROW)


def test_a_statistic_by_rename_and_no_count():
    model = Compact(lambda x: nn.BatchNorm(use_running_average=True, use_bias=False, use_scale=False)(x))
    source = {"n.running_mean": np.full(4, 2.0), "n.running_var": np.ones(4), "n.num_batches_tracked": np.array(3)}
    renamed = lambda name: f"batch_stats/BatchNorm_0/{name.removeprefix('n.running_')}"  # noqa: E731
    new, _ = bl.from_torch(source, model, shapes(model), ROW, rename=renamed)
    np.testing.assert_array_equal(new["batch_stats"]["BatchNorm_0"]["mean"], 2)


def test_settings_that_are_not_those_of_pytorch_are_said():
    model = Compact(lambda x: nn.LayerNorm()(nn.BatchNorm(use_running_average=True)(x)))
    ones = {name: np.ones(4, np.float32) for name in ("n.weight", "n.bias", "n.running_mean", "n.running_var")}
    ones |= {"l.weight": np.ones(4), "l.bias": np.ones(4), "n.num_batches_tracked": np.array(3), "ids": np.arange(3)}
    _, report = bl.from_torch(ones, model, shapes(model), ROW)
    assert "momentum is 0.99; PyTorch's default is 0.9" in report["BatchNorm_0"].reason
    assert report["BatchNorm_0"].evidence["steps"] == 3
    assert "epsilon is 1e-06; PyTorch's default is 1e-05" in report["LayerNorm_0"].reason
    assert report["source: ids"].reason == "it is no weight"


def test_same_padding_that_depends_on_the_size_is_said():
    model = Compact(lambda x: nn.Conv(3, (3, 3), (2, 2))(x))
    source = {"c.weight": np.ones((3, 4, 3, 3), np.float32), "c.bias": np.zeros(3, np.float32)}
    _, report = bl.from_torch(source, model, shapes(model, X), X)
    assert "padding is 'SAME', which in PyTorch is another" in report["Conv_0"].reason


def test_a_group_norm_after_a_flatten_is_refused():
    model = Compact(lambda x: nn.GroupNorm(2)(x.reshape(2, -1)))
    source = {"n.weight": np.ones(120), "n.bias": np.zeros(120)}
    with pytest.raises(ValueError, match="its groups are of other features than in PyTorch"):
        bl.from_torch(source, model, shapes(model, X), X)


def test_arrays_are_in_c_order_because_safetensors_takes_that_for_granted():
    transposed = np.arange(6.0).reshape(2, 3).T
    assert not np.array_equal(load(save({"w": transposed}))["w"], transposed)
    variables = {"params": {"Dense_0": of_dense(ONE)}}
    there = bl.to_torch(DENSE, variables, ROW)
    read = load(save(there))
    np.testing.assert_array_equal(read["Dense_0.weight"], ONE["fc.weight"])
    np.testing.assert_array_equal(read["Dense_0.bias"], ONE["fc.bias"])


class Uncalled(nn.Module):
    """Its variables may have more than it uses."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(3, name="used")(x)


def test_variables_that_no_layer_has():
    variables = {"params": {"used": of_dense(ONE), "other": {"kernel": np.ones((4, 3), np.float32)}}}
    with pytest.raises(
        ValueError, match=r"does not know what 'params/other/kernel' .no layer that `call` reaches has it"
    ):
        bl.to_torch(Uncalled(), variables, ROW)
    with pytest.raises(ValueError, match=r"\? params/other/kernel"):
        bl.from_torch(ONE, Uncalled(), variables, ROW)
    new, _ = bl.from_torch(ONE, Uncalled(), variables, ROW, keep="other")
    np.testing.assert_array_equal(new["params"]["used"]["kernel"], ONE["fc.weight"].T)


@pytest.mark.parametrize("plus", [0.0, 1.0])
def test_the_scale_of_somebody_s_own_norm(plus):
    model = Compact(lambda x: Own(plus)(x))
    source = {"n.weight": np.full(4, 1.5, np.float32), "n.bias": np.zeros(4, np.float32)}
    new, _ = bl.from_torch(source, model, shapes(model), ROW)
    np.testing.assert_array_equal(new["params"]["Own_0"]["scale"], 1.5 - plus)
    np.testing.assert_array_equal(bl.to_torch(model, new, ROW)["Own_0.weight"], 1.5)


def test_keras_gets_no_other_order_and_no_transpose():
    norm = partial(nn.BatchNorm, use_running_average=True, use_bias=False)
    model = Compact(lambda x: nn.Dense(3)(norm()(nn.Conv(4, (3, 3))(x).reshape(2, -1))))
    rng = np.random.default_rng(3)
    values = {"c/kernel": (3, 3, 4, 4), "c/bias": (4,), "d/kernel": (120, 3), "d/bias": (3,)}
    values |= {"n/gamma": (120,), "n/moving_mean": (120,), "n/moving_variance": (120,)}
    source = {name: rng.normal(size=shape).astype(np.float32) for name, shape in values.items()}
    new, _ = bl.from_keras(source, model, shapes(model, X), X)
    for layer, name in (("Conv_0", "c"), ("Dense_0", "d")):
        for leaf in ("kernel", "bias"):
            np.testing.assert_array_equal(new["params"][layer][leaf], source[f"{name}/{leaf}"])
    np.testing.assert_array_equal(new["params"]["BatchNorm_0"]["scale"], source["n/gamma"])
    np.testing.assert_array_equal(new["batch_stats"]["BatchNorm_0"]["var"], source["n/moving_variance"])
