"""The norms by their formulas, in numpy or `jax.numpy`.

A new norm adds its formula to `FORMULAS`; its row comes from its `Spec`.

A formula takes the input, examples first and channels last, its parameters, the weights `n` (1 is valid, 0 is not; of
the shape of the input), the running state, and whether it trains. It returns the output, and what the running state
would be with a momentum of zero.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special

from bnjax import NORMS


class Row(NamedTuple):
    formula: Callable[..., Any]
    options: Mapping[str, Any]  # of function and modules
    inputs: Callable[[int], dict]  # of a call, besides the input


class Arrays:
    """The functions of numpy, or those of `jax.numpy` if an argument is JAX's: so that formulas have derivatives."""

    def __getattr__(self, name):
        def call(*args, **options):
            traced = any(isinstance(t, jax.Array) for t in jax.tree.leaves(args))
            return getattr(jnp if traced else np, name)(*args, **options)

        return call

    def eigh(self, a):
        return (jnp if isinstance(a, jax.Array) else np).linalg.eigh(a)

    def erf(self, a):
        return (jax.scipy.special if isinstance(a, jax.Array) else scipy.special).erf(a)


xp = Arrays()


def mean_var(x, n, axes):
    """Whatever stands where nothing is valid."""
    k, x = xp.maximum(n.sum(axes, keepdims=True), 1), xp.where(n != 0, x, 0)
    mean = (x * n).sum(axes, keepdims=True) / k
    return mean, (xp.abs(x - mean) ** 2 * n).sum(axes, keepdims=True) / k


def mean_square(x, n, axes):
    x = xp.where(n != 0, x, 0)
    return (xp.abs(x) ** 2 * n).sum(axes, keepdims=True) / xp.maximum(n.sum(axes, keepdims=True), 1)


def standardized(x, n, axes, eps, groups=0, centred=True):
    """Less its mean over these axes, once the channels are split into groups, and divided by its deviation."""
    t, n = (grouped(a, groups) for a in (x, n)) if groups else (x, n)
    mean, var = mean_var(t, n, axes) if centred else (0, mean_square(t, n, axes))
    return ((t - mean) / xp.sqrt(var + eps)).reshape(x.shape)


def batch(x):
    return tuple(range(x.ndim - 1))


def space(x):
    return tuple(range(1, x.ndim - 1))


def flat(t):
    return {name: v.reshape(-1) for name, v in t.items()}


def affine(y, p):
    y = y * p["scale"] if "scale" in p else y
    return y + p["bias"] if "bias" in p else y


def measured_or_kept(x, n, state, train):
    """Mean and variance of the batch, or those kept."""
    return mean_var(x, n, batch(x)) if train else (state["mean"], state["var"])


def batch_norm(x, p, n, state, train, eps=1e-5, **_):
    mean, var = measured_or_kept(x, n, state, train)
    return affine((x - mean) / xp.sqrt(var + eps), p), flat({"mean": mean, "var": var})


def ghost(x, p, n, state, train, virtual_batch_size, **_):
    if not train:
        return batch_norm(x, p, n, state, train)
    parts = [slice(i, i + virtual_batch_size) for i in range(0, len(x), virtual_batch_size)]
    ys = [batch_norm(x[s], p, n[s], state, train)[0] for s in parts]
    mean, var = mean_var(x, n, batch(x))
    return xp.concatenate(ys), flat({"mean": mean, "var": var})


def corrections(mean, var, state, r_max, d_max, eps=1e-3):
    """r and d of batch renormalization, which are constants to the derivative: computed by numpy, or given."""
    s = xp.sqrt(state["var"] + eps)
    return xp.clip(xp.sqrt(var + eps) / s, 1 / r_max, r_max), xp.clip((mean - state["mean"]) / s, -d_max, d_max)


def renorm(x, p, n, state, train, r_max, d_max, eps=1e-3, **_):
    if not train:
        return batch_norm(x, p, n, state, train, eps)
    mean, var = mean_var(x, n, batch(x))
    root = xp.sqrt(var + eps)
    r, d = state["corrections"] if "corrections" in state else corrections(mean, var, state, r_max, d_max, eps)
    return affine((x - mean) / root * r + d, p), flat({"mean": mean, "var": var})


def layer_norm(x, p, n, *_, eps=1e-6, **__):
    return affine(standardized(x, n, -1, eps), p), {}


def rms_norm(x, p, n, *_, eps=1e-6, **__):
    return affine(standardized(x, n, -1, eps, centred=False), p), {}


def grouped(x, groups):
    return x.reshape(*x.shape[:-1], groups, -1)


def group_var(x, n, groups):
    axes = (*space(x), x.ndim)
    mean, var = mean_var(grouped(x, groups), grouped(n, groups), axes)
    return tuple(xp.broadcast_to(t, grouped(x, groups).shape).reshape(x.shape) for t in (mean, var))


def group_norm(x, p, n, *_, num_groups, **__):
    return affine(standardized(x, n, (*space(x), x.ndim), 1e-6, num_groups), p), {}


def instance_norm(x, p, n, *_, **__):
    return affine(standardized(x, n, space(x), 1e-6), p), {}


def filter_response(x, p, n, *_, **__):
    y = affine(x / xp.sqrt(mean_square(x, n, space(x)) + 1e-6), p)
    return xp.maximum(y, p["threshold"]), {}


def evo_b0(x, p, n, state, train, **_):
    mean, var = measured_or_kept(x, n, state, train)
    own = mean_var(x, n, space(x))[1]
    y = x / xp.maximum(xp.sqrt(var + 1e-5), p["v"] * x + xp.sqrt(own + 1e-5))
    return affine(y, p), flat({"mean": mean, "var": var})


def evo_s0(x, p, n, *_, num_groups, **__):
    sigmoid = (1 + xp.tanh(p["v"] * x / 2)) / 2
    return affine(x * sigmoid / xp.sqrt(group_var(x, n, num_groups)[1] + 1e-5), p), {}


def local_response(x, p, n, *_, size, **__):
    c = x.shape[-1]
    near = [[float(-(size // 2) <= j - i <= (size - 1) // 2) for i in range(c)] for j in range(c)]
    total = (x**2 * n) @ np.asarray(near, x.dtype)
    return x / (2 + 1e-4 * total) ** 0.75, {}


def global_response(x, p, n, *_, **__):
    length = xp.sqrt((x**2 * n).sum(space(x), keepdims=True))
    seen = xp.maximum((n.sum(space(x), keepdims=True) > 0).sum(-1, keepdims=True), 1)
    return affine(x * (length / (length.sum(-1, keepdims=True) / seen + 1e-6)), p) + x, {}


def partial_rms(x, p, n, *_, fraction, **__):
    k = int(fraction * x.shape[-1])
    return affine(x / xp.sqrt(mean_square(x[..., :k], n[..., :k], -1) + 1e-6), p), {}


def scale_norm(x, p, n, *_, **__):
    return affine(x / xp.sqrt((x**2 * n).sum(-1, keepdims=True)), p), {}


def dynamic_tanh(x, p, n, *_, **__):
    return affine(xp.tanh(p["alpha"] * x), p), {}


def dynamic_erf(x, p, n, *_, **__):
    return affine(xp.erf(p["alpha"] * x + p["shift"]), p), {}


def with_epsilon(formula, eps):
    return lambda *args, **options: formula(*args, **options, eps=eps)


def example_weighted(x, p, n, state, train, example_weight, **_):
    if train:
        return batch_norm(x, p, n, state, train)
    mean, square = mean_var(x, n, space(x))[0], mean_square(x, n, space(x))
    mean, square = (
        (1 - example_weight) * a + example_weight * b
        for a, b in ((state["mean"], mean), (state["var"] + state["mean"] ** 2, square))
    )
    return affine((x - mean) / xp.sqrt(square - mean**2 + 1e-5), p), {}


def domain_norm(x, p, n, state, train, domain=None, **_):
    """Each domain alone, the others' examples masked out."""
    domain = (np.arange(len(x)) * 2 // len(x) if train else np.zeros(len(x), int)) if domain is None else domain
    y, kept = 0 * x, {"mean": [], "var": []}
    for d in range(2):
        own = np.asarray(domain == d, x.dtype).reshape((-1,) + (1,) * (x.ndim - 1))
        mine = {k: v[d] if v.ndim == 2 else v for k, v in p.items()}
        out, new = batch_norm(x, mine, n * own, {k: v[d] for k, v in state.items()}, train)
        y = y + own * out
        kept = {k: [*kept[k], new[k]] for k in kept}
    return y, {k: xp.stack(v) for k, v in kept.items()}


def switchable(x, p, n, state, train, **_):
    batch_mean, batch_var = measured_or_kept(x, n, state, train)
    parts = [mean_var(x, n, space(x)), mean_var(x, n, tuple(range(1, x.ndim))), (batch_mean, batch_var)]
    shares = [xp.exp(w) / xp.exp(w).sum() for w in (p["mean_weight"], p["var_weight"])]
    mean, var = (sum(s[i] * part[k] for i, part in enumerate(parts)) for k, s in enumerate(shares))
    return affine((x - mean) / xp.sqrt(var + 1e-5), p), flat({"mean": batch_mean, "var": batch_var})


def batch_channel(x, p, n, state, train, num_groups, **_):
    z, new = batch_norm(x, p, n, state, train)
    gamma, beta = (xp.repeat(p[k], x.shape[-1] // num_groups) for k in ("channel_scale", "channel_bias"))
    return standardized(z, n, (*space(x), x.ndim), 1e-5, num_groups) * gamma + beta, new


def whitened(x, p, n, state, train, root, group_size, **_):
    rows, w = x.reshape(-1, x.shape[-1]), n.reshape(-1, x.shape[-1])[:, :1]
    mean, new = state["mean"], {}
    matrices = state["matrix"]
    if train:
        mean = (rows * w).sum(0) / w.sum()
        d = rows - mean
        parts = [d[:, i : i + group_size] for i in range(0, x.shape[-1], group_size)]
        matrices = xp.stack([root((t * w).T @ t / w.sum() + 1e-5 * np.eye(group_size)) for t in parts])
        new = {"mean": mean, "matrix": matrices}
    d = (rows - mean).reshape(len(rows), -1, group_size)
    return affine(xp.einsum("ngi,gij->ngj", d, matrices).reshape(x.shape), p), new


def zca(cov):
    values, vectors = xp.eigh(cov)
    return (vectors / xp.sqrt(values)) @ vectors.T


def newton(cov):
    trace = xp.trace(cov)
    root = np.eye(len(cov))
    for _ in range(3):
        root = 1.5 * root - 0.5 * root @ root @ root @ (cov / trace)
    return root / xp.sqrt(trace)


def weight(name, w, scale):
    """The norms of weights, of the last axis's features."""
    axes, inputs = tuple(range(w.ndim - 1)), w[..., 0].size
    if name == "weight":
        return w / np.sqrt((w**2).sum(axes) + 1e-12) * scale
    if name == "spectral":
        return w / np.linalg.svd(w.reshape(inputs, -1))[1][0]
    d, var = w - w.mean(axes), w.var(axes)
    return d / np.sqrt(var + 1e-6 if name == "ws" else np.maximum(inputs * var, 1e-4)) * scale


def halves(n):
    return {"domain": np.arange(n) % 2}


FORMULAS = {
    "batch": batch_norm,
    "ghost": ghost,
    "renorm": renorm,
    "layer": layer_norm,
    "rms": rms_norm,
    "group": group_norm,
    "instance": instance_norm,
    "frn": filter_response,
    "lrn": local_response,
    "grn": global_response,
    "evonorm_b0": evo_b0,
    "evonorm_s0": evo_s0,
    "positional": with_epsilon(layer_norm, 1e-5),
    "prms": partial_rms,
    "scale": scale_norm,
    "pixel": with_epsilon(rms_norm, 1e-8),
    "dyt": dynamic_tanh,
    "derf": dynamic_erf,
    "example_weighted": example_weighted,
    "domain": domain_norm,
    "split": domain_norm,
    "switchable": switchable,
    "bcn": batch_channel,
    "dbn": partial(whitened, root=zca),
    "iternorm": partial(whitened, root=newton),
}
INPUTS = {"domain": halves}

# For six channels, four examples; and away from where an option does nothing. Of the arguments that a norm sets.
OPTIONS = {
    "momentum": 0.9, "virtual_batch_size": 2, "r_max": 1.1, "d_max": 0.2, "num_groups": 2, "group_size": 3, "size": 4,
    "fraction": 0.5, "example_weight": 0.3, "steps": 3,
}  # fmt: skip


def row(name):
    spec = NORMS[name]
    set_ = {k for k, default in (spec.defaults | dict(spec.arguments)).items() if default is not None}
    options = {k: v for k, v in OPTIONS.items() if k in set_}
    return Row(FORMULAS[name], options, INPUTS.get(name, lambda n: {}))


ROWS = {name: row(name) for name in NORMS if name in FORMULAS}
