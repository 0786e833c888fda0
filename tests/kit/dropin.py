"""One call of a BatchNorm module, of Flax's or ours, linen or nnx: what came out, in plain dicts."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen, nnx

import bnjax.linen
import bnjax.nnx
from tests.kit.comparison import assert_alike

APIS = ("linen", "nnx")
FLAX = {"linen": linen.BatchNorm, "nnx": nnx.BatchNorm}
OURS = {"linen": bnjax.linen.BatchNorm, "nnx": bnjax.nnx.BatchNorm}


def random(*shape, seed=0, dtype=jnp.float32):
    """Standard normal numbers, complex ones for a complex dtype; integers from -8 to 8 for an integer one."""
    rng = np.random.default_rng(seed)
    if jnp.issubdtype(dtype, jnp.integer):
        return jnp.asarray(rng.integers(-8, 9, shape), dtype)
    x = rng.normal(size=shape)
    return jnp.asarray(x + 1j * rng.normal(size=shape) if jnp.issubdtype(dtype, jnp.complexfloating) else x, dtype)


def start(features, dtype=jnp.float32, use_scale=True, use_bias=True):
    """Parameters and running statistics that nothing is equal to by chance."""
    params = {"scale": 1 + random(*features, seed=1) / 4, "bias": random(*features, seed=2)}
    used = {"scale": use_scale, "bias": use_bias}
    stats = {"mean": random(*features, seed=3) / 2, "var": 0.5 + random(*features, seed=4) ** 2}
    return {k: v.astype(dtype) for k, v in params.items() if used[k]}, stats


def run_linen(cls, x, params, stats, train=True, call=None, gradients=True, **attributes):
    module = cls(use_running_average=not train, **attributes)

    def apply(params, x):
        y, new = module.apply({"params": params, "batch_stats": stats}, x, mutable="batch_stats", **(call or {}))
        return y, new["batch_stats"]

    return _outcome(apply, params, x, gradients)


def run_nnx(cls, x, params, stats, train=True, call=None, gradients=True, **attributes):
    size = jax.tree.leaves(stats)[0].size
    module = cls(size, use_running_average=not train, rngs=nnx.Rngs(0), **attributes)
    graphdef, _ = nnx.split(module)

    def apply(params, x):
        module = nnx.merge(graphdef, _state(nnx.Param, params), _state(nnx.BatchStat, stats))
        return module(x, **(call or {})), nnx.to_pure_dict(nnx.state(module, nnx.BatchStat))

    return _outcome(apply, params, x, gradients)


RUN = {"linen": run_linen, "nnx": run_nnx}


def _state(kind, values):
    return nnx.State({name: kind(value) for name, value in values.items()})


def _outcome(apply, params, x, gradients):
    """Output, new statistics, and (but for integers) the gradients of a weighted sum of the output."""

    def loss(params, x):
        y, stats = apply(params, x)
        weights = random(*y.shape, seed=5, dtype=jnp.promote_types(y.dtype, jnp.float32))
        return jnp.vdot(weights, y.astype(weights.dtype)).real, (y, stats)

    if not gradients or not jnp.issubdtype(x.dtype, jnp.inexact):
        y, stats = apply(params, x)
        return {"y": y, "stats": stats}
    (dparams, dx), (y, stats) = jax.grad(loss, argnums=(0, 1), has_aux=True)(params, x)
    return {"y": y, "stats": stats, "dx": dx, "dparams": dparams}


def assert_same(ours, flax, rounding=10):
    """Same tree, shapes and dtypes; values but for rounding.

    An output or a statistic may differ by `rounding` units of float32 (of float64 in double precision) relative to
    the largest entry, and where its dtype is shorter by one unit in its last place. Gradients are made of several
    terms of the output's or their own dtype (of x's, twice, in Flax): one unit of that, of the largest entry.
    """
    assert_alike(ours, flax)
    for (path, a), b in zip(jax.tree.leaves_with_path(ours), jax.tree.leaves(flax), strict=True):
        where = jax.tree_util.keystr(path)
        inner = jnp.finfo(jnp.promote_types(a.dtype, jnp.float32)).eps
        own, worst = jnp.finfo(a.dtype).eps, np.abs(b).max(initial=0).astype(np.float64)
        a, b = (np.asarray(t, np.promote_types(t.dtype, np.float64)) for t in (a, b))
        scale = np.maximum(np.abs(a), np.abs(b))
        if where.startswith("['d"):
            own, scale = max(own, jnp.finfo(ours["y"].dtype).eps), worst
        error = np.abs(a - b)
        bound = (own * scale if own > inner else 0) + rounding * inner * worst
        assert (error <= bound).all(), f"{where}: off by {error.max():.2e}, largest entry {worst:.2e}"
