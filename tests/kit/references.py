"""What the tests compare with: numpy in float64, derivatives by hand, and the formulas of the papers.

Nothing here is shared with the library, and nothing here needs JAX. Everything is centred before it is
squared, so that the reference itself stays good to 1e-15 of the standard deviation at large means.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Measured(NamedTuple):
    count: np.ndarray
    mean: np.ndarray
    var: np.ndarray


class Normalized(NamedTuple):
    """Output, gradients of `(y * g).sum()`, and the moments of the batch, in the features' shape."""

    y: np.ndarray
    dx: np.ndarray
    dscale: np.ndarray
    dbias: np.ndarray
    batch: Measured


def wide(x) -> np.ndarray:
    """`x` in float64 or complex128."""
    x = np.asarray(x)
    return x.astype(np.complex128 if np.iscomplexobj(x) else np.float64)


def centred(x, axis, where=None) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Count, mean, `x - mean` and its mean square over `axis`, dimensions kept. The mean twice: once to come
    near, where subtracting is exact, and once for what is left."""
    x = wide(x)
    valid = np.broadcast_to(True if where is None else np.asarray(where) != 0, x.shape)
    n = valid.sum(axis, keepdims=True).astype(np.float64)
    k = np.maximum(n, 1)
    near = np.where(valid, x, 0).sum(axis, keepdims=True) / k
    d = x - near
    rest = np.where(valid, d, 0).sum(axis, keepdims=True) / k
    d = d - rest
    return n, near + rest, d, (np.abs(np.where(valid, d, 0)) ** 2).sum(axis, keepdims=True) / k


def moments(x, axis, where=None) -> Measured:
    """Count, mean and biased variance over `axis`, of the valid elements."""
    n, mean, _, var = centred(x, axis, where)
    return Measured(*(t.squeeze(axis) for t in (n, mean, var)))


def at_rank(value, shape: Sequence[int], features: Sequence[int]) -> np.ndarray:
    """`value` of the features' shape, at the rank of `shape`; of that rank already: as it is."""
    value = wide(value)
    if value.ndim == len(shape):
        return value
    return value.reshape([s if a in features else 1 for a, s in enumerate(shape)])


def batch_norm(x, g, scale, bias, *, axis=-1, epsilon=1e-5, where=None, residual=None, relu=False) -> Normalized:
    """Training-mode batch normalization of real `x`, and the gradients of `(y * g).sum()` by hand.

    Masked-out positions go through the same map; what they receive reaches scale, bias and the statistics,
    through which it reaches the valid positions. A feature with nothing valid becomes its bias. What is not
    finite and masked out reaches no gradient.
    """
    x, g = wide(x), wide(g)
    features = sorted(int(a) % x.ndim for a in np.atleast_1d(axis))
    measured = tuple(a for a in range(x.ndim) if a not in features)
    valid = np.broadcast_to(True if where is None else np.asarray(where) != 0, x.shape)
    n, mean, d, var = centred(x, measured, where)
    seen, k = n > 0, np.maximum(n, 1)
    rstd = np.where(seen, 1 / np.sqrt(np.where(seen, var, 1) + epsilon), 0)
    full_scale, full_bias = at_rank(scale, x.shape, features), at_rank(bias, x.shape, features)
    y = d * rstd * full_scale + full_bias + (0 if residual is None else wide(residual))
    if relu:
        g = np.where(y > 0, g, 0)
        y = np.maximum(y, 0)
    finite = np.isfinite(d)
    g, d = np.where(finite, g, 0), np.where(finite, d, 0)
    h = g * full_scale
    dmean = -(h * rstd).sum(measured, keepdims=True)
    dvar = -0.5 * (h * d * rstd**3).sum(measured, keepdims=True)
    dx = h * rstd + valid * (dmean + 2 * d * dvar) / k
    flat = [tuple(x.shape[a] for a in features)] * 3
    return Normalized(
        y,
        dx,
        unbroadcast(g * d * rstd, full_scale.shape).reshape(np.shape(scale)),
        unbroadcast(g, full_bias.shape).reshape(np.shape(bias)),
        Measured(*(t.reshape(s) for t, s in zip((n, mean, var), flat, strict=True))),
    )


def unbroadcast(t: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """The transpose of broadcasting `shape` to the shape of `t`, of one rank."""
    return t.sum(tuple(a for a, s in enumerate(shape) if s == 1), keepdims=True)


def relative(got, want) -> float:
    """The worst error, as a fraction of the largest entry of `want` (NaN if anything is not finite)."""
    got, want = wide(got), wide(want)
    assert got.shape == want.shape, (got.shape, want.shape)
    if not got.size:
        return 0.0
    return float(np.abs(got - want).max() / np.abs(want).max())
