"""`doctor`: planted faults are found where they are, and nothing else is; in linen and in nnx."""

import json
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from bnjax import linen as bl
from bnjax import nnx as bx
from bnjax._lifecycle.doctor.facts import Batches
from bnjax._lifecycle.doctor.picture import figure
from tests.kit import devices, models_linen, population, references
from tests.kit.models_linen import LINEN

RNG = np.random.default_rng(0)
BATCHES = [RNG.normal(size=(64, 6)).astype(np.float32) for _ in range(4)]
BF16 = jnp.bfloat16


class Net(nn.Module):
    """Two norms, which may be after a layer with a bias, and after a dropout."""

    momentum: float = 0.9
    bias: bool = False
    rate: float = 0.0

    @nn.compact
    def __call__(self, x):
        norm = partial(nn.BatchNorm, use_running_average=True)
        x = nn.relu(norm(name="a", momentum=self.momentum)(nn.Dense(8, use_bias=self.bias, name="first")(x)))
        x = nn.Dense(8, use_bias=False, name="second")(nn.Dropout(self.rate, deterministic=True, name="drop")(x))
        return nn.Dense(3, name="head")(norm(name="b", momentum=0.9)(x))


class NnxNet(nnx.Module):
    """The same."""

    def __init__(self, momentum=0.9, bias=False, rate=0.0, *, rngs):
        self.first = nnx.Linear(6, 8, use_bias=bias, rngs=rngs)
        self.a = nnx.BatchNorm(8, momentum=momentum, rngs=rngs)
        self.drop = nnx.Dropout(rate, rngs=rngs)
        self.second = nnx.Linear(8, 8, use_bias=False, rngs=rngs)
        self.b = nnx.BatchNorm(8, momentum=0.9, rngs=rngs)
        self.head = nnx.Linear(8, 3, rngs=rngs)

    def __call__(self, x):
        return self.head(self.b(self.second(self.drop(nnx.relu(self.a(self.first(x)))))))


@cache
def healthy(bias=False):
    """Variables whose statistics are those of the batches, by numpy."""
    rng = np.random.default_rng(1)
    layers = {"first": (6, 8), "second": (8, 8), "head": (8, 3)}
    params = {n: {"kernel": rng.normal(size=s).astype(np.float32) / np.float32(s[0]) ** 0.5} for n, s in layers.items()}
    for name in ["head", *(["first"] if bias else [])]:
        params[name]["bias"] = rng.normal(size=layers[name][1]).astype(np.float32)
    norms = {n: {"scale": np.ones(8, np.float32), "bias": np.full(8, 0.3, np.float32)} for n in "ab"}
    return measured({"params": params | norms})


def wide(tree):
    return jax.tree.map(references.wide, tree)


def measured(variables, batches=BATCHES):
    """The same with the mean of the batches' statistics, each norm normalizing by the batch."""
    params, found = wide(variables["params"]), {"a": [], "b": []}
    for x in map(references.wide, batches):
        x = x @ params["first"]["kernel"] + params["first"].get("bias", 0.0)
        for name in "ab":
            mean, var = x.mean(0), x.var(0)
            found[name].append((mean, var))
            x = (x - mean) / np.sqrt(var + 1e-5) * params[name]["scale"] + params[name]["bias"]
            x = np.maximum(x, 0) @ params["second"]["kernel"] if name == "a" else x
    stats = {n: dict(zip(("mean", "var"), map(np.float32, np.mean(t, 0)), strict=True)) for n, t in found.items()}
    return {"params": variables["params"], "batch_stats": stats}


def changed(variables, path, change):
    """The variables with another leaf."""
    first, *rest = path.split("/")
    return {**variables, first: changed(variables[first], "/".join(rest), change) if rest else change(variables[first])}


def diagnosed(api, variables, batches=BATCHES, options=(), **arguments):
    """By linen, or by nnx."""
    options = dict(options)
    if api == "linen":
        return bl.doctor(Net(**options), variables, batches, **arguments)
    model = NnxNet(**options, rngs=nnx.Rngs(0))
    for collection in variables.values():
        for name, leaves in collection.items():
            for leaf, value in leaves.items():
                getattr(getattr(model, name), leaf).set_value(jnp.asarray(value))
    return bx.doctor(model, batches, **arguments)


def found(diagnosis):
    return {(f.path, f.code, f.severity) for f in diagnosis.findings}


def column(leaf, value=0.0, of=1):
    """The first `of` features times `value`."""
    return leaf * np.where(np.arange(leaf.shape[-1]) < of, np.float32(value), 1)


def put(path, change, again=True, **options):
    """Another leaf; then the statistics are measured again, or not."""
    variables = changed(healthy(**options), path, change)
    return measured(variables) if again else variables


STD = np.sqrt(healthy()["batch_stats"]["a"]["var"])
APART = [RNG.normal(m, 1, (64, 6)).astype(np.float32) for m in (-4, 4, -4, 4)]  # batches that differ
BIAS = ("a", "bias-before-norm", "note")
# Variables, what else is given, and all that is found.
FAULTS = {
    "none": (healthy, {}, {}),
    "chance": (healthy, {"batches": [BATCHES[0][:16]]}, {}),
    "never-updated": (
        lambda: put("batch_stats/a", lambda s: {"mean": 0 * s["mean"], "var": 0 * s["var"] + 1}, again=False),
        {}, {("a", "never-updated", "error")},
    ),
    "stale": (lambda: put("batch_stats/a/mean", lambda t: t + 2 * STD, again=False), {}, {("a", "stale", "error")}),
    "a little stale": (
        lambda: put("batch_stats/a/var", lambda t: t * 2.5, again=False), {}, {("a", "stale", "warning")},
    ),
    "dead": (lambda: put("params/first/kernel", column), {}, {("a", "dead-channels", "note")}),
    "half dead": (
        lambda: put("params/first/kernel", partial(column, of=4)), {}, {("a", "dead-channels", "warning")},
    ),
    "tiny": (lambda: put("params/first/kernel", lambda t: t * 1e-3), {}, {("a", "epsilon-dominates", "warning")}),
    "far": (
        lambda: put("params/first/bias", lambda t: t + 1000, bias=True), {"options": {"bias": True}},
        {("a", "mean-far-from-zero", "warning"), BIAS},
    ),
    "few": (
        healthy, {"batches": [x[n : n + 4] for x in BATCHES for n in range(0, 64, 4)]},
        {("a", "few-values", "warning"), ("b", "few-values", "warning")},
    ),
    "two": (
        healthy, {"batches": [x[n : n + 2] for x in BATCHES for n in range(0, 64, 2)]},
        {("a", "few-values", "error"), ("b", "few-values", "error")},
    ),
    "momentum": (
        lambda: put("batch_stats/a/var", lambda t: t * 2.5, again=False), {"options": {"momentum": 0.1}},
        {("a", "momentum-torch", "warning")},
    ),
    "bias": (lambda: healthy(bias=True), {"options": {"bias": True}}, {BIAS}),
    "scale": (lambda: put("params/a/scale", partial(column, of=4)), {}, {("a", "scale-gone", "warning")}),
    "dropout": (healthy, {"options": {"rate": 0.5}}, {("b", "dropout-before-norm", "warning")}),
    "low": (
        lambda: put("batch_stats/a", partial(jax.tree.map, lambda t: jnp.asarray(t * 2.5, BF16)), again=False),
        {}, {("a", "low-precision-state", "warning")},
    ),
    "apart": (lambda: measured(healthy(), APART), {"batches": APART}, {("", "train-eval-gap", "warning")}),
    "nan": (
        lambda: put("params/first/kernel", lambda t: t * np.float32("nan"), again=False),
        {}, {("a", "not-finite", "error")},
    ),
    "nan at the end": (
        lambda: put("params/head/bias", lambda t: t * np.float32("nan"), again=False),
        {}, {("", "not-finite", "error")},
    ),
    "decayed": (
        healthy, {"tx": optax.adamw(optax.linear_schedule(0, 1e-3, 10))},
        {("a", "decayed", "warning"), ("b", "decayed", "warning")},
    ),
    "not decayed": (healthy, {"tx": optax.adam(1e-3)}, {}),
    "never moved": (healthy, {"tx": optax.adamw(0.0)}, {("", "decayed", "note")}),
}  # fmt: skip
IN_NNX = ("none", "stale", "bias", "dropout", "momentum", "nan", "decayed")


@pytest.mark.parametrize(("api", "fault"), [("linen", f) for f in FAULTS] + [("nnx", f) for f in IN_NNX])
def test_a_fault_is_found_where_it_is_and_nothing_else(api, fault):
    variables, arguments, want = FAULTS[fault]
    diagnosis = diagnosed(api, variables(), **arguments)
    assert found(diagnosis) == set(want)
    assert diagnosis.report.done == ("a", "b")
    for path, code, severity in want:
        assert code in str(diagnosis)
        assert severity in str(diagnosis)
        assert path in str(diagnosis)
    assert [f["code"] for f in json.loads(diagnosis.to_json())["findings"]] == [f.code for f in diagnosis.findings]


def test_what_is_said_is_what_numpy_says():
    variables = put("batch_stats/a", lambda s: {"mean": s["mean"] + STD, "var": s["var"] * 3}, again=False)
    diagnosis = diagnosed("linen", variables)
    (stale,) = diagnosis.findings
    np.testing.assert_allclose(list(stale.evidence.values()), [1, 3], rtol=1e-3)
    apart = total = 0
    for x in map(references.wide, BATCHES):
        y = [outputs(measured(variables, [x]), x), outputs(variables, x)]
        apart, total = apart + np.sum((y[0] - y[1]) ** 2), total + np.sum((y[0] - y[0].mean(0)) ** 2)
    np.testing.assert_allclose(diagnosis.outputs_differ, np.sqrt(apart / total), rtol=1e-3)
    assert f"{diagnosis.outputs_differ:.2g} of their standard deviation" in str(diagnosis).replace("\n", " ")


def outputs(variables, x):
    """At evaluation, in float64."""
    params, stats = wide(variables["params"]), wide(variables["batch_stats"])
    x = x @ params["first"]["kernel"]
    for name, layer in (("a", "second"), ("b", "head")):
        x = (x - stats[name]["mean"]) / np.sqrt(stats[name]["var"] + 1e-5)
        x = x * params[name]["scale"] + params[name]["bias"]
        x = (np.maximum(x, 0) if name == "a" else x) @ params[layer]["kernel"]
    return x + params["head"]["bias"]


@pytest.mark.parametrize("api", ["linen", "nnx"])
def test_replicas(api):
    def three(apart):
        return jax.tree.map(lambda t: jnp.stack([t, t, t]), healthy()) | apart

    stacked = jax.tree.map(lambda t: jnp.stack([t, t + 0.1 * STD, t]), healthy()["batch_stats"])
    assert found(diagnosed(api, three({}), replicated=True)) == set()
    one = three({"batch_stats": {**three({})["batch_stats"], "b": stacked["b"]}})
    assert found(diagnosed(api, one, replicated=True)) == {("b", "replicas-differ", "warning")}
    params = changed(one, "params/first/kernel", lambda t: t.at[1].multiply(1.01))
    assert found(diagnosed(api, params, replicated=True)) == {("first", "replicas-differ", "error")}


def test_moments_of_uneven_batches():
    batches, x = Batches(), [RNG.normal(m, 1 + m, (n, 3)) for m, n in ((0, 5), (1, 9), (3, 2))]
    for t in x:
        parts = {"count": len(t) * np.ones(3), "calls": np.ones(3), "mean": t.mean(0), "var": t.var(0)}
        batches.add(parts)
    everything = np.concatenate(x)
    np.testing.assert_allclose(batches.mean, everything.mean(0), rtol=1e-12)
    np.testing.assert_allclose(batches.var, everything.var(0), rtol=1e-12)
    np.testing.assert_allclose(batches.within, sum(len(t) * t.var(0) for t in x) / 16, rtol=1e-12)
    assert (len(batches), batches.calls, batches.values) == (3, 3, 9)


@pytest.mark.parametrize("name", ["own", "lifted_last", "masked"])
def test_every_pair_of_a_state_is_measured_or_said_why_not(name):
    case, variables = LINEN[name], models_linen.variables(name)
    diagnosis = bl.doctor(case.make(), variables, case.batches(2), call=case.call)
    want = population.pairs_of({"batch_stats": variables["batch_stats"]})
    assert {row.path for row in diagnosis.report} == set(want)
    foreign = {path for path in want if "other" in path}
    assert set(diagnosis.report.refused) == foreign
    assert all(f"Not measured: {path}" in str(diagnosis) for path in foreign)


@pytest.mark.parametrize(("axis", "fresh"), [(0, False), (1, False), (1, True)])
def test_one_norm_of_a_stack(axis, fresh):
    """Three norms under a scan, of which one is stale, or was never updated."""

    class Stack(nn.Module):
        @nn.compact
        def __call__(self, x):
            lift = {"variable_axes": {"params": 0, "batch_stats": axis}, "split_rngs": {"params": True}}
            norms = nn.BatchNorm(use_running_average=True, momentum=0.9, name="norms")
            return nn.scan(lambda m, x, _: (jnp.tanh(m(x) + 0.5), None), length=3, **lift)(norms, x, None)[0]

    variables = Stack().init(jax.random.key(0), BATCHES[0])
    stats, _ = bl.recalibrate(Stack(), variables, BATCHES, law="average")
    assert found(bl.doctor(Stack(), {**variables, "batch_stats": stats}, BATCHES)) == set()
    off = {"mean": lambda t: 0 * t if fresh else t, "var": lambda t: 0 * t + 1 if fresh else 3 * t}
    which = jnp.expand_dims(jnp.arange(3) == 1, 1 - axis)
    stats = {"norms": {name: jnp.where(which, off[name](t), t) for name, t in stats["norms"].items()}}
    got = found(bl.doctor(Stack(), {**variables, "batch_stats": stats}, BATCHES))
    assert {code for _, code, _ in got} == {"never-updated" if fresh else "stale"}


def test_a_norm_that_measures_slices_has_the_values_of_a_slice():
    model = bl.BatchNorm(use_running_average=True, virtual_batch_size=4)
    variables = measured_alone(model, np.concatenate(BATCHES))
    assert found(bl.doctor(model, variables, BATCHES)) == {("", "few-values", "warning")}


def measured_alone(model, x):
    variables = model.init(jax.random.key(0), x)
    return {**variables, "batch_stats": {"mean": jnp.asarray(x.mean(0)), "var": jnp.asarray(x.var(0))}}


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_four_devices_are_one(kind):
    mesh, want = devices.mesh(4, kind=kind), diagnosed("linen", FAULTS["stale"][0]())
    with jax.set_mesh(mesh):
        variables = jax.device_put(FAULTS["stale"][0](), NamedSharding(mesh, P()))
        spread = [jax.device_put(x, NamedSharding(mesh, P("d"))) for x in BATCHES]
        got = diagnosed("linen", variables, spread)
    assert found(got) == found(want) == {("a", "stale", "error")}
    np.testing.assert_allclose(got.outputs_differ, want.outputs_differ, rtol=1e-5)


def test_padded_examples_count_for_nothing():
    rest = RNG.normal(50, 9, (8, 6)).astype(np.float32)
    padded = [np.concatenate([x, rest]) for x in BATCHES]
    diagnosis = diagnosed("linen", healthy(), padded, valid=lambda batch: jnp.arange(72) < 64)
    assert diagnosis.report["a"].evidence["values"] == 64
    assert diagnosis.findings == ()
    np.testing.assert_allclose(diagnosis.outputs_differ, diagnosed("linen", healthy()).outputs_differ, rtol=1e-4)


def test_norms_without_a_state_and_no_norms():
    model = nn.Sequential([nn.Dense(4), nn.LayerNorm()])
    x = np.ones((2, 3), np.float32)
    variables = jax.tree.map(np.array, model.init(jax.random.key(0), x))
    assert str(bl.doctor(model, variables, [x])) == "No findings."
    variables["params"]["layers_1"]["scale"][:2] = 0
    assert found(bl.doctor(model, variables, [x])) == {("layers_1", "scale-gone", "warning")}
    with pytest.raises(ValueError, match=r"`doctor` found nothing to do\. The model has no norm"):
        bl.doctor(nn.Dense(4), {"params": variables["params"]["layers_0"]}, [x])


def test_a_dropout_counts_for_the_first_norm_behind_it():
    class Drops(nn.Module):
        @nn.compact
        def __call__(self, x):
            norm, drop = partial(nn.BatchNorm, use_running_average=True), partial(nn.Dropout, deterministic=True)
            x = drop(0.5, name="drop")(norm(name="before")(x))
            x = x + norm(name="first")(nn.relu(x))
            x = nn.LayerNorm()(drop(0.1)(norm(name="again")(x)))
            return norm(name="behind")(x)

    variables = Drops().init(jax.random.key(0), BATCHES[0])
    found = [f for f in bl.doctor(Drops(), variables, BATCHES[:1]).findings if f.code == "dropout-before-norm"]
    assert [(f.path, f.evidence) for f in found] == [("first", {"dropout": "drop", "rate": 0.5})]


def test_the_picture_shows_every_norm_where_it_is(tmp_path):
    variables = put("batch_stats/a", lambda s: {"mean": s["mean"] + 5 * STD, "var": s["var"] * 64}, again=False)
    diagnosis = diagnosed("linen", variables)
    mean, var, said = figure(diagnosis.norms, diagnosis.findings).axes
    assert [label.get_text() for label in mean.get_yticklabels()] == ["a", "b"]
    for ax, want in ((mean, [5, 0]), (var, [64, 1])):
        points = {line.get_ydata()[0]: line.get_xdata()[0] for line in ax.lines if line.get_marker() != "None"}
        np.testing.assert_allclose([points[0], points[1]], want, rtol=1e-2, atol=1e-2)
    assert [text.get_text() for text in said.texts] == ["stale"]
    diagnosis.plot(tmp_path / "norms.png")
    assert (tmp_path / "norms.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match=r"`path` must end with .png, .svg, .pdf, but it is .*norms.doc"):
        diagnosis.plot(tmp_path / "norms.doc")
    assert [file.name for file in tmp_path.iterdir()] == ["norms.png"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"batches": []}, "`batches` is empty"),
        ({"batches": 3}, "`batches` must be a list of batches"),
        ({"tx": 0.1}, "`tx` must be an optax transformation, such as"),
        ({"tx": optax.contrib.reduce_on_plateau()}, "`tx` must take gradients and parameters alone"),
        ({"replicated": True}, "`replicated=True` says that each leaf"),
        ({"valid": [True]}, "`valid` must be a function"),
        ({"batches": {"x": BATCHES[0]}}, "`batches` must be a list of batches"),
        ({"batches": [{"x": BATCHES[0], "id": "7"}]}, r"`batches` .* has a str at `batch\['id'\]`; leave it out"),
        ({"call": None}, "`call` must be a function of a model and a batch"),
        ({"call": lambda model, x: (model(x), "logits")}, "`call` must return an array, or a tree of arrays"),
        ({"tx": optax.multi_transform({"a": optax.sgd(1)}, {"x": "a"})}, "`tx` does not fit the parameters"),
    ],
)
def test_bad_arguments(arguments, words):
    with pytest.raises(ValueError, match=words):
        diagnosed("linen", healthy(), **arguments)


@pytest.mark.parametrize(
    ("model", "variables", "words"),
    [
        (Net, healthy(), "`model` must be a module of linen, such as `Model\\(\\)`, but it is the class Net"),
        (Net(), healthy()["params"], "`variables` must have collections such as 'params'"),
        (Net(), {"params": healthy()["params"]}, "`variables` has no running mean and variance for 'a'"),
        (Net(), jax.eval_shape(healthy), "`variables` has shapes in the place of values"),
        (Net(), jax.tree.map(lambda t: np.stack([t, t]), healthy()), "give `replicated=True`"),
    ],
    ids=["class", "params", "no statistics", "shapes", "replicated"],
)
def test_models_and_variables_that_are_none(model, variables, words):
    with pytest.raises(ValueError, match=words):
        bl.doctor(model, variables, BATCHES)


@pytest.mark.parametrize(
    "change",
    [
        lambda y: jnp.where(jnp.arange(3) == 1, -jnp.inf, y),  # a masked class
        lambda y: jax.nn.softmax(y).sum(-1, keepdims=True),  # 1, but for rounding
    ],
    ids=["masked", "constant"],
)
def test_outputs_that_tell_nothing_blame_nothing(change):
    diagnosis = diagnosed("linen", healthy(), call=lambda model, x: change(model(x)))
    assert diagnosis.findings == ()
    assert diagnosis.outputs_differ < 0.25


def test_columns_of_a_table_with_units_of_their_own_are_not_dead():
    scale = np.float32([1e6, 1e5, 1e6, 1, 0.1, 0])
    batches = [x * scale for x in BATCHES]
    model = nn.Sequential([nn.BatchNorm(use_running_average=True), nn.Dense(3)])
    variables = model.init(jax.random.key(0), batches[0])
    variables = {**variables, "batch_stats": bl.recalibrate(model, variables, batches)[0]}
    (dead,) = bl.doctor(model, variables, batches).findings
    assert (dead.code, dead.severity, dead.evidence["features"]) == ("dead-channels", "note", 1)


def test_a_norm_whose_elements_are_all_padding_was_called():
    diagnosis = diagnosed("linen", healthy(), valid=lambda batch: jnp.zeros(64, bool))
    assert {row.reason for row in diagnosis.report} == {"no element was valid"}
