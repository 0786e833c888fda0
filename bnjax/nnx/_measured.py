"""Batch norms of somebody's model that are measured while they run."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any

from flax import nnx
from jax import Array

from bnjax._core.moments import Moments
from bnjax._core.prepare import Arguments
from bnjax._lifecycle.overrides import Flow
from bnjax._lifecycle.population import MEASURED, PREFIX, Measured, add
from bnjax._lifecycle.refusals import valid_too
from bnjax._masks import NamedMask
from bnjax._modules.call import one_value
from bnjax._modules.override import Override, call_overridden, whole_batch
from bnjax.nnx._twins import attributes, changed, set_class


@dataclasses.dataclass(eq=False)
class Pass:
    """A model is traced once, its norms measured.

    Two passes are never equal: as an attribute of modules this is part of the keys of jit's caches, and the mask is of
    one trace.

    Attributes:
      flow: what norms normalize by, and the law by which their batches are put together, if they are measured.
      valid: which examples count.
      features: how many numbers a mean has, by the path of the norms that were called.
    """

    flow: Flow
    valid: Any = None
    features: dict[str, int] = dataclasses.field(default_factory=dict)


def observe(module: Any, path: str, running_pass: Pass) -> None:
    """Has a batch norm normalize as the pass says."""
    cls: Any = type(module)
    set_class(module, changed(cls, observing))
    module.running_pass, module.path = running_pass, path


def observing(base: Any) -> Mapping[str, Any]:
    """The methods of a batch norm that is observed: whatever its class does, in the end it comes to this."""
    return {"_compute": _compute}


def _compute(
    self: Any, x: Array, running: Moments, arguments: Arguments, train: bool
) -> tuple[Array, Moments | None, Moments | None]:
    flow, features = self.running_pass.flow, arguments.features or ()
    self.running_pass.features[self.path] = math.prod(x.shape[a] for a in features)
    x, mask = valid_too(x, arguments.where.mask, self.running_pass.valid, self.path)
    arguments = arguments._replace(where=NamedMask(mask, "mask"))
    own = attributes(self, **whole_batch(self.axis_name, x))
    override = Override(by=flow.by, steps=False, measures=flow.law is not None)
    local_only = own.axis_name is None and one_value(x, features)  # one example is no error: there are more batches
    y, _, batch = call_overridden(override, own, x, running, arguments, train=train, local_only=local_only)
    if flow.law is not None and batch is not None:
        parts = measured_variables(self)
        for name, value in add({n: v[...] for n, v in parts.items()}, batch, flow.law).items():
            parts[name][...] = value
    return y, None, None


def add_variables(module: Any, so_far: Measured) -> None:
    """What was measured so far, beside the mean: what lifts that over a stack of norms lifts these, too."""
    for name in MEASURED:
        setattr(module, PREFIX + name, module.mean.copy(so_far[name]))


def measured_variables(module: Any) -> Mapping[str, nnx.Variable]:
    """What was measured, by name."""
    return {name: getattr(module, PREFIX + name) for name in MEASURED}


@contextlib.contextmanager
def one_trace(flow: Flow, valid: Any) -> Iterator[Pass]:
    """A pass, whose mask is forgotten at the end."""
    running_pass = Pass(flow, valid)
    try:
        yield running_pass
    except ValueError as error:
        if PREFIX not in str(error):
            raise
        raise ValueError(
            "`call` maps or scans over a module whose statistics are not mapped along, so that several measurements "
            "would have to be written to one place. Stack the statistics (`nnx.StateAxes`), or give the norm the "
            f"`axis_name` of the map. {error}"
        ) from error
    finally:
        running_pass.valid = None
