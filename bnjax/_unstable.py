"""What JAX does not promise to keep, in one place. A release that changes a name changes this file."""

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
