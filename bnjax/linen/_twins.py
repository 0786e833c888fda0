"""Modules that run in the place of a norm of somebody's model, on the variables of that norm."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

from flax import linen as nn
from jax import Array, lax

from bnjax._core.moments import Moments
from bnjax._core.prepare import Arguments
from bnjax._lifecycle.overrides import Flow, Plan
from bnjax._lifecycle.population import MEASURED, PREFIX, Law, add
from bnjax._modules.call import one_value
from bnjax._modules.override import Override, call_overridden, whole_batch
from bnjax.linen._batch import BatchNorm
from bnjax.linen._layers import SampleNorm, StatefulNorm
from bnjax.linen._sample import _SampleNorm


class Twin:
    """What all of these modules are, so that they are told from those of the model."""

    @nn.nowrap
    def sow(self, collection: str, name: str, *args: Any, **kwargs: Any) -> bool:
        """Stores a value; but not the output, which `capture_intermediates` gets from the norm of the model."""
        if (collection, name) == ("intermediates", "__call__"):
            return False
        return super().sow(collection, name, *args, **kwargs)  # type: ignore[misc]


class Overridden(Twin, BatchNorm):  # type: ignore[misc]
    """Our `BatchNorm`, as one entry or several would have it."""

    override: Override = Override()
    law: Law | None = None

    @nn.nowrap
    def _compute(
        self, x: Array, running: Moments, arguments: Arguments, train: bool
    ) -> tuple[Array, Moments | None, Moments | None]:
        measures = self.override.measures and not self.is_initializing()
        # A batch may be one example: it is one of many.
        one_of_many = measures and self.axis_name is None and one_value(x, arguments.features or ())
        local_only = self.is_initializing() or one_of_many
        y, new, batch = call_overridden(self.override, self, x, running, arguments, train=train, local_only=local_only)
        if measures and batch is not None and self.law is not None:
            so_far: dict[str, Any] = {name: self.get_variable("batch_stats", PREFIX + name) for name in MEASURED}
            for name, value in add(so_far, batch, self.law).items():
                self.put_variable("batch_stats", PREFIX + name, value)
        return y, new, batch


class HeldParameters(Twin):
    """Added to the class of a norm whose parameters get no gradient."""

    @nn.nowrap
    def param(self, *args: Any, **kwargs: Any) -> Any:
        """A parameter, without a gradient."""
        return lax.stop_gradient(super().param(*args, **kwargs))  # type: ignore[misc]


class NewState(Twin):
    """Added to the class of a norm that finds a part of its state missing: it starts from the beginning."""

    @nn.nowrap
    def variable(self, collection: str, name: str, *args: Any, **kwargs: Any) -> Any:
        """A variable; where it cannot be made, its first value."""
        module: Any = self
        if module.has_variable(collection, name) or module.is_mutable_collection(collection):
            return super().variable(collection, name, *args, **kwargs)  # type: ignore[misc]
        start, *rest = args
        return SimpleNamespace(value=start(*rest))


@functools.cache
def with_mixin(mixin: type, cls: Any) -> Any:
    """`cls` with the methods of `mixin`; one class for each pair, so that `jit` knows it again."""
    return type(cls.__name__, (mixin, cls), {"__module__": cls.__module__, "__doc__": cls.__doc__})


def raw(method: Callable[..., Any]) -> Callable[..., Any]:
    """The function that a class was written with, below what Flax puts around it."""
    return inspect.unwrap(getattr(method, "func", method))


FLAX = {
    nn.BatchNorm: "batch", nn.LayerNorm: "layer", nn.RMSNorm: "rms", nn.GroupNorm: "group",
    nn.InstanceNorm: "instance", nn.SpectralNorm: "spectral", nn.WeightNorm: "weight",
}  # fmt: skip
KINDS = {raw(cls.__call__): kind for cls, kind in FLAX.items()}
OURS = {raw(cls.__call__) for cls in (BatchNorm, _SampleNorm, SampleNorm, StatefulNorm)}


def kind_of(module: nn.Module, function: Callable[..., Any]) -> str | None:
    """The name of the norm whose call this function is; or nothing."""
    if function in OURS:
        return module.spec.name  # type: ignore[attr-defined]
    return KINDS.get(function)


def owner_of(module: nn.Module, function: Callable[..., Any]) -> type[nn.Module]:
    """The class of Flax or of this package that the call is of: what a subclass adds has run already."""
    return next(
        cls for cls in type(module).__mro__
        if cls.__module__.startswith(("flax.", "bnjax.")) and raw(cls.__call__) is function
    )  # fmt: skip


def fields(module: nn.Module, cls: type) -> dict[str, Any]:
    """The attributes of a module that `cls` has, too."""
    names = [f.name for f in dataclasses.fields(cls) if f.init and f.name not in ("parent", "name")]  # type: ignore[arg-type]
    return {name: getattr(module, name) for name in names if hasattr(module, name)}


def batch_norm_twin(module: nn.Module, plan: Plan, x: Any) -> Any:
    """Our batch norm on the variables of `module`."""
    # What a subclass of Flax's class calls `activation`, say, is its own affair.
    own = fields(module, BatchNorm if isinstance(module, BatchNorm) else nn.BatchNorm)
    own |= {"use_running_average": None} | dict(plan.options)
    freeze, flow = plan.freeze, plan.flow
    if freeze is not None:
        use = freeze.use and own.get("track_running_stats", True)
        override = Override(by="running" if use else None, steps=freeze.update)
        own["override"] = override
    elif flow is not None:
        own |= measuring(flow, own["axis_name"], x)
    held = freeze is not None and freeze.parameters
    cls: Any = with_mixin(HeldParameters, Overridden) if held else Overridden
    return cls(**own, parent=module.scope)


def measuring(flow: Flow, axis_name: Any, x: Any) -> dict[str, Any]:
    """The attributes of a batch norm that is measured."""
    override = Override(by=flow.by, steps=False, measures=flow.law is not None)
    return {"override": override, "law": flow.law, **whole_batch(axis_name, x)}


def held_twin(module: nn.Module, owner: type, parameters: bool, **changed: Any) -> nn.Module:
    """The norm itself, with some attributes changed; its parameters may be held."""
    cls = with_mixin(HeldParameters if parameters else Twin, owner)
    return cls(**(fields(module, owner) | changed), parent=module.scope)


def statistics(module: nn.Module) -> Mapping[str, Any]:
    """The variables of the running state of a module."""
    return dict(module.variables.get("batch_stats", {}))


def restored(module: nn.Module, before: Mapping[str, Any]) -> None:
    """Puts the running state of a module back, where it may be written."""
    if module.is_mutable_collection("batch_stats"):
        for name, value in before.items():
            module.put_variable("batch_stats", name, value)
