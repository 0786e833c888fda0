"""`zero_masked=True`: what is masked out is zero, whatever stands there, and has no part in any gradient."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from jax.sharding import PartitionSpec as P

import bnjax
import bnjax.linen
import bnjax.nnx
from bnjax import NORMS, Moments
from tests.kit import devices, norms, references
from tests.kit.comparison import assert_close, wide
from tests.kit.formulas import ROWS

BAD = np.float32([np.nan, np.inf, -np.inf])
MASKED = list(ROWS)  # modules of norms without statistics take a mask, too
each = pytest.mark.parametrize("name", MASKED)


def poisoned(name, shape=norms.SHAPE):
    """An input with what is not finite where masked out, a cotangent that is not zero there, variables, the mask."""
    x, g, variables = norms.sample(name, shape)
    n = norms.some_valid(name, shape)
    return np.where(n, x, BAD[np.arange(x.size).reshape(shape) % 3]), g, variables, n


@partial(jax.jit, static_argnums=0)
def linen(name, x, g, variables, mask, more):
    """In training and at evaluation: output, gradients to the input and the parameters, and what bfloat16 gives."""

    def loss(x, params, call):
        layer = norms.module(name, zero_masked=True, dtype=x.dtype)
        y, new = layer.apply(variables | {"params": params}, x, mask=mask, **call, **more, mutable="batch_stats")
        return (y * g.astype(y.dtype)).sum(), (y, new.get("batch_stats", {}))

    def both(x, call):
        dx, (y, new) = jax.grad(partial(loss, call=call), has_aux=True)(x, variables["params"])
        return y, dx, new

    dparams = [jax.grad(loss, 1, has_aux=True)(x, variables["params"], call)[0] for call in norms.modes(name)]
    return [(*both(x, call), d) for call, d in zip(norms.modes(name), dparams, strict=True)], both(
        x.astype(jnp.bfloat16), norms.modes(name)[0]
    )


def at_evaluation(name, x, g, variables, n):
    """The output of the formula and its gradients, in float64."""
    x, g, variables, n = wide((x, g, variables, n))

    def loss(x, params):
        y = norms.formula(name, x, variables | {"params": params}, n, train=False)[0]
        return (y * g).sum(), y

    with jax.enable_x64(True), jax.numpy_rank_promotion("allow"):
        arguments = jax.tree.map(jnp.asarray, (x, variables["params"]))
        (dx, dparams), y = jax.jit(jax.grad(loss, (0, 1), has_aux=True))(*arguments)
        return wide((y, dx, dparams))


@each
def test_output_and_gradients_are_those_without_the_masked(name):
    """Zeros there, in training and at evaluation; elsewhere the formula, and its derivatives for a loss that masks."""
    x, g, variables, n = poisoned(name)
    mask, more, clean = norms.mask_of(name, n), norms.inputs(name, x), np.where(n, x, 0)
    got, (short, dshort, _) = linen(name, x, g, variables, mask, more)
    (y, state, dx, dparams), _ = norms.expected(name, clean, g * n, variables, n.astype(float))
    wanted = [(y * n, dx, state, dparams)]
    if len(got) > 1:
        y, dx, dparams = at_evaluation(name, clean, g * n, variables, n)
        wanted.append((y * n, dx, wide(variables["batch_stats"]), dparams))
    for each_got, want in zip(got, wanted, strict=True):
        assert_close(each_got, want)
    for t in (*(t for y, dx, *_ in got for t in (y, dx)), short, dshort):
        assert not np.asarray(t, np.float32)[~n].any()
        assert np.isfinite(np.asarray(t, np.float32)).all()
    assert short.dtype == dshort.dtype == jnp.bfloat16
    rounded = wide(clean.astype(jnp.bfloat16))
    want = np.where(n, norms.formula(name, rounded, wide(variables), n.astype(float))[0], 0)
    np.testing.assert_allclose(wide(short), want, rtol=0.51 * float(jnp.finfo(jnp.bfloat16).eps), atol=1e-5)


@each
def test_nnx_is_linen(name):
    x, g, variables, n = poisoned(name)
    layer = norms.nnx_module(name, zero_masked=True)
    nnx.update(layer, jax.tree.map(jnp.asarray, variables["params"] | variables["batch_stats"]))
    mask, more = norms.mask_of(name, n), norms.inputs(name, x)
    want = linen(name, x, g, variables, mask, more)[0]
    f = nnx.jit(lambda layer, x, mask: [layer(x, mask=mask, **call, **more) for call in reversed(norms.modes(name))])
    for y, (other, *_) in zip(reversed(f(layer, x, mask)), want, strict=True):
        assert_close(y, wide(other), 1e-6)
        assert not y[~n].any()


@pytest.mark.parametrize("name", ["batch", "bcn", "iternorm"])
def test_eight_devices_are_one(name):
    x, _, variables, n = poisoned(name, (16, 3, 6))
    mask = norms.mask_of(name, n)

    def f(x, mask, axis_name="d"):
        layer = norms.module(name, axis_name=axis_name, zero_masked=True)
        return layer.apply(variables, x, **norms.when(name, True), mask=mask, mutable="batch_stats")

    y, new = devices.sharded(f, 8, out_specs=(P("d"), P()))(x, mask)
    assert not y[~n].any()
    assert_close((y, new), wide(jax.jit(partial(f, axis_name=None))(x, mask)))


# What follows the norm

SHAPE = (6, 5, 4)
WHERE = np.random.default_rng(2).random(SHAPE) < 0.6


def arrays():
    rng = np.random.default_rng(0)
    return [t.astype(np.float32) for t in (*rng.normal(size=(3, *SHAPE)), rng.uniform(0.5, 2, 4), rng.normal(size=4))]


@pytest.mark.parametrize("options", [{}, {"virtual_batch_size": 3}, {"pivot": None}], ids=str)
def test_the_residual_too_and_after_the_activation(options):
    """A residual that is not finite where masked out reaches nothing; nor do an activation's derivatives there."""
    x, g, residual, scale, bias = arrays()
    running = Moments(jnp.zeros(()), jnp.zeros(4), jnp.ones(4))
    bad_x, bad = (np.where(WHERE, t, BAD[np.arange(t.size).reshape(SHAPE) % 3]) for t in (x, residual))

    @partial(jax.jit, static_argnums=0)
    def train(activation, x, residual, scale, bias):
        def loss(*args):
            x, residual, scale, bias = args
            how = {"where": WHERE, "zero_masked": True, "momentum": 0.0, **options}
            y, new = bnjax.batch_norm(x, running, scale, bias, residual=residual, activation=activation, **how)
            return (y * g).sum(), (y, new)

        return jax.grad(loss, (0, 1, 2, 3), has_aux=True)(x, residual, scale, bias)

    (dx, dresidual, *daffine), (y, new) = train("relu", bad_x, bad, scale, bias)
    size = options.get("virtual_batch_size", len(x))
    parts = [
        references.batch_norm(
            x[i : i + size], (g * WHERE)[i : i + size], scale, bias, where=WHERE[i : i + size],
            residual=residual[i : i + size], relu=True,
        )
        for i in range(0, len(x), size)
    ]  # fmt: skip
    want_y, want_dx = np.concatenate([p.y for p in parts]) * WHERE, np.concatenate([p.dx for p in parts])
    assert_close((y, dx, *daffine), (want_y, want_dx, sum(p.dscale for p in parts), sum(p.dbias for p in parts)))
    assert_close(dresidual, g * (want_y > 0))
    assert_close((new.mean, new.var), references.moments(x, (0, 1), WHERE)[1:])
    # The valid ones are far above zero; what comes of the others is below.
    (dx, dresidual, *_), (y, _) = train(lambda y: jnp.sqrt(y + 0.1), bad_x, bad + 20, scale, bias)
    for t in (y, dx, dresidual):
        assert np.isfinite(t).all()
        assert not t[~WHERE].any()
        assert t[WHERE].all()


@pytest.mark.parametrize("name", ["layer", "group", "frn", "grn", "evonorm_b0", "switchable", "iternorm"])
def test_parameters_of_each_position_too(name):
    """A condition may be NaN where it is padding: it reaches no gradient of what is valid."""
    x, _, _, scale, bias = arrays()
    mask = WHERE[..., :1]
    function, options = NORMS[name].function, dict(ROWS[name].options)
    scale, bias = (np.broadcast_to(t, SHAPE) for t in (scale, bias))
    if name == "iternorm":
        options |= {"group_size": 2, "running": bnjax.Whitening(jnp.zeros(4), jnp.ones((2, 2, 2)))}
    elif NORMS[name].takes_running_average:
        options["running"] = Moments(jnp.zeros(()), jnp.zeros(4), jnp.ones(4))

    @jax.jit
    @partial(jax.grad, argnums=(0, 1, 2), has_aux=True)
    def f(x, scale, bias):
        y = function(x, scale=scale, bias=bias, where=mask, zero_masked=True, **options)
        y = y[0] if isinstance(y, tuple) else y
        return (y**2).sum(), y

    bad = [np.where(mask, t, np.nan) for t in (x, scale, bias)]
    want = f(*(np.where(mask, t, 0.25) for t in (x, scale, bias)))
    assert_close(f(*bad), wide(want), 1e-6)
    assert all(np.isfinite(t).all() for t in jax.tree.leaves(want))


def test_the_activation_may_have_parameters():
    x, *_ = arrays()
    layer = bnjax.linen.LayerNorm(activation=nn.PReLU(), zero_masked=True)
    mask = WHERE[..., :1]
    variables = layer.init(jax.random.key(0), x)
    loss = jax.jit(jax.grad(lambda v, x: layer.apply(v, x, mask=mask).sum()))
    got, want = (loss(variables, np.where(mask, x, other)) for other in (np.nan, 1.0))
    jax.tree.map(np.testing.assert_array_equal, got, want)
    assert all(np.isfinite(t).all() and np.any(t) for t in jax.tree.leaves(want))


@pytest.mark.parametrize("api", ["linen", "nnx"])
def test_the_identity_makes_zeros_too(api):
    """`make_norm("none")`, with and without something that follows."""
    x, _, residual, *_ = arrays()
    bad = np.where(WHERE, x, np.nan)
    for more, want in (({}, x), ({"residual": np.where(WHERE, residual, np.inf)}, x + residual)):
        how = {"zero_masked": True, "activation": jnp.cos} if more else {"zero_masked": True}
        if api == "linen":
            y = bnjax.linen.make_norm("none", **how)().apply({}, bad, mask=WHERE, **more)
        else:
            y = bnjax.nnx.make_norm("none", 4, **how, rngs=nnx.Rngs(0))(bad, mask=WHERE, **more)
        assert_close(y, np.where(WHERE, np.cos(want) if more else want, 0), 1e-6)
    with pytest.raises(ValueError, match="`mask` must broadcast"):
        bnjax.linen.make_norm("none", zero_masked=True)().apply({}, bad, mask=WHERE[:, :3])


# What changes nothing, and what is refused


def test_without_a_mask_it_changes_nothing():
    """Nor does False with one: the programs are the same."""
    x, _, residual, scale, bias = arrays()
    f = lambda **how: str(jax.make_jaxpr(partial(bnjax.layer_norm, **how))(x, scale, bias))  # noqa: E731
    more = {"residual": residual, "activation": jnp.tanh}
    assert f(zero_masked=True, **more) == f(**more)
    assert f(where=WHERE, zero_masked=False, **more) == f(where=WHERE, **more)


@pytest.mark.parametrize("value", [None, "no", 1, jnp.ones(())], ids=repr)
def test_only_true_or_false(value):
    x, *_ = arrays()
    layers = [bnjax.linen.LayerNorm(zero_masked=value), bnjax.linen.FilterResponseNorm(zero_masked=value)]
    for f in (partial(bnjax.rms_norm, zero_masked=value), *(partial(m.init, jax.random.key(0)) for m in layers)):
        with pytest.raises(ValueError, match="`zero_masked` must be True or False, but it is"):
            f(x)


def test_an_activation_that_changes_the_shape_is_refused():
    """The mask is that of the input."""
    x, *_ = arrays()
    halves = jax.nn.glu
    assert bnjax.layer_norm(x, where=WHERE, activation=halves).shape == (6, 5, 2)
    with pytest.raises(ValueError, match=r"`zero_masked=True` needs an `activation` that keeps the shape.*\(6, 5, 2\)"):
        bnjax.layer_norm(x, where=WHERE, activation=halves, zero_masked=True)
