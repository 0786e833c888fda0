"""The affine map that normalizes, and its tangent: what `normalize` and the rule of all norms share.

A map is `(d - delta) * rsqrt(var + epsilon) * scale + bias + residual`, then perhaps relu, with d = x - c.
Its tangent is written so that the backward pass keeps `x` in its own dtype and small vectors.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike, DTypeLike

from bnjax import _checks as checks
from bnjax import _masks as masks
from bnjax._lowering.barriers import materialized, unshared
from bnjax._lowering.checkpoint import own_checkpoint, rematerialized
from bnjax._lowering.sums import summed_as_complex, summed_rows_first

Activation = Literal["relu", "gelu", "silu"] | Callable[[Array], Array] | None
BY_AUTODIFF = {"gelu": jax.nn.gelu, "silu": jax.nn.silu}  # relu is inside the rule


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
        checks.choice(activation, "activation", (None, "relu", *BY_AUTODIFF), " or a callable")
    out = checks.output_dtype(dtype, x)
    wide = checks.stat_dtype(x, out)
    if isinstance(activation, str) and jnp.issubdtype(wide, jnp.complexfloating):
        of = "`x`" if jnp.iscomplexobj(x) else "`dtype`"
        raise ValueError(f"`activation` is {activation!r}, which has no meaning for a complex {of}; pass a callable.")
    return Form(wide, out, activation == "relu", own_checkpoint())


def affine_of(
    form: Form,
    x: Array,
    features: tuple[int, ...],
    scale: ArrayLike | None,
    bias: ArrayLike | None,
    residual: ArrayLike | None,
    epsilon: ArrayLike,
    zero: Array | None = None,
) -> Affine:
    """The operands of a map of `x`, checked and brought to its rank; zero where the mask `zero` says so."""
    checks.positive(epsilon, "epsilon")
    for name, value in (("scale", scale), ("bias", bias), ("residual", residual)):
        checks.real_unless(form.wide, value, name)
    if residual is not None and jnp.shape(residual) != x.shape:
        raise ValueError(
            f"`residual` must have the shape of the input, {x.shape}, but its shape is {jnp.shape(residual)}; "
            "broadcast or project it first."
        )
    return Affine(
        masks.valid_alone(zero, checks.feature_array(scale, "scale", x.shape, features)),
        masks.valid_alone(zero, checks.feature_array(bias, "bias", x.shape, features)),
        masks.valid_alone(zero, None if residual is None else jnp.asarray(residual)),
        jnp.asarray(epsilon, checks.real_dtype(form.wide)).reshape((1,) * x.ndim),
    )


def activate(y: Array, activation: Activation, zero: Array | None = None) -> Array:
    """What the rule has not done yet, by plain autodiff; and zeros where the mask `zero` says so."""
    if isinstance(activation, str):
        activation = BY_AUTODIFF.get(activation)
    if activation is not None:
        shape, y = y.shape, activation(masks.valid(zero, y))
        if zero is not None and jnp.shape(y) != shape:
            raise ValueError(
                f"`zero_masked=True` needs an `activation` that keeps the shape; of {shape} it makes {jnp.shape(y)}. "
                "Apply it to the result."
            )
    return masks.valid(zero, y)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def apply_map(form: Form, x: Array, affine: Affine, c: Array, delta: Array, var: Array, mask: Array | None) -> Array:
    """The output, from moments about `c`: the mean is `c + delta`."""
    return finished(form, affine, output(form, line(x.astype(form.wide) - c, affine, delta, var)))


@apply_map.defjvp
def _apply_map_jvp(form: Form, primals: Any, tangents: Any) -> Any:
    dx, daffine, dc, ddelta, dvar, _ = tangents
    return apply_map(form, *primals), tangent(form, primals[:-1], (dx, daffine, dc + ddelta, dvar), primals[-1])


def tangent(form: Form, primals: Any, tangents: Any, mask: Array | None) -> Array:
    """The tangent of `output(line(...))` at `(x, affine, c, delta, var)`."""
    f = partial(_tangent, form)
    per_platform = {"cpu": partial(f, spread=summed_rows_first), "cuda": partial(f, spread=summed_as_complex)}
    return rematerialized(form.keeps, f, primals, tangents, mask, **per_platform)


def _tangent(
    form: Form, primals: Any, tangents: Any, mask: Array | None, *, spread: Callable[..., Any] | None = None
) -> Array:
    x, affine, c, delta, var = primals
    affine, daffine = _widened(affine, var), _widened(tangents[1], var)
    primals, tangents = (x, affine, c, delta, var), (tangents[0], daffine, *tangents[2:])
    if affine.scale is not None and any(s > v for s, v in zip(affine.scale.shape, var.shape, strict=True)):
        dz = _of_parts(form, primals, tangents, mask)
    else:
        dz = _of_line(form, primals, tangents, mask, spread)
    # The transpose drops the cotangents of what is not finite, which may not be finite either.
    dz = masks.finite(mask, dz, source=x)
    if daffine.residual is not None:
        dz = dz + daffine.residual.astype(form.wide)
    dz = unshared(dz.astype(form.out))  # in the gradient's dtype, or the CPU's compiler would store it in a wider one
    if form.relu:
        x, c = unshared((x, c))
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
    # One factor after the other: r^3 by itself underflows in float32 where the deviation is 1e13.
    da = (dvar + daffine.epsilon) * r * r * (-0.5 * a)
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
    dr = (dvar + daffine.epsilon) * r * r * (-0.5 * r)  # in this order, as above
    dz = ((dx.astype(form.wide) - dmean) * r + (centre(form, x, c, mask) - delta) * dr) * affine.scale
    x, c, delta, var = unshared((x, c, delta, var))
    dz = dz + (centre(form, x, c, mask) - delta) * lax.rsqrt(var + affine.epsilon) * daffine.scale
    return dz if affine.bias is None else dz + daffine.bias


def line(d: Array, affine: Affine, delta: Array, var: Array) -> Array:
    """(d - delta) * rsqrt(var + epsilon) * scale + bias + residual, with one product an element.

    Written as `d * a + (bias - delta * a)`, constant features far from the pivot would lose the bias: a is then
    `1 / sqrt(epsilon)`, and the two large terms do not cancel.
    """
    affine = _widened(affine, var)
    a = _times(lax.rsqrt(var + affine.epsilon), affine.scale)
    z = (d - delta) * a if affine.bias is None else (d - delta) * a + affine.bias
    return z if affine.residual is None else z + affine.residual.astype(z.dtype)


def output(form: Form, z: Array) -> Array:
    return (jnp.maximum(z, 0) if form.relu else z).astype(form.out)


def finished(form: Form, affine: Affine, y: Array) -> Array:
    """The output. With a residual and relu it is a block's, and rounded to its dtype on every platform."""
    if affine.residual is None or not form.relu or form.out == form.wide:
        return y
    return materialized(y)


def centre(form: Form, x: Array, c: Array, mask: Array | None) -> Array:
    """x - c; zero where masked out and not finite, so that it reaches no other gradient."""
    return masks.finite(mask, x.astype(form.wide) - c)


def _widened(affine: Affine, var: Array) -> Affine:
    """Scale and bias at least as wide as the statistics."""
    scale, bias = (None if t is None else checks.widened(t, var) for t in (affine.scale, affine.bias))
    return affine._replace(scale=scale, bias=bias)


def _times(a: Array, scale: Array | None) -> Array:
    return a if scale is None else a * scale
