"""Checks of arguments. Each brings an argument to its canonical form, or raises an error that says what to write.

They look at shapes, dtypes and concrete numbers only, before any work is done. A traced number has no value yet, so it
passes.
"""

import contextlib
import functools
import json
import math
import operator
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Literal, overload

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, export
from jax.typing import ArrayLike, DTypeLike

from bnjax._unstable import is_traced

Axes = int | Sequence[int]
SamplePivot = Literal["auto", "zero", "sample"] | None  # the number about which an example's statistics are measured
Pivot = Literal["running"] | SamplePivot  # the same for a batch, which may have a running mean
SAMPLE_PIVOTS = ("auto", "zero", "sample", None)
PIVOTS = ("running", *SAMPLE_PIVOTS)
MOMENTUM_HINT = " It is the fraction kept: 1 - PyTorch's."


def canonical_axes(axis: Axes, ndim: int, name: str = "axis") -> tuple[int, ...]:
    """`axis` as sorted non-negative axes of an array of rank `ndim`."""
    given = tuple(axis) if isinstance(axis, Iterable) else (axis,)
    if ndim == 0 and given:
        raise ValueError(f"`x` must have an axis to be `{name}` {axis!r}, but its shape is ().")
    for a in given:
        if not isinstance(a, int | np.integer) or not -ndim <= a < ndim:
            raise ValueError(
                f"`{name}` must hold integers from {-ndim} to {ndim - 1} for an input of rank {ndim}, "
                f"but it is {axis!r}."
            )
    axes = tuple(sorted(int(a) % ndim for a in given))
    if len(set(axes)) < len(axes):
        raise ValueError(f"`{name}` names an axis twice: {axis!r} for an input of rank {ndim}.")
    return axes


def other_axes(axes: Sequence[int], ndim: int) -> tuple[int, ...]:
    """The axes of an array of rank `ndim` that are not in `axes`."""
    return tuple(a for a in range(ndim) if a not in axes)


def inexact_array(x: ArrayLike, name: str = "x") -> Array:
    """`x` as a floating-point or complex array."""
    x = jnp.asarray(x)
    if not jnp.issubdtype(x.dtype, jnp.inexact):
        raise ValueError(
            f"`{name}` must be floating-point or complex, but its dtype is {x.dtype}; "
            f"write `{name}.astype(jnp.float32)`."
        )
    return x


def real_array(x: ArrayLike, name: str = "x") -> Array:
    """`x` as a real floating-point array."""
    x = inexact_array(x, name)
    if jnp.iscomplexobj(x):
        raise ValueError(
            f"`{name}` must be real, but its dtype is {x.dtype}; normalize `{name}.real` and `{name}.imag`."
        )
    return x


def stat_dtype(*args: Any) -> Any:
    """The dtype in which statistics of these arrays or dtypes are kept: float32 or wider."""
    return wider(jnp.float32, *(getattr(arg, "dtype", arg) for arg in args if arg is not None))


def wider(*dtypes: Any) -> Any:
    """The dtype that holds numbers of all of these, also where the user forbids implicit promotion."""
    with jax.numpy_dtype_promotion("standard"):
        return functools.reduce(jnp.promote_types, dtypes)


def widened(t: Array, like: Array) -> Array:
    """`t` in a dtype at least as wide as that of `like`. Explicit, because users can forbid implicit promotion."""
    return t if t.dtype == like.dtype else t.astype(wider(t.dtype, like.dtype))


def real_dtype(dtype: DTypeLike) -> Any:
    """The dtype of the absolute value of a number of this dtype."""
    return jnp.finfo(dtype).dtype


def named_dtype(dtype: DTypeLike | None) -> Any:
    """`dtype`, given as a name, a type or a dtype, as a dtype; `None` stays `None`."""
    try:
        return None if dtype is None else jnp.dtype(dtype)
    except TypeError:
        raise ValueError(
            f"`dtype` must be floating-point or complex, such as `jnp.bfloat16`, but it is {dtype!r}."
        ) from None


def output_dtype(dtype: DTypeLike | None, x: Array) -> Any:
    """`dtype`, or else that of `x`; a complex input keeps a complex output."""
    out = named_dtype(x.dtype if dtype is None else dtype)
    if not jnp.issubdtype(out, jnp.inexact):
        raise ValueError(f"`dtype` must be floating-point or complex, but it is {out}.")
    if jnp.iscomplexobj(x) and not jnp.issubdtype(out, jnp.complexfloating):
        raise ValueError(f"`dtype` is {out}, which would drop the imaginary part of a {x.dtype} input.")
    return out


@overload
def feature_array(value: ArrayLike, name: str, shape: Sequence[int], features: Sequence[int]) -> Array: ...
@overload
def feature_array(value: None, name: str, shape: Sequence[int], features: Sequence[int]) -> None: ...
@overload
def feature_array(
    value: ArrayLike | None, name: str, shape: Sequence[int], features: Sequence[int]
) -> Array | None: ...
def feature_array(value: ArrayLike | None, name: str, shape: Sequence[int], features: Sequence[int]) -> Array | None:
    """`value`, of the features' shape or broadcastable at the rank of the input, at that rank."""
    if value is None:
        return None
    value = jnp.asarray(value)
    if not jnp.issubdtype(value.dtype, jnp.inexact):
        value = value.astype(jnp.float32)  # an integer has no tangent
    want = tuple(shape[a] for a in features)
    if value.shape == want:
        return value.reshape(_placed(want, features, len(shape)))
    if value.ndim == len(shape) and all(v in (1, s) for v, s in zip(value.shape, shape, strict=True)):
        return value
    raise ValueError(
        f"`{name}` must have the shape of the features, {want}, or rank {len(shape)} and broadcast to the "
        f"input's shape {tuple(shape)}, but its shape is {value.shape}."
    )


def has_parts(state: Any, name: str, make: str, *parts: str) -> None:
    """Raises unless `state` has these attributes; for a mapping that holds them it says what to write."""
    if all(
        hasattr(state, part) and not callable(getattr(state, part)) for part in parts
    ):  # arrays have a method `mean`
        return
    remedy = f"pass {make}"
    if isinstance(state, Mapping) and all(part in state for part in parts):
        held = ", ".join(f"{name}[{part!r}]" for part in parts)
        remedy = f"write `{make}({'jnp.zeros(()), ' if make == 'Moments' else ''}{held})`"
    raise ValueError(f"`{name}` must be {make}, but it is {state!r:.80}, of type {type(state).__name__}; {remedy}.")


def broadcastable(a: ArrayLike, name_a: str, b: ArrayLike, name_b: str) -> None:
    """Raises unless the two arrays broadcast."""
    try:
        jnp.broadcast_shapes(jnp.shape(a), jnp.shape(b))
    except ValueError as error:
        raise ValueError(
            f"`{name_a}` and `{name_b}` must be of one shape, or broadcast, but their shapes are {jnp.shape(a)} and "
            f"{jnp.shape(b)}; measure the same features in both."
        ) from error


def float_state(state: Any, name: str, make: str, *parts: str) -> None:
    """Raises unless `state` has these parts, all of them floating-point: integers cannot hold an average."""
    has_parts(state, name, make, *parts)
    for part in parts:
        dtype = jnp.asarray(getattr(state, part)).dtype
        if not jnp.issubdtype(dtype, jnp.inexact):
            raise ValueError(
                f"`{name}.{part}` must be floating-point, but its dtype is {dtype}; write "
                f"`{name}.{part}.astype(jnp.float32)`."
            )


def state_shape(value: ArrayLike, name: str, shape: Sequence[int], features: Sequence[int]) -> None:
    """Raises unless `value` has the shape of the features."""
    want = tuple(shape[a] for a in features)
    if jnp.shape(value) != want:
        raise ValueError(
            f"`{name}` must have the shape of the features, {want} (axes {tuple(features)} of an input of shape "
            f"{tuple(shape)}), but its shape is {jnp.shape(value)}."
        )


def pivot_array(pivot: ArrayLike, shape: Sequence[int], features: Sequence[int]) -> Array:
    """`pivot`, broadcastable to the features' shape with or without the measured axes, at the rank of the input."""
    pivot = jnp.asarray(pivot)
    want = tuple(shape[a] for a in features)
    kept = tuple(s if a in features else 1 for a, s in enumerate(shape))
    for target in (want, kept):
        full = (1,) * (len(target) - pivot.ndim) + pivot.shape
        if len(full) == len(target) and all(p in (1, t) for p, t in zip(full, target, strict=True)):
            return pivot.reshape(full if target is kept else _placed(full, features, len(shape)))
    raise ValueError(
        f"`pivot` must broadcast to the shape of the result, {want}, or with the measured axes kept {kept}, but its "
        f"shape is {pivot.shape}."
    )


def _placed(lengths: Sequence[int], axes: Sequence[int], ndim: int) -> tuple[int, ...]:
    """A shape of rank `ndim` with these lengths at `axes` and ones elsewhere."""
    where = dict(zip(axes, lengths, strict=True))
    return tuple(where.get(a, 1) for a in range(ndim))


def no_imaginary_part_lost(compute_dtype: Any, value: ArrayLike | None, name: str) -> None:
    """Raises where a complex `value` would lose its imaginary part in arithmetic of `compute_dtype`."""
    if value is not None and jnp.iscomplexobj(value) and not jnp.issubdtype(compute_dtype, jnp.complexfloating):
        raise ValueError(
            f"`{name}` must be real for a real `x`, but its dtype is {jnp.asarray(value).dtype}; make `x` complex."
        )


def concrete(value: Any) -> np.ndarray | None:
    """`value` as a numpy array; `None` where it is traced, or where other processes hold a part of it.

    Numpy, because within `jit` `jax.numpy` traces known numbers, too.
    """
    for leaf in jax.tree.leaves(value):
        if is_traced(leaf):
            return None
        if isinstance(leaf, Array) and not (leaf.is_fully_addressable or leaf.is_fully_replicated):
            return None
    return np.asarray(value)


def unit_interval(value: Any, name: str, hint: str = "") -> None:
    """Raises unless 0 <= value <= 1."""
    _scalar(value, name)
    if (known := concrete(value)) is not None and not 0 <= known <= 1:
        raise ValueError(f"`{name}` must be from 0 to 1, but it is {value}.{hint}")


def non_negative(value: Any, name: str) -> None:
    """Raises unless `value` is finite and not negative."""
    _scalar(value, name)
    if (known := concrete(value)) is not None and not 0 <= known < math.inf:
        raise ValueError(f"`{name}` must be finite and not negative, but it is {value}.")


def at_least(value: Any, name: str, least: float, hint: str = "") -> None:
    """Raises unless `value` is finite and at least that."""
    _scalar(value, name)
    if (known := concrete(value)) is not None and not least <= known < math.inf:
        raise ValueError(f"`{name}` must be at least {least}, but it is {value}.{hint}")


def positive_integer(value: Any) -> int:
    """`value`, of Python, numpy or jax, or 0 where it is no positive integer."""
    try:
        return max(operator.index(value), 0)
    except TypeError:  # of a float, and of what is traced
        return 0


def flag(value: Any, name: str) -> None:
    """Raises unless `value` is a boolean, or `None`, which means that the call gives it. Arrays pass."""
    if value is None or isinstance(value, bool | np.bool_ | Array) or (isinstance(value, int) and value in (0, 1)):
        return
    raise ValueError(f"`{name}` must be True or False, or None to be given at the call, but it is {value!r}.")


def choice(value: Any, name: str, choices: Sequence[Any], hint: str = "") -> None:
    """Raises unless `value` is one of `choices`."""
    if not any(value is c or (isinstance(c, str) and value == c) for c in choices):
        known = ", ".join(repr(c) for c in choices)
        raise ValueError(f"`{name}` must be one of {known}{hint}, but it is {value!r}.")


def known_arguments(of: str, given: Iterable[str], known: Collection[str]) -> None:
    """Raises where an argument is given that `of` does not take; says which it takes."""
    for name in given:
        if name not in known:
            raise ValueError(f"`{name}` is no argument of {of}, which takes {', '.join(f'`{k}`' for k in known)}.")


def _scalar(value: Any, name: str) -> None:
    """Raises unless `value` is one real number, of Python or an array."""
    dtype = getattr(value, "dtype", None)
    of_array = dtype is not None and any(jnp.issubdtype(dtype, kind) for kind in (jnp.floating, jnp.integer, jnp.bool_))
    if not of_array and not isinstance(value, int | float):
        raise ValueError(f"`{name}` must be a number, but it is {value!r}.")
    if jnp.shape(value) != ():
        raise ValueError(f"`{name}` must be a number, but it is {value!r}, of shape {np.shape(value)}.")


def in_exported_files(cls: type, name: str) -> None:
    """Registers `cls` with `jax.export`, whose files describe the pytrees of arguments and results."""
    with contextlib.suppress(ValueError):  # the name is registered already, as when the module is reloaded
        export.register_pytree_node_serialization(
            cls,
            serialized_name=name,
            serialize_auxdata=lambda static: json.dumps(static).encode(),
            deserialize_auxdata=lambda static: tuple(json.loads(static) or ()),
            from_children=lambda static, children: cls(*children, *static),
        )


def hashable_name(axis_name: Any) -> Any:
    """`axis_name`, a list of names as a tuple."""
    return tuple(axis_name) if isinstance(axis_name, list) else axis_name


def hashable(groups: Sequence[Sequence[int]] | None) -> tuple[tuple[int, ...], ...] | None:
    """`axis_index_groups` as tuples."""
    return None if groups is None else tuple(tuple(group) for group in groups)
