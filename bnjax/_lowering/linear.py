"""The tangent of a norm as one primitive: what its backward pass keeps, and what each compiler is given.

It is in the place of `jax.checkpoint`, which JAX traces anew for each transformation.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
from jax import lax

from bnjax._lowering.platforms import Flat, Ways, by_platform, of_some, tangent_of, traced
from bnjax._unstable import Primitive, Zero, ad, as_function, batching, is_undefined, lower_fun, register_lowering


def linear(f: Callable[..., Any], residuals: Any, tangents: Any, **own: Callable[..., Any]) -> Any:
    """`f(residuals, tangents)`, linear in the tangents, of which the backward pass keeps the residuals only.

    The transpose computes again from the residuals what it needs. On a CPU it does so behind a barrier, together with
    the cotangent: without this barrier XLA would keep `x - c` in float32 from the forward pass, half as much memory
    again. Elsewhere there is no barrier: it would separate the sums from the fusions around them, and cost traffic.

    Args:
      f: the function, of two trees of arrays. It closes over no array.
      residuals: a tree of arrays.
      tangents: a tree of arrays.
      **own: the same as `f`, written so that a platform's compiler likes its transpose.
    """
    ways, tree = traced(f, (residuals, tangents), own)
    flat, n = jax.tree.leaves((residuals, tangents)), len(jax.tree.leaves(residuals))
    return jax.tree.unflatten(tree, linear_p.bind(*flat, ways=ways, residuals=n))


def _jvp(primals: Sequence[Any], dots: Sequence[Any], *, ways: Ways, residuals: int) -> tuple[Any, Any]:
    bind = partial(linear_p.bind, ways=ways, residuals=residuals)
    y, parts = bind(*primals), []
    if any(type(t) is not Zero for t in dots[residuals:]):
        parts.append(bind(*primals[:residuals], *map(ad.instantiate_zeros, dots[residuals:])))
    if any(type(t) is not Zero for t in dots[:residuals]):  # of a second derivative
        fixed = [Zero(jax.typeof(t).to_tangent_aval()) for t in primals[residuals:]]
        parts.append(tangent_of(as_function(ways.default), primals, [*dots[:residuals], *fixed]))
    return y, [sum(of_one[1:], of_one[0]) for of_one in zip(*parts, strict=True)]


def _transpose(cts: Sequence[Any], *args: Any, ways: Ways, residuals: int) -> list[Any]:
    """A tangent that is known here is a zero, of an argument that does not move. Only the others get a cotangent."""
    types = [jax.typeof(t) if not is_undefined(t) else t.aval for t in args[residuals:]]
    free = [i for i, t in enumerate(args[residuals:]) if is_undefined(t)]

    def back(f: Flat, kept: Any, cts: Any) -> Any:  # closes over no array: it may be traced again later
        zeros = [ad.instantiate_zeros(Zero(t)) for t in types]
        of = of_some(partial(f, *kept), zeros, free)
        return jax.linear_transpose(of, *(zeros[i] for i in free))(list(cts))

    tied = together_p.bind(*args[:residuals], *map(ad.instantiate_zeros, cts))
    own = {platform: partial(back, f) for platform, f in ways.own.items()}
    found = by_platform(partial(back, as_function(ways.default)), tied[:residuals], tied[residuals:], **own)
    of = dict(zip(free, found, strict=True))
    return [None] * residuals + [of.get(i) for i in range(len(types))]


def _batch(args: Sequence[Any], dims: Sequence[Any], *, ways: Ways, residuals: int) -> tuple[Any, Any]:
    y = linear_p.bind(*args, ways=ways.mapped(args, dims), residuals=residuals)
    return y, [0] * len(y)


def _impl(*args: Any, ways: Ways, residuals: int) -> Any:
    return ways.of("")(*args)


linear_p = Primitive("norm_tangent")
linear_p.multiple_results = True
linear_p.def_impl(_impl)
linear_p.def_abstract_eval(lambda *_, ways, residuals: ways.default.out_avals)
ad.primitive_jvps[linear_p] = _jvp
ad.primitive_transposes[linear_p] = _transpose
batching.primitive_batchers[linear_p] = _batch
register_lowering(linear_p, lower_fun(_impl, multiple_results=True))

# The same arrays; on a CPU behind one barrier, so that no residual is used before the cotangent is there.
together_p = Primitive("together_on_cpu")
together_p.multiple_results = True
together_p.def_impl(lambda *args: list(args))
together_p.def_abstract_eval(lambda *avals: list(avals))
ad.primitive_jvps[together_p] = lambda primals, dots: (together_p.bind(*primals), list(dots))
batching.primitive_batchers[together_p] = lambda args, dims: (together_p.bind(*args), dims)
register_lowering(together_p, lambda _, *args: list(args))
register_lowering(
    together_p, lower_fun(lambda *args: lax.optimization_barrier(args), multiple_results=True), platform="cpu"
)
