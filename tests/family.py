"""The norms by their formulas, for numpy and JAX alike, in the dtype of what they are given: a row for each.

A formula takes `xp` (numpy or jax.numpy), the input, examples first and channels last, its parameters, the weights
`n` (1 is valid, 0 is not; of the shape of the input), the running state, and whether it trains. It returns the output,
and what the running state would be with a momentum of zero.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np


class Row(NamedTuple):
    formula: Callable[..., Any]
    options: dict = {}  # of function and modules
    inputs: Callable[[int], dict] = lambda n: {}  # of a call, besides the input


def mean_var(xp, x, n, axes):
    k = xp.maximum(n.sum(axes, keepdims=True), 1)
    mean = (x * n).sum(axes, keepdims=True) / k
    return mean, ((x - mean) ** 2 * n).sum(axes, keepdims=True) / k


def mean_square(xp, x, n, axes):
    return (x**2 * n).sum(axes, keepdims=True) / xp.maximum(n.sum(axes, keepdims=True), 1)


def batch(x):
    return tuple(range(x.ndim - 1))


def space(x):
    return tuple(range(1, x.ndim - 1))


def flat(t):
    return {name: v.reshape(-1) for name, v in t.items()}


def affine(y, p):
    y = y * p["scale"] if "scale" in p else y
    return y + p["bias"] if "bias" in p else y


def measured_or_kept(xp, x, n, state, train):
    """Mean and variance of the batch, or those kept."""
    return mean_var(xp, x, n, batch(x)) if train else (state["mean"], state["var"])


def batch_norm(xp, x, p, n, state, train, eps=1e-5, **_):
    mean, var = measured_or_kept(xp, x, n, state, train)
    return affine((x - mean) / xp.sqrt(var + eps), p), flat({"mean": mean, "var": var})


def ghost(xp, x, p, n, state, train, virtual_batch_size, **_):
    if not train:
        return batch_norm(xp, x, p, n, state, train)
    parts = [slice(i, i + virtual_batch_size) for i in range(0, len(x), virtual_batch_size)]
    ys = [batch_norm(xp, x[s], p, n[s], state, train)[0] for s in parts]
    mean, var = mean_var(xp, x, n, batch(x))
    return xp.concatenate(ys), flat({"mean": mean, "var": var})


def corrections(mean, var, state, r_max, d_max, eps=1e-3):
    """r and d of batch renormalization, which are constants to the derivative: computed by numpy, or given."""
    s = np.sqrt(state["var"] + eps)
    return np.clip(np.sqrt(var + eps) / s, 1 / r_max, r_max), np.clip((mean - state["mean"]) / s, -d_max, d_max)


def renorm(xp, x, p, n, state, train, r_max, d_max, eps=1e-3, **_):
    if not train:
        return batch_norm(xp, x, p, n, state, train, eps)
    mean, var = mean_var(xp, x, n, batch(x))
    root = xp.sqrt(var + eps)
    r, d = state["corrections"] if "corrections" in state else corrections(mean, var, state, r_max, d_max, eps)
    return affine((x - mean) / root * r + d, p), flat({"mean": mean, "var": var})


def layer_norm(xp, x, p, n, *_, eps=1e-6, **__):
    mean, var = mean_var(xp, x, n, -1)
    return affine((x - mean) / xp.sqrt(var + eps), p), {}


def rms_norm(xp, x, p, n, *_, eps=1e-6, **__):
    return affine(x / xp.sqrt(mean_square(xp, x, n, -1) + eps), p), {}


def grouped(x, groups):
    return x.reshape(*x.shape[:-1], groups, -1)


def group_var(xp, x, n, groups):
    axes = (*space(x), x.ndim)
    mean, var = mean_var(xp, grouped(x, groups), grouped(n, groups), axes)
    return tuple(xp.broadcast_to(t, grouped(x, groups).shape).reshape(x.shape) for t in (mean, var))


def group_norm(xp, x, p, n, *_, num_groups, **__):
    mean, var = group_var(xp, x, n, num_groups)
    return affine((x - mean) / xp.sqrt(var + 1e-6), p), {}


def instance_norm(xp, x, p, n, *_, **__):
    mean, var = mean_var(xp, x, n, space(x))
    return affine((x - mean) / xp.sqrt(var + 1e-6), p), {}


def filter_response(xp, x, p, n, *_, **__):
    y = affine(x / xp.sqrt(mean_square(xp, x, n, space(x)) + 1e-6), p)
    return xp.maximum(y, p["threshold"]), {}


def evo_b0(xp, x, p, n, state, train, **_):
    mean, var = measured_or_kept(xp, x, n, state, train)
    own = mean_var(xp, x, n, space(x))[1]
    y = x / xp.maximum(xp.sqrt(var + 1e-5), p["v"] * x + xp.sqrt(own + 1e-5))
    return affine(y, p), flat({"mean": mean, "var": var})


def evo_s0(xp, x, p, n, *_, num_groups, **__):
    return affine(x / (1 + xp.exp(-p["v"] * x)) / xp.sqrt(group_var(xp, x, n, num_groups)[1] + 1e-5), p), {}


def local_response(xp, x, p, n, *_, size, **__):
    c = x.shape[-1]
    near = [[float(-(size // 2) <= j - i <= (size - 1) // 2) for i in range(c)] for j in range(c)]
    total = (x**2 * n) @ xp.asarray(near, x.dtype)
    return x / (2 + 1e-4 * total) ** 0.75, {}


def global_response(xp, x, p, n, *_, **__):
    length = xp.sqrt((x**2 * n).sum(space(x), keepdims=True))
    return affine(x * (length / (length.mean(-1, keepdims=True) + 1e-6)), p) + x, {}


def partial_rms(xp, x, p, n, *_, fraction, **__):
    k = int(fraction * x.shape[-1])
    return affine(x / xp.sqrt(mean_square(xp, x[..., :k], n[..., :k], -1) + 1e-6), p), {}


def scale_norm(xp, x, p, n, *_, **__):
    return affine(x / xp.sqrt((x**2 * n).sum(-1, keepdims=True)), p), {}


def dynamic_tanh(xp, x, p, n, *_, **__):
    return affine(xp.tanh(p["alpha"] * x), p), {}


def with_epsilon(formula, eps):
    return lambda *args, **options: formula(*args, **options, eps=eps)


MOMENTUM = {"momentum": 0.9}
ROWS = {
    "batch": Row(batch_norm, MOMENTUM),
    "ghost": Row(ghost, MOMENTUM | {"virtual_batch_size": 4}),
    "renorm": Row(renorm, MOMENTUM | {"r_max": 1.1, "d_max": 0.2}),
    "layer": Row(layer_norm),
    "rms": Row(rms_norm),
    "group": Row(group_norm, {"num_groups": 2}),
    "instance": Row(instance_norm),
    "frn": Row(filter_response),
    "evonorm_b0": Row(evo_b0, MOMENTUM),
    "evonorm_s0": Row(evo_s0, {"num_groups": 2}),
    "lrn": Row(local_response, {"size": 4}),
    "grn": Row(global_response),
    "positional": Row(with_epsilon(layer_norm, 1e-5)),
    "prms": Row(partial_rms, {"fraction": 0.5}),
    "scale": Row(scale_norm),
    "pixel": Row(with_epsilon(rms_norm, 1e-8)),
    "dyt": Row(dynamic_tanh),
}
