"""The steps of recurrent cells that normalize the inputs of their gates. The norms are arguments."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from bnjax import _checks as checks

NormFunction = Callable[[Array], Array]
ANY_LENGTH = 2**31 - 1


def lstm_step(
    carry: tuple[Array, Array], zx: Array, zh: Array, norm_x: NormFunction, norm_h: NormFunction, norm_c: NormFunction
) -> tuple[Array, Array]:
    """The new memory and output, from the products of input and output with their weights (i, f, g, o side by side).

    They keep the dtypes of the carry, whatever the dtype of the products, because a scan over time needs that.
    """
    c, h = carry
    i, f, g, o = jnp.split(norm_h(zh) + norm_x(zx), 4, -1)
    memory = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
    return memory.astype(c.dtype), (jax.nn.sigmoid(o) * jnp.tanh(norm_c(memory))).astype(h.dtype)


def gru_step(
    h: Array,
    zx: Array,
    zh: Array,
    norm_x: NormFunction,
    norm_h: NormFunction,
    norm_x_new: NormFunction,
    norm_h_new: NormFunction,
) -> Array:
    """The new output, in the dtype of `h`, from the products of input and output with their weights (r, z, new)."""
    gates = 2 * h.shape[-1]
    r, z = jnp.split(jax.nn.sigmoid(norm_h(zh[..., :gates]) + norm_x(zx[..., :gates])), 2, -1)
    new = jnp.tanh(norm_x_new(zx[..., gates:]) + r * norm_h_new(zh[..., gates:]))
    return ((1 - z) * new + z * h).astype(h.dtype)


def side_by_side(init: Callable[..., Array], n: int) -> Callable[..., Array]:
    """An initializer of `n` matrices in one, each as `init` has it."""

    def initialize(key: Array, shape: Any, dtype: Any) -> Array:
        parts = [init(k, (*shape[:-1], shape[-1] // n), dtype) for k in jax.random.split(key, n)]
        return jnp.concatenate(parts, -1)

    return initialize


def batch_norm_carry(shape: tuple[int, ...], dtype: Any, lengths: Any) -> tuple[Array, Array, Array, Array]:
    """Memory and output, of `shape`, at the start; the step of each example and its length."""
    full = jnp.full(shape[:-1], ANY_LENGTH, jnp.int32) if lengths is None else jnp.asarray(lengths, jnp.int32)
    if full.shape != shape[:-1]:
        raise ValueError(f"`lengths` must have the shape of the batch, {shape[:-1]}, but it is {full.shape}.")
    return jnp.zeros(shape, dtype), jnp.zeros(shape, dtype), jnp.zeros(shape[:-1], jnp.int32), full


def resize_steps(batch_stats: Any, steps: int, seen: int | None = None) -> Any:
    """Statistics for each step, for another number of steps: sliced, or the last repeated.

    Args:
      batch_stats: a tree of arrays whose first axis is the step.
      steps: how many there shall be.
      seen: how many steps had examples; those after it are taken for unused. All by default.

    Raises:
      ValueError: `steps` or `seen` that is not positive.

    >>> print(resize_steps({"mean": jnp.array([1.0, 2.0, 0.0])}, 4, seen=2)["mean"])
    [1. 2. 2. 2.]
    """
    for name, value in (("steps", steps), ("seen", seen)):
        if value is not None and not checks.positive_integer(value):
            raise ValueError(f"`{name}` must be a positive integer, but it is {value!r}.")

    def resized(t: Array) -> Array:
        last = t.shape[0] if seen is None else min(int(seen), t.shape[0])
        return t[jnp.minimum(jnp.arange(int(steps)), last - 1)]

    return jax.tree.map(resized, batch_stats)
