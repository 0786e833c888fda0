"""One preparation: all checks of the arguments that norms have in common, and one record of the result.

A norm prepares its call once, before any work, and hands the record on. Functions after it take the record, not the
arguments one by one. What only one kind of norm takes (groups, a running state, limits) its own module checks.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike, DTypeLike

from bnjax import _checks as checks
from bnjax import _masks as masks
from bnjax._core.affine_map import BY_AUTODIFF, Activation, AffineOperands, MapConfig

CheckAxes = Callable[
    [tuple[int, ...], checks.Axes, int], None
]  # of the feature axes, `axis` as given, and the rank of `x`


class Arguments(NamedTuple):
    """The arguments that norms have in common, as the caller gave them."""

    scale: ArrayLike | None = None
    bias: ArrayLike | None = None
    axis: checks.Axes = -1
    epsilon: ArrayLike = 0.0
    where: Any = None  # a mask, or a `NamedMask`
    zero_masked: bool = False
    residual: ArrayLike | None = None
    activation: Activation = None
    dtype: DTypeLike | None = None
    features: tuple[int, ...] | None = None  # the axes of `axis`, where the caller has made them canonical


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A call of a norm, checked.

    Attributes:
      x: the input; zero where masked out, if the result is to be.
      features: the feature axes, sorted and not negative.
      mask: what is valid, at the rank of `x`.
      zero: the mask, if the result is to be zero where masked out.
      dtype: of the result.
      config: the static part of the affine map.
      affine: its operands, at the rank of `x`.
      activation: of the result; the map itself has relu.
    """

    x: Array
    features: tuple[int, ...]
    mask: Array | None
    zero: Array | None
    dtype: Any
    config: MapConfig
    affine: AffineOperands
    activation: Activation

    @functools.cached_property
    def others(self) -> tuple[int, ...]:
        """The axes that are no feature axes."""
        return checks.other_axes(self.features, self.x.ndim)


def prepare(
    x: ArrayLike,
    arguments: Arguments,
    check_axes: CheckAxes | None = None,
    *,
    real: bool = False,
    finite: bool = False,
    round_last: bool = False,
) -> Prepared:
    """Checks the arguments of a call.

    Args:
      x: the input.
      arguments: the arguments.
      check_axes: raises for feature axes that the norm does not take.
      real: whether `x` must be real.
      finite: whether `x` becomes zero where it is masked out and not finite.
      round_last: the map is in the dtype of the statistics: something follows it before the result is rounded.

    Raises:
      ValueError: an argument that does not fit, by its name.
    """
    x = checks.real_array(x) if real else checks.inexact_array(x)
    features = arguments.features
    if features is None:
        features = checks.canonical_axes(arguments.axis, x.ndim)
    if check_axes is not None:
        check_axes(features, arguments.axis, x.ndim)
    x, mask = masks.read(x, arguments.where)
    x, zero = masks.zeroed(x, mask, arguments.zero_masked)
    if finite:
        x = masks.finite(mask, x)
    dtype = checks.output_dtype(arguments.dtype, x)
    config = _map_config(x, arguments.activation, checks.stat_dtype(x) if round_last else dtype)
    affine = _affine_operands(config, x, features, arguments, zero)
    return Prepared(x, features, mask, zero, dtype, config, affine, arguments.activation)


def one_channel_axis(features: tuple[int, ...], axis: checks.Axes, ndim: int) -> None:
    """Raises unless there is one feature axis."""
    if len(features) != 1:
        raise ValueError(f"`axis` must be one axis, that of the channels, but it is {axis!r}.")


def parameter(value: ArrayLike | None, name: str, ops: Prepared) -> Array | None:
    """A further parameter at the rank of the input; zero where the mask `ops.zero` drops elements."""
    checks.no_imaginary_part_lost(ops.config.compute_dtype, value, name)
    return masks.valid_if_fits(ops.zero, checks.feature_array(value, name, ops.x.shape, ops.features))


def _map_config(x: Array, activation: Activation, out_dtype: Any) -> MapConfig:
    """The static part of a map of `x`."""
    if not callable(activation):
        checks.choice(activation, "activation", (None, "relu", *BY_AUTODIFF), " or a callable")
    compute_dtype = checks.stat_dtype(x, out_dtype)
    if isinstance(activation, str) and jnp.issubdtype(compute_dtype, jnp.complexfloating):
        of = "`x`" if jnp.iscomplexobj(x) else "`dtype`"
        raise ValueError(f"`activation` is {activation!r}, which has no meaning for a complex {of}; pass a callable.")
    return MapConfig(compute_dtype, out_dtype, activation == "relu")


def _affine_operands(
    config: MapConfig, x: Array, features: tuple[int, ...], arguments: Arguments, zero: Array | None
) -> AffineOperands:
    """The operands of a map of `x`, brought to its rank; zero where the mask `zero` drops elements."""
    scale, bias, residual = arguments.scale, arguments.bias, arguments.residual
    checks.non_negative(arguments.epsilon, "epsilon")
    for name, value in (("scale", scale), ("bias", bias), ("residual", residual)):
        checks.no_imaginary_part_lost(config.compute_dtype, value, name)
    if residual is not None and jnp.shape(residual) != x.shape:
        raise ValueError(
            f"`residual` must have the shape of the input, {x.shape}, but its shape is {jnp.shape(residual)}; "
            "broadcast or project it first."
        )
    return AffineOperands(
        masks.valid_if_fits(zero, checks.feature_array(scale, "scale", x.shape, features)),
        masks.valid_if_fits(zero, checks.feature_array(bias, "bias", x.shape, features)),
        masks.valid_if_fits(zero, None if residual is None else jnp.asarray(residual)),
        jnp.asarray(arguments.epsilon, checks.real_dtype(config.compute_dtype)).reshape((1,) * x.ndim),
    )
