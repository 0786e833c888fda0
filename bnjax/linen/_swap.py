"""Another norm in the place of a norm of somebody's model, on its variables."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from flax import errors
from flax import linen as nn

from bnjax._lifecycle.overrides import Plan, Swap
from bnjax._lifecycle.swap import carried, target_named
from bnjax._norms.group import fitting_groups
from bnjax.linen._make import make_norm
from bnjax.linen._twins import HeldParameters, NewState, fields, restored, statistics, with_mixin


def swapped_call(module: nn.Module, plan: Plan, args: Any, kwargs: Mapping[str, Any]) -> Any:
    """The call of the norm that `module` becomes."""
    swap, freeze = plan.swap, plan.freeze
    assert swap is not None
    rest = dict(kwargs)
    x = args[0] if args else rest.pop("x")
    cls, attributes = _constructor(swap, module, x)
    average = args[1] if len(args) > 1 else rest.pop("use_running_average", None)
    average = getattr(module, "use_running_average", None) if average is None else average
    target = target_named(swap.name)
    if freeze is not None and freeze.use and target is not None and target.takes_running_average:
        average = True
    if attributes.get("use_running_average") is not None:
        average = None
    if freeze is not None and freeze.parameters:
        cls = with_mixin(HeldParameters, cls)
    before = dict(statistics(module))
    y = _explained(with_mixin(NewState, cls)(**attributes, parent=module.scope), x, average, rest, swap, module)
    if freeze is not None and not freeze.update:
        restored(module, before)
    return y


def _constructor(swap: Swap, module: nn.Module, x: Any) -> tuple[Any, dict[str, Any]]:
    """The class of the new norm, and its attributes."""
    made: Any = make_norm(swap.name, **dict(swap.options))  # type: ignore[arg-type]
    known = {f.name for f in dataclasses.fields(made.func)} - {"parent", "name"}
    attributes = carried(fields(module, type(module)), known, target_named(swap.name), made.keywords)
    if "num_groups" in known and attributes.get("group_size") is None:
        default = getattr(made.func, "num_groups", 32)
        axis = attributes.get("axis", -1)
        attributes["num_groups"] = fitting_groups(attributes.get("num_groups", default) or default, jnp.shape(x)[axis])
    return made.func, attributes


def _explained(twin: Any, x: Any, average: bool | None, rest: dict[str, Any], swap: Swap, module: nn.Module) -> Any:
    """The call; an error of Flax about parameters as one that says what to do."""
    try:
        return twin(x, use_running_average=average, **rest)
    except (errors.ScopeParamNotFoundError, errors.ScopeParamShapeError) as error:
        raise ValueError(
            f"`swap` cannot make the norm at {'/'.join(module.path)!r} a {swap.name!r}, because a parameter of it is "
            f"missing or has another shape. {error}\nMake the variables inside of the context: `with swap(...): "
            "variables = model.init(...)`, and copy the others over."
        ) from error
