"""A norm of somebody's model becomes another norm: the same object, on the Variables that both have."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, cast

import jax.numpy as jnp
from flax import nnx

from bnjax._lifecycle.overrides import Swap
from bnjax._lifecycle.swap import carried, target_named
from bnjax._norms.group import fitting_groups
from bnjax.nnx._layers import Norm
from bnjax.nnx._make import make_norm
from bnjax.nnx._twins import class_of, derived, owner_of, set_class, variables
from bnjax.nnx._unstable import OF_FLAX

OTHER_AXIS = "its variables are stacked along another axis than the first"


def unfit(module: nnx.Module, swap: Swap) -> str | None:
    """Why a norm cannot become another one; or nothing."""
    cls = class_of(module)
    if any("__call__" in vars(c) for c in cls.__mro__[: cls.__mro__.index(owner_of(cls))]):
        return f"its class `{cls.__name__}` has a call of its own, which would be lost"
    if _stack(module) is None:
        return OTHER_AXIS
    try:
        set_class(object.__new__(cls), Norm)
    except TypeError:
        return f"its class `{cls.__name__}` has further bases, so that Python does not exchange it"
    several = len(_features(module)) < _number_of_axes(module)
    if several and target_named(swap.name) is not None and issubclass(make_norm(cast(Any, swap.name)).func, Norm):
        return "its `num_features` is one number for several axes"
    return None


def replacement(module: nnx.Module, path: str, swap: Swap, rngs: nnx.Rngs | None) -> nnx.Module:
    """The norm that a norm becomes, with the Variables that it keeps.

    Raises:
      ValueError: a parameter that cannot be kept, and no `rngs`.
    """
    build = _constructor(module, swap, nnx.Rngs(0) if rngs is None else rngs)
    stack = _stack(module) or ()
    new, missing = build(), []
    for name, start in variables(new, nnx.Variable).items():
        old = vars(module).get(name)
        if isinstance(old, type(start)) and old.shape == (*stack, *start.shape):
            setattr(new, name, old)
        elif isinstance(start, nnx.BatchStat):
            setattr(new, name, start.copy(jnp.broadcast_to(start[...], (*stack, *start.shape))))
        elif rngs is None:
            missing.append(name)
        elif stack:
            each = jnp.stack([getattr(build(), name)[...] for _ in range(math.prod(stack))])
            setattr(new, name, start.copy(each.reshape(*stack, *start.shape)))
    if missing:
        names = ", ".join(f"`{name}`" for name in missing)
        raise ValueError(
            f"`swap` cannot make the norm at {path!r} a {swap.name!r}, because {names} of it is missing or has another "
            "shape; write `rngs=nnx.Rngs(0)` to have it made, or leave it out, by `use_bias=False` or the like."
        )
    return new


def become(module: nnx.Module, new: nnx.Module) -> None:
    """Gives an object the class and all attributes of another one."""
    names = _positional(type(module))
    same = names[: len(_positional(type(new)))] == _positional(type(new))[: len(names)]
    set_class(module, type(new) if same else called_as_before(type(new), names))
    vars(module).clear()
    vars(module).update(vars(new))


class _CalledAsBefore(nnx.Module):
    """Added to the class of a norm in the place of another, whose arguments had another order."""

    positional: ClassVar[tuple[str, ...]]

    def __call__(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        return super().__call__(x, **dict(zip(self.positional, args, strict=False)), **kwargs)  # type: ignore[misc]


@functools.cache
def called_as_before(cls: Any, positional: tuple[str, ...]) -> Any:
    """A class of norm that takes arguments by position as another did."""
    return derived(cls, (_CalledAsBefore, cls), {"positional": positional})


def _positional(cls: Any) -> tuple[str, ...]:
    """What the call takes by position, after the input."""
    names = getattr(cls, "positional", None)
    parameters = list(inspect.signature(cls.__call__).parameters.values())[2:]
    return names or tuple(p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD)


def _constructor(module: nnx.Module, swap: Swap, rngs: nnx.Rngs) -> Callable[[], nnx.Module]:
    """The constructor of the new norm, with all its arguments."""
    own = {n: v for n, v in vars(module).items() if not n.startswith(OF_FLAX) and not isinstance(v, nnx.Variable)}
    made: Any = make_norm(swap.name, **dict(swap.options))  # type: ignore[arg-type]
    target, features = target_named(swap.name), _features(module)
    known: dict[str, Any] = (
        {"axis": -1, "activation": None, "zero_masked": False} if target is None else _defaults(made.func)
    )
    attributes: dict[str, Any] = carried(own, known, target, made.keywords)
    if "use_running_average" in known and "use_running_average" in own:
        attributes.setdefault("use_running_average", own["use_running_average"])
    if "num_groups" in known and attributes.get("group_size") is None:
        most: int = attributes.get("num_groups") or known["num_groups"]
        attributes["num_groups"] = fitting_groups(most, features[-1])
    several: Any = features if target is not None and issubclass(made.func, Norm) else math.prod(features)
    return lambda: made.func(several, rngs=rngs, **attributes)


def _defaults(cls: Any) -> dict[str, Any]:
    """The arguments of a constructor, with their defaults."""
    return {name: p.default for name, p in inspect.signature(cls.__init__).parameters.items()}


def _features(module: Any) -> tuple[int, ...]:
    """The lengths of the feature axes that a norm was made for."""
    made_for = getattr(module, "num_features", None)
    if made_for is None:  # Flax's group norm does not keep it
        made_for = module.num_groups * module.group_size
    return tuple(made_for) if isinstance(made_for, tuple) else (made_for,)


def _number_of_axes(module: Any) -> int:
    axes = getattr(module, "axis", getattr(module, "feature_axes", -1))
    return len(axes) if isinstance(axes, tuple | list) else 1


def _stack(module: Any) -> tuple[int, ...] | None:
    """Along how many norms, and how long, the Variables are stacked; nothing if not all along the first axes."""
    stacks = set()
    for name, shape in _shapes(module).items():
        variable = vars(module).get(name)
        if isinstance(variable, nnx.Variable):
            leading = variable.shape[: len(variable.shape) - len(shape)]
            stacks.add(leading if (*leading, *shape) == variable.shape else None)
    return stacks.pop() if len(stacks) == 1 else () if not stacks else None


def _shapes(module: Any) -> Mapping[str, tuple[int, ...]]:
    """The shapes of the Variables of one norm."""
    features = _features(module)
    if not isinstance(module, Norm):
        return dict.fromkeys(("scale", "bias", "mean", "var"), (math.prod(features),))
    parts = {**module.spec.parameters, **module.spec.variables}
    options = {name: getattr(module, name) for name in module.spec.defaults}
    return {name: part.shape(features, options) for name, part in parts.items()}
