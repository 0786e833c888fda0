"""The registry, the page that comes from it, norms of weights, and what errors say."""

import dataclasses
import inspect
import re
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx

import bnjax
import bnjax.family
import bnjax.linen as bnn
import bnjax.nnx as bnnx
from bnjax import NORMS, Moments, Whitening
from experiments import docs
from experiments.results import library_pages
from tests.kit import formulas
from tests.kit.comparison import assert_close, differences, wide
from tests.kit.formulas import ROWS
from tests.kit.norms import CHANNELS_TOGETHER

CONDITIONAL = (Path(__file__).resolve().parents[2] / "docs" / "guide" / "conditional.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```$", CONDITIONAL, re.MULTILINE | re.DOTALL)
WEIGHTS = [name for name, norm in NORMS.items() if norm.mask is NORMS["weight"].mask]
RNGS = partial(nnx.Rngs, 0)


def test_every_norm_is_in_the_battery():
    assert set(ROWS) | set(WEIGHTS) == set(NORMS)


@pytest.mark.parametrize("name", NORMS)
def test_a_row_is_true(name):
    """Names of functions and modules; what is said to be taken is taken."""
    row = NORMS[name]
    arguments = inspect.signature(row.function).parameters
    home = bnjax if row.function.__name__ in bnjax.__all__ else bnjax.family
    assert getattr(home, row.function.__name__) is row.function
    assert bool(row.mask) == ("where" in arguments)
    assert not row.sync or "axis_name" in arguments
    fields = {f.name: f.default for f in dataclasses.fields(getattr(bnn, row.module))}
    assert set(row.arguments) <= set(fields)
    assert row.takes_running_average == ("running" in arguments) == ("use_running_average" in fields)


def test_momentum_is_said_to_be_the_fraction_that_is_kept():
    """First of all: PyTorch's is the other fraction."""
    public = [
        t for api in (bnjax, bnn, bnnx) for t in vars(api).values() if inspect.isfunction(t) or inspect.isclass(t)
    ]
    arguments = [inspect.signature(t.__init__ if inspect.isclass(t) else t).parameters for t in public]
    takers = [t for t, names in zip(public, arguments, strict=True) if "momentum" in names]
    assert len(takers) > 30
    for t in takers:
        classes = t.__mro__ if inspect.isclass(t) else (t,)
        said = "\n".join(c.__doc__ or "" for c in classes if "bnjax" in c.__module__)
        line = re.search(r"^ +momentum: (.*)$", said, re.MULTILINE)
        assert line, t
        assert re.match(r"the fraction of the running state that is kept.*1 - PyTorch's", line[1]), t


OURS = [
    name
    for name in ROWS
    if not issubclass(
        getattr(bnn, NORMS[name].module), (nn.BatchNorm, nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, nn.InstanceNorm)
    )
]


@pytest.mark.parametrize("name", OURS)
def test_linen_and_nnx_have_the_function_s_arguments(name):
    """The same names and the same defaults, thrice."""
    linen, function = getattr(bnn, NORMS[name].module), NORMS[name].function
    own = {p.name: p.default for p in inspect.signature(function).parameters.values() if p.kind == p.KEYWORD_ONLY}
    own = {k: v for k, v in own.items() if k not in ("where", "train", "dtype", "domain")}
    fields = {f.name: f.default for f in dataclasses.fields(linen) if f.name not in ("parent", "name")}
    assert own.items() <= fields.items()
    layer = bnnx.make_norm(name, 64, rngs=RNGS())
    assert set(fields) <= {k for k in vars(layer) if k not in layer.spec.variables} | {"use_running_average"}
    assert {k: getattr(layer, k) for k in own} == own


@pytest.mark.parametrize("name", ROWS)
def test_the_axes_of_the_statistics_are_those_of_the_formula(name):
    """What one element changes, by the formula in numpy: the elements along the axes of all statistics together."""
    x = np.random.default_rng(0).normal(size=(4, 3, 2, 6))
    state = {"mean": np.zeros(6), "var": np.ones(6), "matrix": np.zeros((2, 3, 3))}
    if ROWS[name].inputs(4) or name == "split":
        state = {k: np.stack([v, v]) for k, v in state.items()}
    p = {k: np.float64(0.5) for k in ("alpha", "shift", "v")} | {"threshold": np.float64(-np.inf)}
    p |= {k: np.zeros(3) for k in ("mean_weight", "var_weight")} | {
        k: np.ones(2) for k in ("channel_scale", "channel_bias")
    }
    y, changed = (
        ROWS[name].formula(t, p, np.ones(x.shape), state, True, **ROWS[name].options, **ROWS[name].inputs(4))[0]
        for t in (x, x + 0.3 * (np.arange(x.size) == 0).reshape(x.shape))
    )
    moved = np.argwhere(y != changed)
    axes = {axis for axis, places in zip("NHWC", moved.T, strict=True) if places.any()}
    if name in CHANNELS_TOGETHER:
        axes.remove("C")  # one statistic is of several channels, not over them
    assert axes == {axis for statistic in NORMS[name].statistics for axis in statistic.axes}


@pytest.mark.parametrize("name", ROWS)
def test_what_is_measured_and_what_is_synchronised_agree(name):
    spec = NORMS[name]
    if "N" in {axis for statistic in spec.statistics for axis in statistic.axes}:
        assert spec.sync or spec.sync.name == "BY_SLICE"
    else:
        assert spec.sync.name == ("BY_EXAMPLE" if spec.statistics else "POINTWISE")
    assert bool(spec.mask) == bool(spec.statistics)


STARTS = {  # of variables, by their names; as the papers have it
    "scale": 1, "bias": 0, "mean": 0, "var": 1, "step": 0, "matrix": np.eye(3), "v": 1, "threshold": 0, "alpha": 0.5,
    "shift": 0, "mean_weight": 1, "var_weight": 1, "channel_scale": 1, "channel_bias": 0,
}  # fmt: skip
OTHER_STARTS = {("grn", "scale"): 0, ("scale", "scale"): np.sqrt(6)}


@pytest.mark.parametrize("name", ROWS)
def test_what_variables_start_from(name):
    variables = nnx.to_pure_dict(nnx.state(bnnx.make_norm(name, 6, **ROWS[name].options, rngs=RNGS())))
    assert set(variables) == {*NORMS[name].parameters, *NORMS[name].variables}
    for variable, value in variables.items():
        want = OTHER_STARTS.get((name, variable), STARTS[variable])
        np.testing.assert_allclose(value, np.broadcast_to(want, value.shape), rtol=1e-7)


# What is generated


@pytest.mark.parametrize("part", docs.PARTS, ids=lambda part: part.path)
def test_what_is_generated_is_up_to_date(part):
    page = (docs.ROOT / part.path).read_text()
    assert part.made(page) == page, "run `python -m experiments.docs --write`"
    # One of them is in each part.
    words = ("GlobalResponseNorm", "global_resp", "**Confirmed:**", "| SWA", "- median accuracy", "| `digits_cnn` |")
    lines = [line for line in page.splitlines(keepends=True) if any(word in line for word in words)]
    assert lines or part.path in library_pages.pages()
    for line in lines:  # one that is missing comes back, in its place
        assert part.made(page.replace(line, "", 1)) == page, line


# The page


def block(word):
    """The names that the page's block with this word in it defines."""
    names = {}
    exec(next(code for code in BLOCKS if word in code), names)
    return names


def standardized(x, axes, eps):
    return formulas.standardized(x, np.ones(x.shape), axes, eps)


def away(variables, seed=0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda t: rng.normal(size=t.shape).astype(np.float32), variables)


def images(channels=3, seed=0):
    return np.random.default_rng(seed).normal(size=(2, 4, 4, channels)).astype(np.float32)


def test_adaptive_instance_norm():
    x, style = images(), 3 * images(seed=1) + 5
    y = block("adaptive_instance_norm")["adaptive_instance_norm"](x, style)
    std = np.sqrt(style.var((1, 2), keepdims=True) + 1e-5)
    assert_close(y, std * standardized(x, (1, 2), 1e-5) + style.mean((1, 2), keepdims=True))


def test_conditional_batch_norm():
    x, label = images(), np.array([2, 0])
    layer = block("ConditionalBatchNorm")["ConditionalBatchNorm"](3)
    variables = layer.init(jax.random.key(0), x, label, use_running_average=False)
    p = away(variables["params"])
    y, _ = layer.apply(variables | {"params": p}, x, label, use_running_average=False, mutable="batch_stats")
    scale, bias = (p[name]["embedding"][label][:, None, None] for name in ("scale", "bias"))
    assert_close(y, standardized(x, (0, 1, 2), 1e-5) * scale + bias)


def test_spade():
    x, segments = images(), images(2, seed=1)
    layer = block("class SPADE")["SPADE"](hidden=4)
    variables = layer.init(jax.random.key(0), x, segments, use_running_average=False)
    p = away(variables["params"])
    y, _ = layer.apply(variables | {"params": p}, x, segments, use_running_average=False, mutable="batch_stats")

    def conv(name, t, features):
        return nn.Conv(features, (3, 3)).apply({"params": p[name]}, t)

    hidden = jax.nn.relu(conv("Conv_0", segments, 4))
    want = standardized(x, (0, 1, 2), 1e-5) * (1 + conv("scale", hidden, 3)) + conv("bias", hidden, 3)
    assert_close(y, want)


def test_ada_ln_zero():
    x, condition = images()[:, 0], images(5, seed=1)[:, 0, 0]
    layer = block("class AdaLNZero")["AdaLNZero"](nn.Dense(3))
    variables = layer.init(jax.random.key(0), x, condition)
    np.testing.assert_array_equal(layer.apply(variables, x, condition), x)
    p = away(variables["params"])
    y = layer.apply({"params": p}, x, condition)
    given = condition / (1 + np.exp(-condition)) @ p["modulation"]["kernel"] + p["modulation"]["bias"]
    scale, bias, gate = np.split(given[:, None], 3, -1)
    inner = (standardized(x, -1, 1e-6) * (1 + scale) + bias) @ p["block"]["kernel"] + p["block"]["bias"]
    assert_close(y, x + gate * inner)


# Weights


@pytest.mark.parametrize("name", WEIGHTS)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_norms_of_weights(name, dtype):
    """As a function and around a layer in both APIs; the layer's parameters are left as they are."""
    rng = np.random.default_rng(0)
    w, scale, x = (rng.normal(size=shape).astype(np.float32) for shape in ((5, 3), 3, (2, 5)))
    w = np.asarray(jnp.asarray(w, dtype), np.float32)
    want = formulas.weight(name, *wide((w, scale)))
    ulp = float(jnp.finfo(dtype).eps)
    if name == "spectral":
        got = bnjax.spectral_norm(jnp.asarray(w, dtype), jnp.ones(3), n_steps=100)[0]
        more, call = {"n_steps": 100}, {"update_stats": False}
    else:
        got = NORMS[name].function(jnp.asarray(w, dtype), jnp.asarray(scale))
        more, call = {"use_scale": True}, {}
    assert got.dtype == dtype
    np.testing.assert_allclose(np.asarray(got, np.float64), want, rtol=0.51 * ulp, atol=2e-6)
    linen = bnn.make_norm(name, **more)(nn.Dense(3, name="layer"))
    variables = linen.init(jax.random.key(0), x, **call)
    given = {"layer": {"kernel": w, "bias": np.zeros(3, np.float32)}}
    variables = variables | {"params": jax.tree.map(jnp.asarray, _replaced(variables["params"], given, scale))}
    assert_close(linen.apply(variables, x, **call), x @ want, 2e-6)
    dense = nnx.Linear(5, 3, rngs=RNGS())
    dense.kernel[...] = jnp.asarray(w)
    layer = bnnx.make_norm(name, dense, rngs=RNGS(), **more)
    if name != "spectral":
        layer.scales["kernel",][...] = jnp.asarray(scale)
    assert_close(layer(x, **call), x @ want, 2e-6)
    np.testing.assert_array_equal(dense.kernel[...], w)


def _replaced(params, given, scale):
    """The layer's parameters are `given`; every other parameter is `scale`."""
    return {k: given["layer"] if isinstance(v, dict) else scale for k, v in params.items()}


@pytest.mark.parametrize("name", ["ws", "scaled_ws"])
def test_gradients_of_weight_standardization(name):
    rng = np.random.default_rng(0)
    w, g, scale = (rng.normal(size=shape).astype(np.float32) for shape in ((2, 2, 3), (2, 2, 3), 3))
    got = jax.grad(lambda w, s: (NORMS[name].function(w, s) * g).sum(), (0, 1))(w, scale)
    assert_close(got, differences(lambda w, s: (formulas.weight(name, w, s) * g).sum(), wide((w, scale))))


def test_scaled_activations_keep_the_variance():
    """Of a standard normal number, by quadrature."""
    from bnjax._norms.pointwise import _GAINS

    x = np.linspace(-12, 12, 200_001)
    density = np.exp(-(x**2) / 2) / np.sqrt(2 * np.pi)
    for name in _GAINS:
        y = np.asarray(bnjax.scaled_activation(x.astype(np.float32), name), np.float64)
        mean = np.trapezoid(y * density, x)
        assert abs(np.trapezoid((y - mean) ** 2 * density, x) - 1) < 5e-6, name
    with pytest.raises(ValueError, match="`activation` must be one of 'celu'"):
        bnjax.scaled_activation(1.0, "swish")


# Modules


def test_schedules_of_renorm():
    """The limits are functions of the number of steps: at first batch norm."""
    x = np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32) + 2
    schedules = {"r_max": optax.linear_schedule(1.0, 3.0, 1, 1), "d_max": optax.linear_schedule(0.0, 5.0, 1, 1)}
    layer = bnnx.BatchRenorm(3, **schedules, momentum=0.5, rngs=RNGS())
    plain = standardized(x, 0, 1e-3)
    assert_close(layer(x), plain)
    assert_close(layer(x), plain)  # step 1
    mean, root = layer.mean[...], np.sqrt(layer.var[...] + 1e-3)
    assert int(layer.step[...]) == 2
    assert_close(layer(x), (x - np.asarray(mean)) / root)  # no limit is reached
    assert int(layer.step[...]) == 3


def test_domains_by_name():
    x = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)
    layer = bnnx.SplitBatchNorm(3, domains=("clean", "adversarial"), momentum=0.0, rngs=RNGS())
    layer(x, domain="adversarial")
    np.testing.assert_array_equal(layer.mean[0], 0)
    assert_close(layer.mean[1], wide(x).mean(0))
    assert_close(layer(x, True, domain="adversarial"), wide(standardized(x, 0, 1e-5)))
    layer.eval()
    np.testing.assert_allclose(layer(x), x / np.sqrt(1 + 1e-5), rtol=1e-6)
    np.testing.assert_array_equal(nnx.view(layer, use_running_average=False)(x, domain=1), layer(x, False, domain=1))


@pytest.mark.parametrize("shape", [(6, 3), (6, 2, 3)])
@pytest.mark.parametrize("name", ["domain", "split"])
def test_what_domains_are_given_is_told_by_its_shape(name, shape):
    """One for all, for each domain or for each example, also where that has the rank of one for each domain."""
    rng = np.random.default_rng(0)
    x, domain = rng.normal(size=shape).astype(np.float32), np.array([1, 0, 0, 1, 0, 1])
    table = rng.normal(size=(2, 3)).astype(np.float32)
    example = table[domain].reshape(6, *(1 for _ in shape[2:]), 3)
    running = Moments(jnp.zeros(()), jnp.zeros((2, 3)), jnp.ones((2, 3)))
    function = partial(bnjax.domain_batch_norm, x, running)
    layer = bnnx.make_norm(name, 3, use_scale=False, use_bias=False, rngs=RNGS())
    for f in (partial(function, domain=domain), lambda **t: (layer(x, domain=domain, **t),)):
        plain = np.asarray(f()[0])
        for given, want in ((table[0], table[0]), (table, example), (example, example), (example[:1], example[:1])):
            assert_close(f(scale=given, bias=given)[0], plain * want + want)
    for bad in ((5, 3), (2, 4)):
        words = rf"`bias` must have .*\(3,\).*is \({bad[0]}, .*domain.*\(2, 3\)"
        with pytest.raises(ValueError, match=words):
            function(bias=jnp.ones(bad))


def test_whitening_is_differentiable_where_eigenvalues_are_equal():
    x = np.concatenate([np.eye(3), -np.eye(3)]).astype(np.float32)
    g = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)
    running = Whitening(jnp.zeros(3), jnp.eye(3)[None])
    got = jax.grad(lambda x: (bnjax.decorrelated_batch_norm(x, running)[0] * g).sum())(x)
    options = {"root": formulas.zca, "group_size": 3}
    state = {"mean": 0, "matrix": 0}

    def loss(x):
        return (formulas.whitened(x, {}, np.ones_like(x), state, True, **options)[0] * g).sum()

    assert_close((got,), differences(loss, (wide(x),)))


X = jnp.ones((4, 6))
RUNNING = Moments(jnp.zeros(()), jnp.zeros(6), jnp.ones(6))


def state(mean, var):
    return Moments(jnp.zeros(()), jnp.zeros(mean), jnp.ones(var))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: bnn.make_norm("grup"), "'grup'; did you mean 'group'"),
        (lambda: bnnx.make_norm("layr", 3, rngs=RNGS()), "'layr'; did you mean 'layer'"),
        (lambda: bnn.make_norm("group", groups=2), "`groups` is no argument of 'group', which takes .*`num_groups`"),
        (
            lambda: bnnx.make_norm("frn", 3, groups=2, rngs=RNGS()),
            "`groups` is no argument of 'frn', which takes .*`axis`",
        ),
        (
            lambda: bnnx.PixelNorm(3, rngs=RNGS())(X, scale=X[0]),
            "`scale` was given at the call of a norm that has none",
        ),
        (lambda: bnnx.EvoNormS0(6, num_groups=2, rngs=RNGS())(X, scale=X[0]), "construct it with `use_scale=False`"),
        (lambda: bnnx.BatchRenorm(6, use_running_average=None, rngs=RNGS())(X), "`use_running_average` must be given"),
        (lambda: bnjax.evo_norm_s0(X, num_groups=4), "`num_groups` must be a positive divisor of the 6 channels"),
        (lambda: bnjax.filter_response_norm(X * 1j), "`x` must be real"),
        (lambda: bnjax.filter_response_norm(X, axis=0), "`axis` must leave axis 0 to the examples"),
        (lambda: bnjax.global_response_norm(X[None], axis=(1, 2)), "`axis` must be one axis"),
        (lambda: bnjax.local_response_norm(X, size=0), "`size` must be a positive integer"),
        (lambda: bnjax.partial_rms_norm(X, fraction=0.1), "`fraction` must be above 0"),
        (lambda: bnjax.scale_norm(X, X[0]), "`scale` must be one number"),
        (lambda: bnjax.batch_renorm(X, RUNNING, r_max=0.5), "`r_max` must be at least 1"),
        (lambda: bnjax.batch_renorm(X, RUNNING, r_max=np.float32(0.5)), "`r_max` must be at least 1, but it is 0.5"),
        (lambda: bnjax.batch_renorm(X, RUNNING, r_max=jnp.float32(0.5)), "`r_max` must be at least 1, but it is 0.5"),
        (lambda: bnjax.batch_renorm(X, RUNNING, d_max=jnp.float32(-1)), "`d_max` must be finite and not negative"),
        (lambda: bnjax.batch_renorm(X, state(5, 5)), r"`running.mean` must have .*\(6,\).*is \(5,\)"),
        (lambda: bnjax.evo_norm_b0(X, state(5, 5)), r"`running.mean` must have .*\(6,\).*is \(5,\)"),
        (lambda: bnjax.evo_norm_b0(X, state(6, 5)), r"`running.var` must have .*\(6,\).*is \(5,\)"),
        (lambda: bnjax.evo_norm_b0(X, state((4, 6), (4, 6))), r"`running.mean` must have .*\(6,\).*is \(4, 6\)"),
        (lambda: bnjax.switchable_norm(X, state(5, 5)), r"`running.mean` must have .*\(6,\).*is \(5,\)"),
        (lambda: bnjax.switchable_norm(X, state(6, 5)), r"`running.var` must have .*\(6,\).*is \(5,\)"),
        (lambda: bnjax.partial_rms_norm(X[None], axis=(1, 2)), r"`axis` must be one axis.* but it is \(1, 2\)"),
        (
            lambda: bnjax.batch_channel_norm(X, RUNNING, channel_scale=X[0], num_groups=2),
            r"`channel_scale` must have the shape \(2,\), one for each group, .*\(6,\)",
        ),
        (
            lambda: bnjax.batch_channel_norm(X, RUNNING, channel_bias=2.0, num_groups=2),
            r"`channel_bias` must have the shape \(2,\), one for each group, .*\(\)",
        ),
        (lambda: bnjax.group_norm(X, num_groups=np.int64(4)), r"\(4\) does not divide .* \(6\)"),
        (lambda: bnnx.FilterResponseNorm("a", rngs=RNGS()), "`num_features` must be a positive integer.*'a'"),
        (lambda: bnnx.FilterResponseNorm((3, 0), rngs=RNGS()), r"`num_features` must be .*but it is \(3, 0\)"),
        (lambda: bnjax.sync_batch_stats({}, None), "`axis_name` must be a name.* but it is None"),
        (lambda: bnjax.domain_batch_norm(X, RUNNING), r"`running.mean` must have the shape \(2, 6\)"),
        (
            lambda: bnnx.DomainBatchNorm(6, rngs=RNGS())(X, domain="other"),
            "`domain` must be one of 'main', 'auxiliary'",
        ),
        (
            lambda: bnnx.DomainBatchNorm(6, rngs=RNGS())(X, domain=jnp.zeros(3, int)),
            "an integer for each of 4 examples",
        ),
        (lambda: bnnx.DomainBatchNorm(6, rngs=RNGS())(X, domain=2), "`domain` must be from 0 to 1"),
        (lambda: bnjax.switchable_norm(X, RUNNING, mean_weight=X[0]), r"`mean_weight` must have the shape \(3,\)"),
        (lambda: bnjax.batch_channel_norm(X, RUNNING, num_groups=4), "`num_groups` must be a positive divisor"),
        (
            lambda: bnjax.example_weighted_batch_norm(X, RUNNING, example_weight=2.0),
            "`example_weight` must be from 0 to 1",
        ),
        (lambda: bnjax.iterative_norm(X, Whitening(X[0], X), steps=0), "`steps` must be a positive integer"),
        (lambda: bnjax.iterative_norm(X, Whitening(X[0], X), group_size=4), "`group_size` must be a positive divisor"),
        (lambda: bnjax.decorrelated_batch_norm(X, Whitening(X[0], X)), "`running.matrix` must have the shape"),
        (lambda: bnnx.IterativeNorm(6, rngs=RNGS())(X, mask=X > 0), "`mask` must have length 1 along the channels"),
    ],
)
def test_errors(call, words):
    with pytest.raises(ValueError, match=words):
        call()


@pytest.mark.parametrize("number", [np.int64, jnp.int32])
def test_an_integer_of_any_make_is_one(number):
    """Where Python's is."""
    two, x = number(2), jnp.asarray(images(6))
    same = [
        lambda n: bnjax.group_norm(x, num_groups=n),
        lambda n: bnjax.group_norm(x, num_groups=None, group_size=n),
        lambda n: bnjax.evo_norm_s0(x, num_groups=n),
        lambda n: bnjax.batch_channel_norm(x, RUNNING, num_groups=n)[0],
        lambda n: bnjax.local_response_norm(x, size=n),
        lambda n: bnjax.iterative_norm(x, Whitening(X[0], jnp.ones((3, 2, 2))), steps=n, group_size=n)[0],
        lambda n: bnjax.spectral_norm(X, X[0], n_steps=n)[0],
        lambda n: bnjax.resize_steps(X, n, seen=n),
        lambda n: bnnx.FilterResponseNorm(3 * n, rngs=RNGS())(x),
        lambda n: bnnx.BatchNormLSTMCell(2, 3, max_steps=n, rngs=RNGS()).norm_c.mean[...],
    ]
    for f in same:
        np.testing.assert_array_equal(f(two), f(2))


def test_one_axis_may_be_a_tuple_of_one():
    x = jnp.asarray(images(6))
    np.testing.assert_array_equal(*(bnjax.partial_rms_norm(x, fraction=0.5, axis=a) for a in (-1, (3,))))


def test_what_a_norm_can_is_true_or_false_and_has_a_reason():
    assert NORMS["batch"].sync
    assert not NORMS["layer"].sync
    assert NORMS["layer"].sync.reason == "each example by itself"
    assert str(NORMS["layer"].sync) == "no: each example by itself"
    assert str(NORMS["dbn"].mask) == "yes, one for all channels"
    assert all(ability or ability.reason for row in NORMS.values() for ability in (row.sync, row.mask, row.gradient))
