"""How PyTorch names the arrays of its layers."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

import numpy as np

from bnjax._lifecycle.convert.layers import Layer
from bnjax._lifecycle.convert.units import PARTS_OF

NAMES = {"weight": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var", "length": "weight_g"}


def name_of(layer: Layer, role: str, roles: Collection[str]) -> str:
    """The name of an array within its layer, which has arrays of these roles."""
    return "" if role == "value" else "weight_v" if role == "weight" and "length" in roles else NAMES[role]


def full_name(unit: str, name: str) -> str:
    """The name of an array of a layer."""
    part = PARTS_OF.match(unit)
    if part and name:
        owner, n = part.groups()
        return f"{owner}.in_proj_{name}[{n}/3]".removeprefix(".")
    return f"{unit}.{name}" if unit and name else unit or name


def joined(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The arrays, with thirds put together."""
    whole: dict[str, np.ndarray] = {}
    for name, value in arrays.items():
        part = re.fullmatch(r"(.*)\[(\d)/3\]", name)
        if part is None:
            whole[name] = value
        elif part.group(2) == "0":
            thirds = [arrays[f"{part.group(1)}[{n}/3]"] for n in range(3)]
            whole[part.group(1)] = np.ascontiguousarray(np.concatenate(thirds))
    return whole
