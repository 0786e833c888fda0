"""Operations, identities or nearly so, that stop a compiler from fusing or sharing what it should not."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from bnjax._unstable import Primitive, ad, batching, lower_fun, register_lowering


def identity_but_on(platform: str, lowered: Callable[[Array], Array]) -> Callable[[Array], Array]:
    """The identity, of an array and of its derivatives; where a program is compiled for `platform`, `lowered`.

    `lowered` must be the identity, too. It is a primitive, because JAX's own switch between platforms is a `cond`, and
    each transformation goes through all of its branches: with it, two thirds of the time to trace a norm went there.
    """
    primitive = Primitive(f"{lowered.__name__}_on_{platform}")
    primitive.def_impl(lambda x: x)
    primitive.def_abstract_eval(lambda x: x)
    ad.deflinear2(primitive, lambda ct, _: [primitive.bind(ct)])
    batching.defvectorized(primitive)
    register_lowering(primitive, lambda _, x: [x])
    register_lowering(primitive, lower_fun(lowered, multiple_results=False), platform=platform)
    return primitive.bind


_on_cpu = identity_but_on("cpu", lax.optimization_barrier)
_on_cuda = identity_but_on("cuda", lax.optimization_barrier)


def unshared(tree: Any) -> Any:
    """The same arrays. Behind a barrier on the CPU, so that XLA does not store what two users share, such as `x - c`.

    It would write that to memory for the two sums, at full size and in float32.
    """
    return jax.tree.map(_on_cpu, tree)  # one each: a joint one would vary as all do


def isolated(sums: Any, guard: Array) -> Any:
    """The same sums (NaN where `guard` is, as they are then). On the CPU, a select that XLA does not fuse past.

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
    return _on_cuda(y)


def pinned(c: Array) -> Array:
    """`c`, rounded to one bit less by an operation that compilers keep: every use sees the same number.

    Compilers copy `total / n` to every use and fuse it there with what follows (`x - total * (1 / n)` rounds once):
    what is measured about one number would then be normalized about another.
    """
    if jnp.iscomplexobj(c):
        return lax.complex(pinned(c.real), pinned(c.imag))
    info = jnp.finfo(c.dtype)
    return lax.reduce_precision(c, info.nexp, info.nmant - 1)
