"""What JAX does not promise to keep, in one place. A release that changes a name changes this file."""

from typing import Any

import jax


def is_traced(value: Any) -> bool:
    """Whether `value` is a tracer, so that it has no number to look at."""
    return isinstance(value, jax.core.Tracer)


def varying(t: Any) -> set[Any]:
    """The named axes along which `t` varies, as its type says; none where types do not say."""
    kind = t if isinstance(t, jax.ShapeDtypeStruct) else jax.typeof(t)
    axes = getattr(kind, "manual_axis_type", None)  # of jax 0.12; `vma` before
    return set(axes.varying if axes is not None else getattr(kind, "vma", None) or ())
