"""The affine map that normalizes, and its tangent: what `normalize` and the rule of all norms share.

A map is `(d - delta) * rsqrt(var + epsilon) * scale + bias + residual`, then perhaps relu, with d = x - c.
Its tangent is written so that the backward pass keeps `x` in its own dtype and small vectors.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike, DTypeLike

from bnjax import _checks as checks

_within_remat = ContextVar("within_remat", default=False)
Activation = str | Callable[[Array], Array] | None


class Form(NamedTuple):
    """What is static about a map."""

    wide: Any  # dtype of the arithmetic: float32 or wider; complex for complex input
    out: Any  # dtype of the result
    relu: bool
    keeps: bool = True  # chooses by itself what the backward pass keeps; not within `remat`, which does


class Affine(NamedTuple):
    """What follows the division by the standard deviation, at the rank of the input."""

    scale: Array | None
    bias: Array | None
    residual: Array | None
    epsilon: Array


def form_of(x: Array, activation: Activation, dtype: DTypeLike | None) -> Form:
    """The static part of a map of `x`, checked."""
    if not callable(activation):
        checks.choice(activation, "activation", (None, "relu"), " or a callable")
    if activation == "relu" and jnp.iscomplexobj(x):
        raise ValueError("`activation` is 'relu', which has no meaning for a complex `x`; pass a callable.")
    out = checks.output_dtype(dtype, x)
    return Form(checks.stat_dtype(x, out), out, activation == "relu", not _within_remat.get())


def affine_of(
    form: Form,
    x: Array,
    features: tuple[int, ...],
    scale: ArrayLike | None,
    bias: ArrayLike | None,
    residual: ArrayLike | None,
    epsilon: ArrayLike,
) -> Affine:
    """The operands of a map of `x`, checked and brought to its rank."""
    checks.positive(epsilon, "epsilon")
    for name, value in (("scale", scale), ("bias", bias), ("residual", residual)):
        checks.real_unless(form.wide, value, name)
    if residual is not None and jnp.shape(residual) != x.shape:
        raise ValueError(
            f"`residual` must have the shape of the input, {x.shape}, but its shape is {jnp.shape(residual)}; "
            "broadcast or project it first."
        )
    return Affine(
        checks.feature_array(scale, "scale", x.shape, features),
        checks.feature_array(bias, "bias", x.shape, features),
        None if residual is None else jnp.asarray(residual),
        jnp.asarray(epsilon, checks.real_dtype(form.wide)).reshape((1,) * x.ndim),
    )


def activate(y: Array, activation: Activation) -> Array:
    """What the rule has not done yet: a callable, by plain autodiff."""
    return activation(y) if callable(activation) else y


def tangent(form: Form, primals: Any, tangents: Any, mask: Array | None) -> Array:
    """The tangent of `output(line(...))` at `(x, affine, c, delta, var)`."""
    f = partial(_tangent, form)
    return recomputed(form, f, primals, tangents, mask, cpu=partial(f, spread=_by_rows), cuda=partial(f, spread=_whole))


def _tangent(
    form: Form, primals: Any, tangents: Any, mask: Array | None, *, spread: Callable[..., Any] | None = None
) -> Array:
    x, affine, c, delta, var = primals
    daffine = tangents[1]
    if affine.scale is not None and any(s > v for s, v in zip(affine.scale.shape, var.shape, strict=True)):
        dz = _of_parts(form, primals, tangents, mask)
    else:
        dz = _of_line(form, primals, tangents, mask, spread)
    if mask is not None:  # the transpose drops the cotangents of what is not finite, which may not be finite either
        dz = jnp.where(mask | jnp.isfinite(x), dz, 0)
    if affine.residual is not None:
        dz = dz + daffine.residual.astype(form.wide)
    dz = again(dz.astype(form.out))  # the gradient's dtype: the CPU's compiler would widen it first, then write it out
    if form.relu:
        x, c = again((x, c))
        dz = jnp.where(line(centre(form, x, c, mask), affine, delta, var) > 0, dz, 0)
    return dz


def _of_line(form: Form, primals: Any, tangents: Any, mask: Array | None, spread: Callable[..., Any] | None) -> Array:
    """The tangent of `a * d + shift`: with features that are measured one by one, a and shift are small.

    The transpose of what makes them large is how they are summed; `spread` is a compiler's own way to do it.
    """
    x, affine, c, delta, var = primals
    dx, daffine, dmean, dvar = tangents
    r = lax.rsqrt(var + affine.epsilon)
    a = _times(r, affine.scale)
    da = -0.5 * r * r * a * (dvar + daffine.epsilon)
    if affine.scale is not None:
        da = da + r * daffine.scale
    shift = -delta * da - a * dmean
    if affine.bias is not None:
        shift = shift + daffine.bias
    if spread is not None and shift.shape == da.shape and not jnp.iscomplexobj(shift):
        shift, da = spread(shift, da, x.shape)
    return dx.astype(form.wide) * a + centre(form, x, c, mask) * da + shift


def _of_parts(form: Form, primals: Any, tangents: Any, mask: Array | None) -> Array:
    """The same where the scale varies over what is measured, as in layer norm, and a would be of full size."""
    x, affine, c, delta, var = primals
    dx, daffine, dmean, dvar = tangents
    r = lax.rsqrt(var + affine.epsilon)
    dr = -0.5 * r * r * r * (dvar + daffine.epsilon)
    dz = ((dx.astype(form.wide) - dmean) * r + (centre(form, x, c, mask) - delta) * dr) * affine.scale
    x, c, delta, var = again((x, c, delta, var))
    dz = dz + (centre(form, x, c, mask) - delta) * lax.rsqrt(var + affine.epsilon) * daffine.scale
    return dz if affine.bias is None else dz + daffine.bias


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


@contextmanager
def within_remat() -> Iterator[None]:
    """Norms called here are within a `jax.checkpoint` that knows what to keep. Two, one in the other, keep more."""
    token = _within_remat.set(True)
    try:
        yield
    finally:
        _within_remat.reset(token)


def recomputed(form: Form, f: Callable[..., Any], *args: Any, **on: Callable[..., Any]) -> Any:
    """`f(*args)`, of which the backward pass keeps the arguments only, written as each compiler wants it.

    CPU: behind a barrier (`prevent_cse`), or the forward pass keeps `x - c` in float32: half as much memory again.
    Elsewhere without: there a barrier parts the sums from the fusions around them, and costs traffic. `on` says the
    same as `f` in another way for a platform.
    """
    branches = on | {"cpu": jax.checkpoint(on.get("cpu", f))}
    either = partial(lax.platform_dependent, **branches, default=f)
    return (jax.checkpoint(either, prevent_cse=False) if form.keeps else either)(*args)


def _whole(shift: Array, da: Array, shape: tuple[int, ...]) -> tuple[Array, Array]:
    """Both at the shape of the input, as the two parts of one complex array.

    Its transpose is one sum of complex numbers for both gradients. XLA's GPU compiler fuses what comes before
    (relu's mask, say) into a single sum and into what follows; before two it writes it to memory: 15 % of the
    traffic of a ResNet's step. Only where features are innermost.
    """
    return _as_complex(shift, da, shape) if da.shape[-1:] == shape[-1:] else (shift, da)


def _by_rows(shift: Array, da: Array, shape: tuple[int, ...]) -> tuple[Array, Array]:
    """For one gradient an example, as in group norm: first along a few neighbours, as complex numbers.

    The transpose sums in two steps. The CPU's library, which would do it in one, writes the products of all examples
    to memory first, and it leaves complex numbers to XLA.
    """
    rows = neighbours(shape, [a for a in range(1, len(shape) - 1) if da.shape[a] == 1])
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


def neighbours(shape: tuple[int, ...], axes: Iterable[int]) -> Rows | None:
    """The first of `axes` with seven to 32 neighbours: fewer gain nothing, and more leave a CPU's registers."""
    for axis in axes:
        number = max((k for k in range(7, 33) if shape[axis] % k == 0), default=0)
        if number and shape[axis]:
            return Rows(axis, number)
    return None


def line(d: Array, affine: Affine, delta: Array, var: Array) -> Array:
    """(d - delta) * rsqrt(var + epsilon) * scale + bias + residual, with one product an element."""
    a = _times(lax.rsqrt(var + affine.epsilon), affine.scale)
    shift = -delta * a if affine.bias is None else affine.bias - delta * a
    z = d * a + shift
    return z if affine.residual is None else z + affine.residual.astype(z.dtype)


def output(form: Form, z: Array) -> Array:
    return (jnp.maximum(z, 0) if form.relu else z).astype(form.out)


def written(form: Form, affine: Affine, y: Array) -> Array:
    """The output of a block as it is: rounded to its dtype, for XLA's GPU compiler too.

    It is the next block's residual, and so on. The compiler would leave out the rounding between them and keep the sums
    in float32 for the masks of the backward pass: a sixth of the memory of a ResNet's step, a tenth of its traffic.
    """
    if affine.residual is None or not form.relu or form.out == form.wide:
        return y
    return lax.platform_dependent(y, cuda=lax.optimization_barrier, default=lambda same: same)


def centre(form: Form, x: Array, c: Array, mask: Array | None) -> Array:
    """x - c; zero where masked out and not finite, so that it reaches no other gradient."""
    d = x.astype(form.wide) - c
    return d if mask is None else jnp.where(mask | jnp.isfinite(d), d, 0)


def _times(a: Array, scale: Array | None) -> Array:
    return a if scale is None else a * scale
