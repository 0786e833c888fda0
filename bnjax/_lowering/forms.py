"""What the compilers of the platforms need to be told: the same mathematics, written as each makes the best of it.

docs/performance.md has the reasons and the figures.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

_within_remat = ContextVar("within_remat", default=False)


@contextmanager
def within_remat() -> Iterator[None]:
    """Norms called here are within a `jax.checkpoint` that knows what to keep. Two, one in the other, keep more."""
    token = _within_remat.set(True)
    try:
        yield
    finally:
        _within_remat.reset(token)


def keeps_by_itself() -> bool:
    """Whether a norm that is called here chooses what its backward pass keeps; within `remat` it does not."""
    return not _within_remat.get()


def recomputed(keeps: bool, f: Callable[..., Any], *args: Any, **on: Callable[..., Any]) -> Any:
    """`f(*args)`, of which the backward pass keeps the arguments only, written as each compiler wants it.

    CPU: behind a barrier (`prevent_cse`), or the forward pass keeps `x - c` in float32: half as much memory again.
    Elsewhere without: there a barrier parts the sums from the fusions around them, and costs traffic. `on` says the
    same as `f` in another way for a platform. `keeps`: what `keeps_by_itself` said when the norm was called.
    """
    branches = on | {"cpu": jax.checkpoint(on.get("cpu", f))}
    either = partial(lax.platform_dependent, **branches, default=f)
    return (jax.checkpoint(either, prevent_cse=False) if keeps else either)(*args)


def again(tree: Any) -> Any:
    """The same arrays, from which XLA's CPU compiler computes anew.

    What two sums share, such as `x - c`, it would otherwise write to memory for them, at full size and in float32.
    """
    barriers = partial(jax.tree.map, lax.optimization_barrier)  # one each: together they would vary together
    return lax.platform_dependent(tree, cpu=barriers, default=lambda same: same)


def apart(sums: Any, by: Array) -> Any:
    """The same sums, `by` being no NaN; what is done with them, and with their transpose, the CPU computes apart.

    XLA hands sums to a library there and what follows along with them, up to the gradient of the input, which then
    costs several arrays of its size. A choice between two numbers it keeps.
    """
    chosen = partial(jax.tree.map, lambda t: jnp.where(jnp.isnan(by), jnp.nan, t))
    return lax.platform_dependent(sums, cpu=chosen, default=lambda same: same)


def whole(shift: Array, da: Array, shape: tuple[int, ...]) -> tuple[Array, Array]:
    """Both at the shape of the input, as the two parts of one complex array.

    Its transpose is one sum of complex numbers for both gradients. XLA's GPU compiler fuses what comes before
    (relu's mask, say) into a single sum and into what follows; before two it writes it to memory: 15 % of the
    traffic of a ResNet's step. Only where features are innermost.
    """
    return _as_complex(shift, da, shape) if da.shape[-1:] == shape[-1:] else (shift, da)


def by_rows(shift: Array, da: Array, shape: tuple[int, ...]) -> tuple[Array, Array]:
    """For one gradient an example, as in group norm: first along a few neighbours, as complex numbers.

    The transpose sums in two steps. The CPU's library, which would do it in one, writes the products of all examples
    to memory first, and it leaves complex numbers to XLA.
    """
    rows = neighbours(shape, [a for a in range(len(shape)) if da.shape[a] == 1], most=16)
    if rows is None or da.shape[0] != shape[0]:
        return shift, da
    few, many = rows.split(shape)
    shift, da = (jnp.broadcast_to(jnp.expand_dims(t, rows.axis + 1), few) for t in (shift, da))
    return jax.tree.map(lambda t: t.reshape(shape), _as_complex(shift, da, many))


def _as_complex(shift: Array, da: Array, shape: tuple[int, ...]) -> tuple[Array, Array]:
    both = lax.complex(shift, da)
    both = both + jnp.zeros(shape, both.dtype)
    return both.real, both.imag


class Rows(NamedTuple):
    """An axis, and how many neighbours along it are summed first."""

    axis: int
    number: int

    def split(self, shape: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The shapes where the axis is one of sums and one of neighbours: of the sums, and of all."""
        before, after = shape[: self.axis], shape[self.axis + 1 :]
        parts = shape[self.axis] // self.number
        return (*before, parts, 1, *after), (*before, parts, self.number, *after)


def neighbours(shape: tuple[int, ...], axes: Sequence[int], most: int = 32) -> Rows | None:
    """An axis of those to sum over with seven to `most` neighbours: fewer gain nothing, more leave a CPU's registers.

    Not the first, which is a batch's and may be split over devices, and not the innermost of the array.
    """
    for axis in axes[1:]:
        number = max((k for k in range(7, most + 1) if shape[axis] % k == 0), default=0)
        if number and shape[axis] and axis < len(shape) - 1:
            return Rows(axis, number)
    return None
