"""The meaning of a mask, in one place: which arrays are masks, what is valid, and what becomes of the rest."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import DTypeLike

from bnjax import _checks as checks


class NamedMask(NamedTuple):
    """A mask, as it was given, and the name that errors use for it: `mask` in modules."""

    mask: Any
    name: str


def read(x: Array, where: Any, name: str = "where") -> tuple[Array, Array | None]:
    """`x`, and `where` as a boolean array of its rank, each axis whole or of length one.

    A mask of fewer axes is aligned from the right, as in numpy and Flax. If it would also fit from the left it is
    refused, because it is ambiguous. Negative entries are refused, too: they belong to a mask that is added to logits,
    and as a truth value they would keep what that mask drops. The entries of a traced mask are unknown. There a
    negative entry makes `x` NaN and all of it valid, so that every result is NaN. A mask whose dtype has no negative
    numbers costs nothing.
    """
    if isinstance(where, NamedMask):
        where, name = where
    if where is None:
        return x, None
    mask = jnp.asarray(where)
    _check_shape(mask.shape, x.shape, name)
    valid = mask if mask.dtype == jnp.bool_ else mask != 0
    if _signed(mask.dtype):
        if (known := checks.concrete(where)) is not None:
            _check_no_negative(known, name)
        else:
            negative = (mask < 0).any()
            # Added, not selected: a selected NaN would give `x` the gradient zero, and this gives it NaN.
            x, valid = x + jnp.where(negative, jnp.nan, 0).astype(x.dtype), valid | negative
    return x, valid.reshape((1,) * (x.ndim - mask.ndim) + mask.shape)


def zeroed(x: Array, mask: Array | None, zero_masked: bool) -> tuple[Array, Array | None]:
    """With `zero_masked`: `x` with zeros where masked out, and the mask for the result. Without: `x` and `None`.

    `x` becomes zero as well as the result. The gradient of a result that is made zero is zero, and its product with a
    NaN in `x` would be NaN.
    """
    if not isinstance(zero_masked, bool | np.bool_):
        raise ValueError(f"`zero_masked` must be True or False, but it is {zero_masked!r}.")
    return (valid(mask, x), mask) if zero_masked else (x, None)


def valid(mask: Array | None, t: Array) -> Array:
    """`t`, with zeros where masked out."""
    return t if mask is None else jnp.where(mask, t, jnp.zeros((), t.dtype))


def valid_if_fits(mask: Array | None, t: Array | None) -> Array | None:
    """`t`, with zeros where masked out, if the mask broadcasts to its shape; else `t` as it is.

    The mask fits a residual, and parameters of each example or position. A parameter that valid and masked elements
    share stays.
    """
    if mask is None or t is None or any(m not in (1, s) for m, s in zip(mask.shape, t.shape, strict=True)):
        return t
    return valid(mask, t)


def finite(mask: Array | None, t: Array, source: Array | None = None) -> Array:
    """`t`, with zeros where masked out and not finite. If `source` is given, where that is not finite."""
    return t if mask is None else jnp.where(mask | jnp.isfinite(t if source is None else source), t, 0)


def inf_where_empty(var: Array, count: Array | float) -> Array:
    """The variance, infinite where nothing is valid. Normalized by it, `x` becomes the bias."""
    return jnp.where(jnp.asarray(count) > 0, var, jnp.inf)


def count_valid(mask: Array | None, shape: Sequence[int], axes: Sequence[int], dtype: DTypeLike) -> Array | float:
    """How many elements are valid over `axes`, axes kept; without a mask a number, known when traced."""
    if mask is None:
        return num_elements([shape[a] for a in axes], dtype)
    repeats = num_elements([shape[a] for a in axes if mask.shape[a] == 1], dtype)
    return mask.sum(axes, keepdims=True, dtype=checks.real_dtype(dtype)) * repeats


def num_elements(lengths: Sequence[int], dtype: DTypeLike) -> Array | float:
    """The number of elements. An array where a length is a symbol of `jax.export`: it is known at the call only."""
    real = checks.real_dtype(dtype)
    return math.prod((float(n) if isinstance(n, int) else jnp.asarray(n, real) for n in lengths), start=1.0)


def name_for_errors(where: Any) -> str:
    """The caller's name for the mask: `where` in functions, `mask` in modules."""
    return where.name if isinstance(where, NamedMask) else "where"


def _check_shape(mask: Sequence[Any], shape: Sequence[Any], name: str) -> None:
    """Raises unless the mask fits from the right, and only from there."""
    n, missing = len(mask), len(shape) - len(mask)
    from_right = missing >= 0 and _fits(mask, shape[missing:])
    from_left = n > 0 and missing > 0 and any(m != 1 for m in mask) and _fits(mask, shape[:n])
    first, last = f"`{name}[...{', None' * missing}]`", f"`{name}[{'None, ' * missing}...]`"
    if from_right and from_left:
        raise ValueError(
            f"`{name}` has the shape {tuple(mask)}, which fits the first axes of an input of shape {tuple(shape)} and "
            f"the last ones; write {first} for the first, {last} for the last."
        )
    if not from_right:
        hint = "give it one axis for each of the input's, of that length or of length 1"
        if from_left:
            hint = f"fewer axes are read as the last ones, and it fits the first ones: write {first}"
        raise ValueError(
            f"`{name}` must broadcast to the shape of the input, {tuple(shape)}, but its shape is {tuple(mask)}; "
            f"{hint}."
        )


def _fits(mask: Sequence[Any], shape: Sequence[Any]) -> bool:
    return all(m in (1, s) for m, s in zip(mask, shape, strict=True))


def _signed(dtype: Any) -> bool:
    return any(jnp.issubdtype(dtype, kind) for kind in (jnp.signedinteger, jnp.floating))


def _check_no_negative(where: np.ndarray, name: str) -> None:
    if (where < 0).any():
        raise ValueError(
            f"`{name}` must be zero where masked out and positive where valid, but it has {where.min()}. For a mask "
            f"that is added to logits, 0 where valid and -1e9 elsewhere, write `{name} == 0`."
        )
