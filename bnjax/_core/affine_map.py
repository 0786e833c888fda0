"""The affine map that normalizes, and its tangent: what `normalize` and the rule of all norms share.

A map is `(d - delta) * rsqrt(var + epsilon) * scale + bias + residual`, then perhaps relu. Here d = x - c is about the
pivot c, and the mean is c + delta.

Its tangent is written so that the backward pass keeps `x` in its own dtype and small vectors.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from bnjax import _checks as checks
from bnjax import _masks as masks
from bnjax._lowering.barriers import materialized, unshared
from bnjax._lowering.linear import linear
from bnjax._lowering.sums import ways_to_sum

Activation = Literal["relu", "gelu", "silu"] | Callable[[Array], Array] | None
BY_AUTODIFF = {"gelu": jax.nn.gelu, "silu": jax.nn.silu}  # the rule itself has relu


class MapConfig(NamedTuple):
    """The static part of a map."""

    compute_dtype: Any  # of the arithmetic: float32 or wider; complex for complex input
    out_dtype: Any  # of the result
    relu: bool


class AffineOperands(NamedTuple):
    """The operands of a map beside the input and its moments, at the rank of the input."""

    scale: Array | None
    bias: Array | None
    residual: Array | None
    epsilon: Array


def activate(y: Array, activation: Activation, zero: Array | None = None) -> Array:
    """The activation, if the rule has not applied it; then zeros where the mask `zero` drops elements."""
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
def apply_map(
    config: MapConfig, x: Array, affine: AffineOperands, c: Array, delta: Array, var: Array, mask: Array | None
) -> Array:
    """The output, from moments about `c`: the mean is `c + delta`."""
    z = affine_map(x.astype(config.compute_dtype) - c, affine, delta, var)
    return block_output(config, affine, finish(config, z))


@apply_map.defjvp
def _apply_map_jvp(config: MapConfig, primals: Any, tangents: Any) -> Any:
    dx, daffine, dc, ddelta, dvar, _ = tangents
    return apply_map(config, *primals), tangent(config, primals[:-1], (dx, daffine, dc + ddelta, dvar), primals[-1])


def tangent(config: MapConfig, primals: Any, tangents: Any, mask: Array | None) -> Array:
    """The tangent of `finish(affine_map(...))` at `(x, affine, c, delta, var)`."""
    f = partial(_tangent, config)
    x, affine, *moments = primals
    if not config.relu:
        affine = affine._replace(residual=None)  # what is not needed would be kept, too
    small = moments[-1].shape  # of the factor and the shift
    ways = ways_to_sum(small, x.shape) if _is_per_feature(affine, moments[-1]) else {}
    per_platform = {platform: partial(f, spread=spread) for platform, spread in ways.items()}
    return linear(f, ((x, affine, *moments), mask), tangents, **per_platform)


def _is_per_feature(affine: AffineOperands, var: Array) -> bool:
    """Whether a scale does not vary over what is measured, so that the map has one factor for each variance."""
    return affine.scale is None or all(s <= v for s, v in zip(affine.scale.shape, var.shape, strict=True))


def _tangent(config: MapConfig, residuals: Any, tangents: Any, *, spread: Callable[..., Any] | None = None) -> Array:
    primals, mask = residuals
    x, affine, c, delta, var = primals
    affine, daffine = _widened(affine, var), _widened(tangents[1], var)
    primals, tangents = (x, affine, c, delta, var), (tangents[0], daffine, *tangents[2:])
    if _is_per_feature(affine, var):
        dz = _tangent_per_feature(config, primals, tangents, mask, spread)
    else:
        dz = _tangent_per_element(config, primals, tangents, mask)
    # Where `x` is masked out and not finite the transpose drops the cotangent, which may not be finite either.
    dz = masks.finite(mask, dz, source=x)
    if daffine.residual is not None:
        dz = dz + daffine.residual.astype(config.compute_dtype)
    # In the dtype of the gradient: the CPU's compiler would store it in a wider one.
    dz = unshared(dz.astype(config.out_dtype))
    if config.relu:
        x, c = unshared((x, c))
        dz = jnp.where(affine_map(centered(config, x, c, mask), affine, delta, var) > 0, dz, 0)
    return dz


def _tangent_per_feature(
    config: MapConfig, primals: Any, tangents: Any, mask: Array | None, spread: Callable[..., Any] | None
) -> Array:
    """The tangent where the map is `a * d + shift`, with one `a` and one `shift` for each measured feature.

    Their tangents are small arrays that are broadcast to the size of `x`. The transpose of the broadcast is the sum of
    the gradients; `spread` broadcasts so that a compiler sums them well.
    """
    x, affine, c, delta, var = primals
    dx, daffine, dmean, dvar = tangents
    r = lax.rsqrt(var + affine.epsilon)
    a = _with_scale(r, affine.scale)
    # One factor after the other: r^3 by itself underflows in float32 where the deviation is 1e13.
    da = (dvar + daffine.epsilon) * r * r * (-0.5 * a)
    if affine.scale is not None:
        da = da + r * daffine.scale
    shift = -delta * da - a * dmean
    if affine.bias is not None:
        shift = shift + daffine.bias
    if spread is not None and shift.shape == da.shape and not jnp.iscomplexobj(shift):
        shift, da = spread(shift, da, x.shape)
    return dx.astype(config.compute_dtype) * a + centered(config, x, c, mask) * da + shift


def _tangent_per_element(config: MapConfig, primals: Any, tangents: Any, mask: Array | None) -> Array:
    """The tangent where the scale varies over what is measured, as in layer norm: there `a` would be of full size."""
    x, affine, c, delta, var = primals
    dx, daffine, dmean, dvar = tangents
    r = lax.rsqrt(var + affine.epsilon)
    dr = (dvar + daffine.epsilon) * r * r * (-0.5 * r)  # in this order, or r^3 could underflow
    dz = ((dx.astype(config.compute_dtype) - dmean) * r + (centered(config, x, c, mask) - delta) * dr) * affine.scale
    x, c, delta, var = unshared((x, c, delta, var))
    dz = dz + (centered(config, x, c, mask) - delta) * lax.rsqrt(var + affine.epsilon) * daffine.scale
    return dz if affine.bias is None else dz + daffine.bias


def affine_map(d: Array, affine: AffineOperands, delta: Array, var: Array) -> Array:
    """(d - delta) * rsqrt(var + epsilon) * scale + bias + residual, with one product an element.

    Written as `d * a + (bias - delta * a)`, constant features far from the pivot would lose the bias: a is then
    `1 / sqrt(epsilon)`, and the two large terms do not cancel.
    """
    affine = _widened(affine, var)
    a = _with_scale(lax.rsqrt(var + affine.epsilon), affine.scale)
    z = (d - delta) * a if affine.bias is None else (d - delta) * a + affine.bias
    return z if affine.residual is None else z + affine.residual.astype(z.dtype)


def finish(config: MapConfig, z: Array) -> Array:
    """The result of a map: after relu, in its dtype."""
    return (jnp.maximum(z, 0) if config.relu else z).astype(config.out_dtype)


def block_output(config: MapConfig, affine: AffineOperands, y: Array) -> Array:
    """`y`. With a residual and relu it is the output of a block, and rounded to its dtype on every platform."""
    if affine.residual is None or not config.relu or config.out_dtype == config.compute_dtype:
        return y
    return materialized(y)


def centered(config: MapConfig, x: Array, c: Array, mask: Array | None) -> Array:
    """`x - c`; zero where masked out and not finite, so that no gradient becomes NaN."""
    return masks.finite(mask, x.astype(config.compute_dtype) - c)


def _widened(affine: AffineOperands, var: Array) -> AffineOperands:
    """Scale and bias at least as wide as the statistics."""
    scale, bias = (None if t is None else checks.widened(t, var) for t in (affine.scale, affine.bias))
    return affine._replace(scale=scale, bias=bias)


def _with_scale(a: Array, scale: Array | None) -> Array:
    return a if scale is None else a * scale
