"""What JAX does not promise to keep, in one place. A release that changes a name changes this file."""

from collections.abc import Callable
from typing import Any

import jax
from jax.extend.core import Primitive as Primitive
from jax.extend.core import jaxpr_as_fun
from jax.interpreters import ad as ad
from jax.interpreters import batching as batching
from jax.interpreters.mlir import lower_fun as lower_fun
from jax.interpreters.mlir import register_lowering as register_lowering

as_function = jaxpr_as_fun
Zero, is_undefined = ad.Zero, ad.is_undefined_primal


def is_traced(value: Any) -> bool:
    """Whether `value` is a tracer, so that it has no number to look at."""
    return isinstance(value, jax.core.Tracer)


def varying(t: Any) -> set[Any]:
    """The named axes along which `t` varies, as its type says; none where types do not say."""
    kind = t if isinstance(t, jax.ShapeDtypeStruct) else jax.typeof(t)
    axes = getattr(kind, "manual_axis_type", None)  # of jax 0.12; `vma` before
    return set(axes.varying if axes is not None else getattr(kind, "vma", None) or ())


def identity_but_on(platform: str, lowered: Callable[[jax.Array], jax.Array]) -> Callable[[jax.Array], jax.Array]:
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
