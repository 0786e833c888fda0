"""What a program may do with a norm besides `jit`, `vmap` and `grad`: close over numbers, export, forbid promotion."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from jax import export
from jax.experimental import jet

import bnjax
from bnjax import Moments
from bnjax import linen as bl
from bnjax import nnx as bx
from tests.kit.comparison import assert_close
from tests.kit.references import moments as measured

X = np.random.default_rng(0).normal(size=(4, 3, 2, 10)).astype(np.float32)


def state(*shape):
    return Moments(np.zeros(()), np.zeros(shape, np.float32), np.ones(shape, np.float32))


def spectral(x, steps):
    layer = bl.SpectralNorm(nn.Dense(3, parent=None), n_steps=steps)
    variables = layer.init(jax.random.key(0), x, update_stats=True)
    return layer.apply(variables, x, update_stats=False)


# A call with a number that is looked at, one that is legal and one that is not.
KNOWN = {
    "momentum": (lambda x, n: bnjax.batch_norm(x, state(10), momentum=n), 0.9, 1.5),
    "epsilon": (lambda x, n: bnjax.layer_norm(x, epsilon=n), 0.1, -0.1),
    "r_max": (lambda x, n: bnjax.batch_renorm(x, state(10), r_max=n), 1.1, 0.5),
    "example_weight": (
        lambda x, n: bnjax.example_weighted_batch_norm(x, state(10), example_weight=n, train=False),
        0.3,
        2.0,
    ),
    "fraction": (lambda x, n: bnjax.partial_rms_norm(x, fraction=n), 0.9, 0.0),
    "domain": (lambda x, n: bnjax.domain_batch_norm(x, state(2, 10), domain=n), 1, 2),
    "domain of each": (lambda x, n: bnjax.domain_batch_norm(x, state(2, 10), domain=n), [0, 1, 1, 0], [0, 1, 2, 0]),
    "num_groups": (lambda x, n: bnjax.group_norm(x, num_groups=n), 5, 3),
    "size": (lambda x, n: bnjax.local_response_norm(x, size=n), 4, 0),
    "seen": (lambda x, n: bnjax.resize_steps(x, 5, seen=n), 2, 0),
    "n_steps": (spectral, 2, None),
}


@pytest.mark.parametrize("kind", [jnp.asarray, np.asarray])
@pytest.mark.parametrize("name", KNOWN)
def test_known_numbers_are_known_within_jit(name, kind):
    """Numbers that a traced function closes over: JAX's own, which `jax.numpy` would trace, and numpy's."""
    f, legal, bad = KNOWN[name]
    value = kind(legal)
    assert_close(jax.jit(lambda x: f(x, value))(X), jax.jit(lambda x: f(x, legal))(X))
    if bad is not None:
        value = kind(bad)
        with pytest.raises(ValueError, match=name.split()[0].removeprefix("num_")):
            jax.jit(lambda x: f(x, value))(X)


def test_a_number_of_features_is_not_traced():
    with pytest.raises(ValueError, match=r"`fraction`.*known when traced"):
        jax.jit(bnjax.partial_rms_norm)(X, fraction=0.5)


def exported(f, symbols, *arrays):
    """`f` of arrays with these shapes, from the bytes of a file."""
    scope = export.SymbolicScope()
    specs = [
        jax.ShapeDtypeStruct(export.symbolic_shape(s, scope=scope), t.dtype)
        for s, t in zip(symbols, arrays, strict=True)
    ]
    return export.deserialize(export.export(jax.jit(f))(*specs).serialize()).call(*arrays)


@pytest.mark.parametrize("mask", [(4, 3, 2, 10), (4, 1, 2, 1), (1, 3, 1, 10)])
def test_exported_masks(mask):
    """Of a mask that repeats, the symbols of what it is repeated for are counted, too."""
    n = np.random.default_rng(1).random(mask) < 0.7
    symbols = ", ".join(s if length > 1 else "1" for s, length in zip(("b", "h", "w", "10"), mask, strict=True))
    f = lambda x, n: bnjax.moments(x, (0, 1, 2), where=n)  # noqa: E731
    want = measured(X, (0, 1, 2), n)
    got = exported(f, ("b, h, w, 10", symbols), X, n)
    assert_close((got.mean, got.var), (want.mean, want.var))
    np.testing.assert_array_equal(np.broadcast_to(got.count, want.count.shape), want.count)


def test_exported_files_know_the_types_of_states():
    layer, old = bl.BatchNorm(use_running_average=False, momentum=0.9), state(10)

    def f(x, running, whitening):
        y, running = bnjax.batch_norm(x, running)
        z, whitening = bnjax.iterative_norm(x, whitening, group_size=5)
        stats = {"batch_stats": {"mean": old.mean, "var": old.var}, "params": {"scale": old.var, "bias": old.mean}}
        return y, z, running, whitening, layer.apply(stats, x, mutable="batch_moments")[1]

    arguments = X, jax.tree.map(jnp.asarray, old), bnjax.Whitening(jnp.zeros(10), jnp.stack([jnp.eye(5)] * 2))
    specs = jax.tree.map(lambda t: jax.ShapeDtypeStruct(t.shape, t.dtype), arguments)
    got = export.deserialize(export.export(jax.jit(f))(*specs).serialize()).call(*arguments)
    want = jax.jit(f)(*arguments)
    assert jax.tree.structure(got) == jax.tree.structure(want)  # momentum, too
    assert_close(got, want)


@pytest.mark.parametrize("name", ["BatchNorm", "FilterResponseNorm", "DecorrelatedBatchNorm"])
def test_exported_nnx(name):
    layer = getattr(bx, name)(10, rngs=nnx.Rngs(0))
    graph, old = nnx.split(layer)

    def f(x):
        own = nnx.merge(graph, nnx.to_pure_dict(old))
        return own(x), nnx.to_pure_dict(nnx.state(own, nnx.BatchStat))

    assert_close(exported(f, ("b, h, w, 10",), X), jax.jit(f)(X))


@pytest.mark.parametrize(
    ("symbols", "f", "message"),
    [
        ("b, 10", lambda x: bnjax.batch_norm(x, state(10), virtual_batch_size=2), r'batch of b.*"2\*n, \.\.\."'),
        ("b, c", lambda x: bnjax.partial_rms_norm(x, fraction=0.5), "`fraction`.*export with a number of features"),
        ("b, c", lambda x: bnjax.group_norm(x, num_groups=2), "`num_groups`"),
        ("b, c", lambda x: bnjax.evo_norm_s0(x, num_groups=2), "`num_groups`"),
        ("b, c", lambda x: bnjax.iterative_norm(x, None, group_size=2), "`group_size`"),
    ],
)
def test_what_a_symbol_cannot_tell(symbols, f, message):
    with pytest.raises(ValueError, match=message):
        exported(f, (symbols,), X[:, 0, 0])


@pytest.mark.parametrize(
    "f",
    [
        lambda x: bnjax.dynamic_tanh(x, alpha=0.3),
        bnjax.scale_norm,
        bnjax.local_response_norm,
        bnjax.global_response_norm,
        lambda x: bnjax.evo_norm_b0(x, state(10))[0],
        lambda x: (x - (m := bnjax.moments(x, -1, keepdims=True)).mean) * jax.lax.rsqrt(m.var + 1e-6),
    ],
)
def test_jet(f):
    """Of what has no derivative of its own, the second derivative along a line; nested `jvp` gives that of all."""
    x, v = X[:, 0, 0], np.random.default_rng(1).normal(size=X[:, 0, 0].shape).astype(np.float32)
    nested = jax.jvp(lambda x: jax.jvp(f, (x,), (v,))[1], (x,), (v,))[1]
    assert_close(jet.jet(f, (x,), ((v, np.zeros_like(v)),))[1][1], nested)
