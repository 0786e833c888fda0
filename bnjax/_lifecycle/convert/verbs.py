"""The verbs, as linen and nnx share them."""

from __future__ import annotations

from typing import Any

import numpy as np

from bnjax._lifecycle.convert.ask import Ask
from bnjax._lifecycle.convert.exports import Rename as Names
from bnjax._lifecycle.convert.exports import exported
from bnjax._lifecycle.convert.imports import Parts, imported
from bnjax._lifecycle.convert.keras_model import keras_origin
from bnjax._lifecycle.convert.model import Model
from bnjax._lifecycle.convert.torch_module import torch_origin
from bnjax._lifecycle.report import Report


def from_torch(source: Any, model: Model, ask: Ask) -> tuple[dict[str, Any], Report]:
    """The leaves of a model with the weights of a source of PyTorch."""
    parts = Parts.of(model, ask.example, "torch")
    return imported(parts, torch_origin(source, ask.example, sequences_first=parts.sequences_first), ask)


def from_keras(source: Any, model: Model, ask: Ask) -> tuple[dict[str, Any], Report]:
    """The leaves of a model with the weights of a source of Keras."""
    parts = Parts.of(model, ask.example, "keras")
    return imported(parts, keras_origin(source, ask.example), ask)


def to_torch(model: Model, example: Any, rename: Names | None) -> dict[str, np.ndarray]:
    """The arrays of PyTorch for the leaves of a model."""
    return exported(Parts.of(model, example, "torch"), rename)
