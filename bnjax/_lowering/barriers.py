"""Identities that stop a compiler from fusing or sharing what it should not."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir


def _barrier_on(platform: str) -> Primitive:
    """The identity, of an array and of its derivatives; behind a barrier on one platform.

    A primitive, not `lax.platform_dependent`: that is a `cond`, whose branches each transformation goes through.
    """
    barrier = Primitive(f"barrier_on_{platform}")
    barrier.def_impl(lambda x: x)
    barrier.def_abstract_eval(lambda x: x)
    ad.deflinear2(barrier, lambda ct, _: [barrier.bind(ct)])
    batching.defvectorized(barrier)
    mlir.register_lowering(barrier, lambda ctx, x: [x])
    lowered = mlir.lower_fun(lax.optimization_barrier, multiple_results=False)
    mlir.register_lowering(barrier, lowered, platform=platform)
    return barrier


_on_cpu, _on_cuda = _barrier_on("cpu"), _barrier_on("cuda")


def unshared(tree: Any) -> Any:
    """The same arrays. Behind a barrier on the CPU, so that XLA does not store what two users share, such as `x - c`.

    It would write that to memory for the two sums, at full size and in float32.
    """
    return jax.tree.map(_on_cpu.bind, tree)  # one each: together they would vary together


def isolated(sums: Any, guard: Array) -> Any:
    """The same sums; `guard` is no NaN. On the CPU, a select that XLA does not fuse past.

    XLA hands sums to a library there, and what follows along with them, up to the gradient of the input, which then
    costs several arrays of its size. A choice between two numbers it keeps.
    """
    chosen = partial(jax.tree.map, lambda t: jnp.where(jnp.isnan(guard), jnp.nan, t))
    return lax.platform_dependent(sums, cpu=chosen, default=lambda same: same)


def materialized(y: Array) -> Array:
    """The same array, written to memory in its dtype on a GPU.

    It is the output of a block: the next block's residual, and so on. XLA's GPU compiler would leave out the rounding
    between blocks and keep the sums in float32 for the masks of the backward pass: a sixth of the memory of a ResNet's
    step, a tenth of its traffic.
    """
    return _on_cuda.bind(y)


def pinned(c: Array) -> Array:
    """`c` with one bit less, so that it is the same number wherever it is used.

    Compilers copy `total / n` to every use and fuse it there with what follows (`x - total * (1 / n)` rounds once):
    what is measured about one number would then be normalized about another.
    """
    if jnp.iscomplexobj(c):
        return lax.complex(pinned(c.real), pinned(c.imag))
    info = jnp.finfo(c.dtype)
    return lax.reduce_precision(c, info.nexp, info.nmant - 1)
