"""The guide's pages on the life of a model: their snippets run in order as they stand, and give what they say."""

import re

import jax
import numpy as np
from flax import nnx

from bnjax._lifecycle.doctor.finding import REMEDIES
from tests import doctor_table
from tests.documents.test_devices import normalized, run
from tests.kit import references


def assert_equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def differ(a, b):
    return all(jax.tree.leaves(jax.tree.map(lambda s, t: bool((s != t).any()), a, b)))


def first_norm(params, x):
    """The moments of what a dense layer gives, in float64."""
    kernel, bias = (references.wide(params[name]) for name in ("kernel", "bias"))
    return references.moments(references.wide(x) @ kernel + bias, 0)


def test_averaged_weights_get_the_statistics_of_all_batches():
    names = run("averaged_weights.md")
    x = np.concatenate([names["batch_of"](seed)["x"] for seed in range(20)])
    params = names["averaged"]["params"]
    found, want = names["averaged"]["batch_stats"]["BatchNorm_0"], first_norm(params["Dense_0"], x)
    np.testing.assert_allclose(found["mean"], want.mean, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found["var"], want.var, rtol=1e-5)
    assert differ(params["Dense_0"]["kernel"], names["variables"]["params"]["Dense_0"]["kernel"])
    assert differ(found["var"], names["variables"]["batch_stats"]["BatchNorm_0"]["var"])

    net = names["net"]
    want = first_norm({"kernel": net.dense.kernel[...], "bias": net.dense.bias[...]}, x)
    np.testing.assert_allclose(net.norm.mean[...], want.mean, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(net.norm.var[...], want.var, rtol=1e-5)


def test_fine_tuning_holds_what_it_says_and_moves_the_rest():
    names = run("fine_tuning.md")
    loaded, held, tuned = names["loaded"], names["head_trained"], names["tuned"]
    assert_equal(held["params"]["backbone"], loaded["params"]["backbone"])
    assert_equal(held["batch_stats"], loaded["batch_stats"])
    assert differ(held["params"]["head"], names["first"]["params"]["head"])
    assert differ(tuned["params"]["backbone"]["Dense_0"]["kernel"], loaded["params"]["backbone"]["Dense_0"]["kernel"])
    want = first_norm(tuned["params"]["backbone"]["Dense_0"], names["x"])
    found = tuned["batch_stats"]["backbone"]["BatchNorm_0"]
    np.testing.assert_allclose(found["mean"], want.mean, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found["var"], want.var, rtol=1e-5)
    assert names["accuracy"] > 0.8


def test_fine_tuning_in_nnx_holds_the_norm_and_lets_it_go():
    names = run("fine_tuning.md")
    fresh = nnx.to_pure_dict(nnx.state(names["NnxClassifier"](nnx.Rngs(0))))
    held, net = names["held"], names["net"]
    assert_equal({name: held[name] for name in ("dense", "norm")}, {name: fresh[name] for name in ("dense", "norm")})
    assert differ(held["head"], fresh["head"])
    want = first_norm({"kernel": net.dense.kernel[...], "bias": net.dense.bias[...]}, names["x"])
    np.testing.assert_allclose(net.norm.mean[...], want.mean, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(net.norm.var[...], want.var, rtol=1e-5)
    assert type(net.norm) is nnx.BatchNorm
    assert differ(net.dense.kernel[...], fresh["dense"]["kernel"])


def test_somebody_else_s_model_measures_all_devices_together():
    names = run("other_models.md", devices=8)
    dense = names["variables"]["params"]["Dense_0"]
    h = references.wide(names["x"]) @ references.wide(dense["kernel"]) + references.wide(dense["bias"])
    for y, slices in (("y_jit", 1), ("y_alone", 8), ("y_synced", 1)):
        np.testing.assert_allclose(names[y], normalized(h, slices), rtol=1e-4, atol=1e-5)
    net = names["net"]
    h = references.wide(names["x"]) @ references.wide(net.dense.kernel[...]) + references.wide(net.dense.bias[...])
    np.testing.assert_allclose(names["y_nnx"], normalized(h), rtol=1e-4, atol=1e-5)
    for var in (names["new"]["batch_stats"]["BatchNorm_0"]["var"], names["stats"]["norm"]["var"]):
        assert var.shape == (8,)


def test_variables_go_from_one_api_to_the_other_and_back():
    names = run("two_apis.md")
    want = names["model"].apply(names["variables"], names["x"], train=False)
    np.testing.assert_allclose(names["y_nnx"], want, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(names["y_linen"], want)
    assert_equal(names["back"], dict(names["variables"]))
    compact = names["Compact"]().apply(names["compact"], names["x"], train=False)
    names["net2"].eval()
    np.testing.assert_allclose(names["net2"](names["x"]), compact, rtol=1e-6, atol=1e-6)


def test_the_doctor_says_what_the_page_says_of_it():
    names = run("doctor.md")
    found = {(f.path, f.code, f.severity) for f in names["diagnosis"].findings}
    decayed = {(f"norm{n}", "decayed", "warning") for n in range(3)}
    assert found == decayed | {("norm1", "stale", "error")}
    assert names["healthy"].findings == ()
    page = doctor_table.PAGE.read_text()
    assert re.findall(r"^\| `([\w-]+)` \| [^|]* \| (?:note|warning|error)[^|]*\|$", page, re.MULTILINE) == list(
        REMEDIES
    )
    healthy, planted = (re.search(rf"<!-- {name} -->\n(.*?)<!-- /", page, re.DOTALL)[1] for name in doctor_table.TABLES)
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in healthy.splitlines()[2:]]
    assert [row[0].split()[0] for row in rows] == [one.name for one in (*doctor_table.SET, *doctor_table.OTHERS)]
    assert [row[4] for row in rows] == ["none"] * 10
    assert re.findall(r"^\| `([\w-]+)`", planted, re.MULTILINE) == list(doctor_table.FAULTS) == list(REMEDIES)
