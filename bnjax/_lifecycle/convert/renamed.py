"""Layers matched by names that the user gives."""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from bnjax._lifecycle.convert.layers import Layer
from bnjax._lifecycle.convert.origin import Origin
from bnjax._lifecycle.convert.units import Unit

Rename = Callable[[str], Any]


def renamed(origin: Origin, layers: Sequence[Layer], rename: Rename) -> list[tuple[Layer, Unit]]:
    """The layers, each with what `rename` sends into its variables.

    Raises:
      ValueError: a path that no variable has; two arrays for one variable.
    """
    places = {leaf.shown: (layer, role) for layer in layers for role, leaf in layer.leaves.items()}
    found: dict[int, tuple[Layer, Unit]] = {}
    for unit in origin.units:
        for own_role, name in unit.names.items():
            # Flax has no number of batches.
            path, change = (None, None) if own_role == "steps" else path_and_change(name, rename(name))
            if path is None:
                continue
            layer, role = _place(places, name, path)
            _, new = found.setdefault(id(layer), (layer, dataclasses.replace(unit, tensors={}, names={})))
            if role in new.tensors:
                raise ValueError(f"`rename` gives {path!r} for {new.names[role]!r} and for {name!r}; give one of them.")
            value = unit.tensors[own_role]
            new.add(role, name, value if change is None else np.asarray(change(value)))
    order = {id(layer): n for n, layer in enumerate(layers)}
    return sorted(found.values(), key=lambda pair: order[id(pair[0])])


def path_and_change(name: str, given: Any) -> tuple[Any, Callable[[Any], Any] | None]:
    """What `rename` gave for a name: a path or nothing, and a function of the array or nothing.

    Raises:
      ValueError: something else.
    """
    path, change, *more = given if isinstance(given, tuple) and len(given) > 1 else (given, None)
    if more or not (path is None or isinstance(path, str)) or not (change is None or callable(change)):
        raise ValueError(
            "`rename` must give a name, None to skip, or a pair of a name and a function of the array, but for "
            f"{name!r} it gives {given!r:.80}."
        )
    return path, change


def _place(places: dict[str, tuple[Layer, str]], name: str, path: Any) -> tuple[Layer, str]:
    if path in places:
        return places[path]
    stacked = [known for known in places if re.sub(r"\[\d+\]", "", known) == path]
    near = stacked or difflib.get_close_matches(str(path), places, n=3, cutoff=0.4)
    raise ValueError(
        f"`rename` must give the path of a variable of the model, but for {name!r} it gives {path!r}; "
        + (f"did you mean {' or '.join(map(repr, near[:3]))}?" if near else f"the model has {', '.join(places)}.")
    )
