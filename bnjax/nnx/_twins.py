"""Classes that a norm of somebody's model is given for a time, or for good, and what norms a model has.

An object that gets another class is the same object: what shares it, stacks it or holds its Variables goes on.
"""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, ClassVar

from flax import nnx
from jax import Array, lax

from bnjax._core.moments import Moments
from bnjax._core.prepare import Arguments
from bnjax._lifecycle.overrides import Freeze
from bnjax._modules.call import BatchNormAttributes
from bnjax._modules.override import Override, call_overridden
from bnjax._norms.spec import Spec
from bnjax.nnx._batch import BatchNorm
from bnjax.nnx._copies import with_values

FLAX = {
    nnx.BatchNorm: "batch", nnx.LayerNorm: "layer", nnx.RMSNorm: "rms", nnx.GroupNorm: "group",
    nnx.InstanceNorm: "instance", nnx.SpectralNorm: "spectral", nnx.WeightNorm: "weight",
}  # fmt: skip
# What our batch norm has and Flax's has not, as its constructor has it.
ADDED: dict[str, Any] = {
    name: p.default
    for name, p in inspect.signature(BatchNorm.__init__).parameters.items()
    if name not in inspect.signature(nnx.BatchNorm.__init__).parameters
}


def kind_of(cls: type) -> str | None:
    """The name of the norm that a class is; or nothing."""
    spec = getattr(cls, "spec", None)
    if isinstance(spec, Spec):
        return spec.name
    return next((kind for base, kind in FLAX.items() if issubclass(cls, base)), None)


def owner_of(cls: type) -> type:
    """The class of Flax or of this package that a norm's class is, or extends."""
    return next(c for c in cls.__mro__ if c.__module__.startswith(("flax.", "bnjax.")) and kind_of(c) is not None)


def cut_off(cls: type) -> bool:
    """Whether a norm's class has a call of its own that never comes to the call of the norm which it extends."""
    owner, own = owner_of(cls), list(cls.__mro__)
    extensions = own[: own.index(owner)]
    if not any("__call__" in vars(c) for c in extensions):
        return False
    functions = [inspect.unwrap(f) for c in extensions for name, f in vars(c).items() if callable(f)]
    codes = [f.__code__ for f in functions if isinstance(f, types.FunctionType)]
    opaque = any(not isinstance(f, types.FunctionType) for f in functions)
    return not opaque and not any(map(_names_call, codes))


def _names_call(code: types.CodeType) -> bool:
    inner = (c for c in code.co_consts if isinstance(c, types.CodeType))
    return "__call__" in code.co_names or any(map(_names_call, inner))


def set_class(module: nnx.Module, cls: type) -> None:
    """Gives an object another class. `nnx` would note the name among the attributes that it splits."""
    object.__setattr__(module, "__class__", cls)


@functools.cache
def upgraded(cls: Any) -> Any:
    """A class of batch norm with our call below all that it adds to Flax's; one for each, so that `jit` knows it."""
    if issubclass(cls, BatchNorm):
        return cls
    return BatchNorm if cls is nnx.BatchNorm else derived(cls, (cls, BatchNorm))


@functools.cache
def with_mixin(mixin: Any, cls: Any) -> Any:
    """A class of norm with the methods of `mixin` above; a batch norm is ours below."""
    added: dict[str, Any] = {} if kind_of(cls) != "batch" or issubclass(cls, BatchNorm) else ADDED
    below = upgraded(cls) if kind_of(cls) == "batch" else cls
    return derived(cls, (mixin, below), added | {"before": cls})


def derived(cls: type, bases: tuple[type, ...], names: dict[str, Any] = ADDED) -> type:
    about: dict[str, Any] = {"__module__": cls.__module__, "__qualname__": cls.__qualname__, "__doc__": cls.__doc__}
    return types.new_class(cls.__name__, bases, exec_body=lambda body: body.update(about | names))


class Frozen(nnx.Module):
    """Added to the class of a norm that is held. Whatever that class does, in the end it comes to the methods below.

    Attributes:
      before: the class of before.
      held: what is held.
    """

    before: ClassVar[type]
    held: Freeze

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The call of the norm, on parameters without a gradient if they are held."""
        if not self.held.parameters:
            return super().__call__(*args, **kwargs)  # type: ignore[misc]
        named = list(nnx.to_flat_state(nnx.state(self, nnx.Param)))
        with with_values(self, named, [lax.stop_gradient(p[...]) for _, p in named]) as module:
            return super(Frozen, module).__call__(*args, **kwargs)  # type: ignore[misc]

    def _compute(
        self, x: Array, running: Moments, arguments: Arguments, train: bool
    ) -> tuple[Array, Moments | None, Moments | None]:
        """What batch norm computes."""
        use = self.held.use and tracks(self)
        override = Override(by="running" if use else None, steps=self.held.update)
        local_only = self._local_only(x, arguments)  # type: ignore[attr-defined]
        return call_overridden(override, attributes(self), x, running, arguments, train=train, local_only=local_only)

    def _run(self, x: Any, *, train: bool, **rest: Any) -> Array:
        """What the relatives of batch norm compute."""
        stats = variables(self, nnx.BatchStat)
        train = train and not (stats and self.held.use)
        before = {name: v[...] for name, v in stats.items()}
        y = super()._run(x, train=train, **rest)  # type: ignore[misc]
        for name, value in before.items() if train and not self.held.update else ():
            stats[name][...] = value
        return y


def variables(module: nnx.Module, of: type[nnx.Variable]) -> dict[str, nnx.Variable]:
    """The Variables of that type that a module holds itself, by name."""
    return {name: value for name, value in vars(module).items() if isinstance(value, of)}


def frozen(module: nnx.Module) -> Freeze | None:
    """What is held of a norm, if anything is."""
    return module.held if isinstance(module, Frozen) else None


def freeze_class(module: nnx.Module, held: Freeze) -> None:
    """Holds a norm, which is not frozen."""
    set_class(module, with_mixin(Frozen, type(module)))
    module.held = held  # type: ignore[attr-defined]


def thaw_class(module: nnx.Module) -> Freeze | None:
    """Gives a norm the class that it had before it was frozen, and returns what was held."""
    if not isinstance(module, Frozen):
        return None
    held = module.held
    del module.held
    set_class(module, module.before)
    return held


def class_of(module: nnx.Module) -> type:
    """The class of a norm, as it was before it was frozen."""
    return module.before if isinstance(module, Frozen) else type(module)


def attributes(module: Any, **changed: Any) -> Any:
    """The attributes of a batch norm with a mixin, some of them changed, while the module itself stays as it is.

    What a class that is not ours calls `activation`, say, is its own affair.
    """
    own = {name: getattr(module, name) for name in BatchNormAttributes.__annotations__}
    return SimpleNamespace(**(own | ({} if issubclass(module.before, BatchNorm) else ADDED) | changed))


def tracks(module: Any) -> bool:
    """Whether a norm has a running state, and uses it."""
    return bool(variables(module, nnx.BatchStat)) and getattr(module, "track_running_stats", True)


def check_model(model: Any) -> None:
    """Raises unless `model` is a module."""
    if not isinstance(model, nnx.Module):
        raise ValueError(f"`model` must be an `nnx.Module`, but it is a {type(model).__name__}.")


def modules_with_paths(model: nnx.Module) -> Iterator[tuple[str, nnx.Module]]:
    """Every module once, with its path in the state; a shared one has the first of its paths."""
    for path, module in nnx.iter_modules(model):
        yield "/".join(map(str, path)), module
