"""A call of BatchNorm that does other than its attributes and arguments say."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

from jax import Array

from bnjax._collectives.psum import AxisName, bound
from bnjax._core.moments import Moments
from bnjax._core.prepare import Arguments
from bnjax._modules.call import BatchNormAttributes, call_batch_norm
from bnjax._unstable import varying


class Override(NamedTuple):
    """What is other.

    Attributes:
      by: what normalizes; as the caller says by default.
      steps: whether the running state steps in training.
      measures: whether the batch is measured in any case.
    """

    by: Literal["batch", "running"] | None = None
    steps: bool = True
    measures: bool = False


def call_overridden(
    override: Override,
    module: BatchNormAttributes,
    x: Array,
    running: Moments,
    arguments: Arguments,
    *,
    train: bool,
    local_only: bool,
) -> tuple[Array, Moments | None, Moments | None]:
    """One call: the output, the new running state where it steps, and the moments where the batch is measured."""
    by_batch = train if override.by is None else override.by == "batch"
    steps = train and override.steps
    y, new, batch = None, None, None
    if by_batch or steps or override.measures:
        y, new, batch = call_batch_norm(module, x, running, arguments, train=True, local_only=local_only)
    if not by_batch:
        y, _, _ = call_batch_norm(module, x, running, arguments, train=False, local_only=local_only)
    assert y is not None
    return y, new if steps else None, batch


def whole_batch(axis_name: AxisName | None, x: Array) -> dict[str, Any]:
    """The attributes with which a batch norm measures all of a batch.

    An axis that the model names need not exist; axes along which `x` varies are measured over, named or not.
    """
    names = bound(axis_name) or ()
    spread = tuple(sorted(varying(x) - set(names), key=str))
    return {
        "axis_name": (*names, *spread) or None,
        "axis_index_groups": None,
        "virtual_batch_size": None,
        "use_fast_variance": True,
        "pivot": "sample",
    }
