"""The sums of the norms, written as each compiler handles them best."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from bnjax._complex import abs_sq
from bnjax._lowering.barriers import unshared
from bnjax._lowering.platforms import by_platform
from bnjax._masks import valid

Spread = Callable[[Array, Array, tuple[int, ...]], tuple[Array, Array]]


def power_sums(dtype: Any, axes: tuple[int, ...], x: Array, c: Array, mask: Array | None) -> tuple[Array, Array]:
    """The sums of `x - c` and `|x - c|^2` over `axes`, in `dtype`. Not differentiated.

    Equivalent to `d = valid(mask, x - c); d.sum(axes), abs_sq(d).sum(axes)`, the axes kept.
    """
    spec = jax.typeof(x).sharding.spec
    rows = neighbours(x.shape, [a for i, a in enumerate(axes) if i == 0 or spec[a] is None])
    two = partial(_two_reductions, dtype, axes)
    if rows is None or jnp.issubdtype(dtype, jnp.complexfloating):
        return two(x, c, mask)
    return by_platform(two, x, c, mask, cpu=partial(_one_reduction, dtype, axes, rows))


def _two_reductions(dtype: Any, axes: tuple[int, ...], x: Array, c: Array, mask: Array | None) -> tuple[Array, Array]:
    pairs = unshared((x, c)), unshared(unshared((x, c)))
    if x.dtype == dtype:
        d, d_again = (valid(mask, x - c) for x, c in pairs)
        return d.sum(axes, keepdims=True), abs_sq(d_again).sum(axes, keepdims=True)
    # XLA's GPU compiler stores a difference that sums of few rows read. Stored as `x - c` it would be read, wider than
    # `x`, by all that follows, the backward pass included. `c - x` nobody else reads.
    d, d_again = (valid(mask, c - x.astype(dtype)) for x, c in pairs)
    return -d.sum(axes, keepdims=True), abs_sq(d_again).sum(axes, keepdims=True)


def _one_reduction(
    dtype: Any, axes: tuple[int, ...], rows: "Rows", x: Array, c: Array, mask: Array | None
) -> tuple[Array, Array]:
    """For a CPU, in one pass: XLA's own loop for two sums is fast over a few neighbours, and slow over all."""
    d = valid(mask, x.astype(dtype) - c).reshape(rows.split(x.shape)[1])
    zero = jnp.zeros((), d.dtype)
    s1, s2 = lax.reduce((d, d * d), (zero, zero), _added, (rows.axis + 1,))
    return s1.sum(axes, keepdims=True), s2.sum(axes, keepdims=True)


def _added(a: tuple[Array, Array], b: tuple[Array, Array]) -> tuple[Array, Array]:
    """A function of the module, because JAX keeps what it traced for each function that it is given."""
    return a[0] + b[0], a[1] + b[1]


def ways_to_sum(small: tuple[int, ...], shape: tuple[int, ...]) -> dict[str, Spread]:
    """For each compiler that has a way of its own: how to broadcast two arrays of the shape `small` to `shape`.

    The transpose is how the gradients of the two are summed.
    """
    ways: dict[str, Spread] = {}
    if small[-1:] == shape[-1:]:  # features are innermost
        ways["cuda"] = summed_as_complex
    rows = neighbours(shape, [a for a in range(len(shape)) if small[a] == 1], most=16)
    if rows is not None and small[0] == shape[0]:
        ways["cpu"] = partial(summed_rows_first, rows)
    return ways


def summed_as_complex(shift: Array, da: Array, shape: tuple[int, ...]) -> tuple[Array, Array]:
    """Both broadcast to the shape of the input, as the two parts of one complex array.

    The transpose is one sum of complex numbers for both gradients. XLA's GPU compiler fuses what comes before (relu's
    mask, say) into a single sum and into what follows. Before two sums it writes it to memory: a tenth of the traffic
    of a ResNet's step.
    """
    both = lax.complex(shift, da)
    both = both + jnp.zeros(shape, both.dtype)
    return both.real, both.imag


def summed_rows_first(rows: "Rows", shift: Array, da: Array, shape: tuple[int, ...]) -> tuple[Array, Array]:
    """For one gradient an example, as in group norm: broadcast first along a few neighbours, as complex numbers.

    The transpose sums in two steps. The CPU's library would do it in one step, but writes the products of all examples
    to memory first. It leaves complex numbers to XLA.
    """
    few, many = rows.split(shape)
    shift, da = (jnp.broadcast_to(jnp.expand_dims(t, rows.axis + 1), few) for t in (shift, da))
    return jax.tree.map(lambda t: t.reshape(shape), summed_as_complex(shift, da, many))


class Rows(NamedTuple):
    """An axis, and how many neighbours along it are summed first."""

    axis: int
    number: int

    def split(self, shape: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The shapes with the axis split in two, sums and neighbours: that of the sums, and that of all."""
        before, after = shape[: self.axis], shape[self.axis + 1 :]
        parts = shape[self.axis] // self.number
        return (*before, parts, 1, *after), (*before, parts, self.number, *after)


def neighbours(shape: tuple[int, ...], axes: Sequence[int], most: int = 32) -> Rows | None:
    """One of `axes` along which seven to `most` neighbours can be summed first; `None` if there is none.

    Fewer neighbours gain nothing, more do not fit the registers of a CPU. It is not the first of `axes`, which is the
    batch's in batch norm, and may be split over devices, and not the innermost axis of the array.
    """
    for axis in axes[1:]:
        number = max((k for k in range(7, most + 1) if shape[axis] % k == 0), default=0)
        if number and shape[axis] and axis < len(shape) - 1:
            return Rows(axis, number)
    return None
