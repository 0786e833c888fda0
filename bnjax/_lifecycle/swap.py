"""What a norm that takes the place of another keeps of it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from bnjax._norms.registry import norm_named
from bnjax._norms.spec import Spec

VARIABLES = ("use_scale", "use_bias", "scale_init", "bias_init", "dtype", "param_dtype", "activation", "zero_masked")
STATE = ("momentum", "epsilon", "axis_name")  # what the running state was made with
WRAPS = "it wraps a layer, whose weights it normalizes"


def target_named(name: str) -> Spec | None:
    """The norm to become; `None` for "none", the identity.

    Raises:
      ValueError: no such norm, or one of weights.
    """
    if name == "none":
        return None
    target = norm_named(name)
    if target.wraps:
        raise ValueError(
            f"`name` must be that of a norm of activations, but {name!r} wraps a layer and normalizes its weights; "
            "wrap the layer where the model is built."
        )
    return target


def kind_named(kind: str | None) -> str | None:
    """The kind of norms to swap, by its name in `bnjax.NORMS`."""
    return None if kind is None else norm_named(kind).name


def carried(
    own: Mapping[str, Any], known: Collection[str], target: Spec | None, given: Mapping[str, Any]
) -> dict[str, Any]:
    """The attributes of the new norm: those given, else those that concern what it keeps of the old one.

    Args:
      own: the attributes of the old norm.
      known: those that the new one takes.
      target: the new norm.
      given: by the caller.
    """
    both_stateful = "momentum" in own and target is not None and target.takes_running_average
    names = VARIABLES + (STATE if both_stateful else ())
    kept = {name: own[name] for name in names if name in own and name in known}
    # A start of ours may be a number, or nothing, which is no initializer of Flax.
    kept = {name: value for name, value in kept.items() if callable(value) or not name.endswith("_init")}
    if kept.get("momentum", 0) is None and target is not None and target.module != "BatchNorm":
        del kept["momentum"]
    axis = own.get("axis", own.get("feature_axes", -1))
    for name in ("axis", "feature_axes", *(("reduction_axes",) if axis != -1 and "feature_axes" in known else ())):
        if name in known:
            kept[name] = axis
    if {"feature_axes", "reduction_axes"} <= {*own} & {*known}:
        kept["reduction_axes"] = own["reduction_axes"]
    if axis != -1 and not {"axis", "feature_axes"} & {*known, *given}:
        raise ValueError(
            f"`name` is {target.name if target else 'none'!r}, which takes channels on the last axis alone, but the "
            f"norm that it would replace has `axis={axis}`; leave it out by `match`."
        )
    return kept | dict(given)
