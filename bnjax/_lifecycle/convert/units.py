"""The layers of a source, as far as the names of its arrays tell."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

# What a layer of PyTorch or Keras calls an array, and what it is to it.
ROLES = {
    "weight": "weight", "kernel": "weight", "gamma": "weight", "embeddings": "weight", "alpha": "weight",
    "depthwise_kernel": "depthwise", "pointwise_kernel": "pointwise",
    "bias": "bias", "beta": "bias", "running_mean": "mean", "running_var": "var",
    "moving_mean": "mean", "moving_variance": "var", "num_batches_tracked": "steps",
    "weight_v": "weight", "weight_g": "length",
    "parametrizations.weight.original1": "weight", "parametrizations.weight.original0": "length",
}  # fmt: skip
PREFIXES = ("module.", "_orig_mod.")  # of DataParallel, and of torch.compile
SEPARABLE = ("depthwise", "pointwise")
# Of an attention, PyTorch has the projections of queries, keys and values in one array: these are its parts.
PARTS_OF = re.compile(r"^(.*?)\.?in_proj\[(\d)/3\]$")


@dataclasses.dataclass
class Unit:
    """A layer of a source.

    Attributes:
      name: of the layer.
      tensors: its arrays by role: "weight", "bias", "mean", "var", "length" of weight norm, "steps"; "value" of what
        is none of these.
      names: of the arrays, by role.
      settings: of the layer, where they are known.
      owner: the name of the module that computes with it, if that has another name.
      offset: what it adds to its scale.
      sees: whether that module's input and output are this layer's, or its output alone, or neither.
    """

    name: str
    tensors: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    names: dict[str, str] = dataclasses.field(default_factory=dict)
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    owner: str = ""
    offset: float = 0.0
    sees: Literal["both", "output", "neither"] = "both"

    def add(self, role: str, name: str, value: np.ndarray) -> None:
        """One more array."""
        self.tensors[role], self.names[role] = value, name

    @property
    def is_weight(self) -> bool:
        """Whether there is anything in it that is learned or measured, and no integer."""
        return any(np.issubdtype(t.dtype, np.inexact) or t.dtype.kind == "V" for t in self.tensors.values())

    @property
    def shown(self) -> str:
        """Its name and shapes, in a list."""
        shapes = [f"{self.names[role].removeprefix(self.name + '.')} {t.shape}" for role, t in self.tensors.items()]
        return f"{self.name}: {', '.join(s for s in shapes if not s.endswith(' ()'))}"


def units_of(tensors: Mapping[str, np.ndarray], separator: str = ".") -> list[Unit]:
    """The layers by the names of arrays, in order.

    Raises:
      ValueError: spectral norm, whose weights are computed from more than one array.
    """
    found: dict[str, Unit] = {}
    spectral = [name for name in tensors if name.endswith(("weight_orig", "parametrizations.weight.original"))]
    if spectral:
        raise ValueError(
            f"`source` has spectral norm or another parametrization at {spectral[0]!r}, and its weight is computed "
            "from more arrays. Remove it first: `torch.nn.utils.parametrize.remove_parametrizations(layer, 'weight')`."
        )
    for name, value in tensors.items():
        owner, role = _owner(name, separator)
        if role == "value" or role in found.get(owner, Unit("")).tensors:
            owner, role = name, "value"
        for part, unit_name in _parts(owner, name, value, separator):
            found.setdefault(unit_name, Unit(unit_name)).add(role, *part)
    return [part for unit in found.values() for part in _separated(unit, separator)]


def _separated(unit: Unit, separator: str) -> list[Unit]:
    """The two convolutions of a separable one of Keras, the second of which has the bias."""
    first, second = (unit.tensors.get(role) for role in ("depthwise", "pointwise"))
    if first is None or second is None:
        return [unit]
    parts = [dataclasses.replace(unit, name=f"{unit.name}{separator}{n}", tensors={}, names={}) for n in SEPARABLE]
    # Each input has its outputs side by side, as in Flax, which has one axis for both.
    parts[0].add("weight", unit.names["depthwise"], first.reshape(*first.shape[:-2], 1, -1))
    parts[1].add("weight", unit.names["pointwise"], second)
    if "bias" in unit.tensors:
        parts[1].add("bias", unit.names["bias"], unit.tensors["bias"])
    return parts


def _owner(name: str, separator: str) -> tuple[str, str]:
    """The layer that an array belongs to, and what it is there."""
    for known, role in ROLES.items():
        if name == known or name.endswith(separator + known):
            return name[: -len(known)].removesuffix(separator), role
    for known in ("weight", "bias"):
        if name.endswith(f"in_proj_{known}"):
            return name[: -len(f"in_proj_{known}")].removesuffix(separator), known
    return name, "value"


def _parts(owner: str, name: str, value: np.ndarray, separator: str) -> list[tuple[tuple[str, np.ndarray], str]]:
    """The array with the layer that it goes to; of an attention's projection, three of each."""
    if "in_proj_" not in name.rpartition(separator)[2] or value.shape[0] % 3:
        return [((name, value), owner)]
    return [
        ((f"{name}[{n}/3]", third), f"{owner}{separator}in_proj[{n}/3]".removeprefix(separator))
        for n, third in enumerate(np.split(value, 3))
    ]


def tokens(name: str) -> tuple[str, ...]:
    """A name without what frameworks write differently: `layers.0.conv` and `layers_0/conv` are the same."""
    for prefix in PREFIXES:
        name = name.removeprefix(prefix)
    part = PARTS_OF.match(name)
    name = f"{part.group(1)}.{('query', 'key', 'value')[int(part.group(2))]}" if part else name
    return tuple(t for t in name.replace("/", ".").replace("_", ".").split(".") if t)
