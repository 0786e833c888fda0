"""Weights of PyTorch and Keras for linen models, and back."""

from __future__ import annotations

from typing import Any

import numpy as np
from flax import linen as nn

from bnjax._lifecycle.convert.exports import exported
from bnjax._lifecycle.convert.exports import Rename as Names
from bnjax._lifecycle.convert.imports import Ask, Parts, imported
from bnjax._lifecycle.convert.renamed import Rename
from bnjax._lifecycle.convert.torch_module import torch_origin
from bnjax._lifecycle.report import Report
from bnjax.linen._convert_model import LinenModel
from bnjax.linen._recalibrate import Call, default_call


def from_torch(
    source: Any,
    model: nn.Module,
    variables: Any,
    example: Any,
    *,
    call: Call = default_call,
    rename: Rename | None = None,
    keep: str | None = None,
    expect: tuple[Any, Any] | None = None,
) -> tuple[Any, Report]:
    """Weights of PyTorch."""
    ask = Ask("from_torch", example, rename, keep, expect)
    linen = LinenModel(model, variables, call)
    parts = Parts.of(linen, example)
    origin = torch_origin(source, example, sequences_first=parts.sequences_first)
    new, report = imported(parts, origin, ask)
    return linen.tree(new), report


def to_torch(
    model: nn.Module, variables: Any, example: Any, *, call: Call = default_call, rename: Names | None = None
) -> dict[str, np.ndarray]:
    return exported(Parts.of(LinenModel(model, variables, call), example), rename)
