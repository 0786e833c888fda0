"""A source of weights: arrays, or a module that can be run."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax

from bnjax._lifecycle.convert.units import Unit


class Ran(NamedTuple):
    """What one layer of a source was called with, and what it gave.

    Attributes:
      name: of the layer.
      x: its input.
      y: its output.
      shown: the layer in words.
      settings: those that Flax has, too.
    """

    name: str
    x: Any
    y: Any
    shown: str
    settings: Mapping[str, Any]


class Run(NamedTuple):
    """A source on an example: the calls of its layers in order, and its output."""

    calls: Sequence[Ran]
    output: Any


@dataclasses.dataclass
class Origin:
    """Where weights come from.

    Attributes:
      dialect: "torch" or "keras".
      units: its layers, in the order of the calls if it was run, else in that of the definition.
      run: what happened when it was run on the example.
    """

    dialect: str
    units: list[Unit]
    run: Run | None = None


def in_order_of_calls(units: Sequence[Unit], calls: Sequence[Ran]) -> list[Unit]:
    """The units by their first calls; then those that were not called, in their order."""
    first: dict[str, int] = {}
    for n, call in enumerate(calls):
        first.setdefault(call.name, n)
    return sorted(units, key=lambda unit: first.get(unit.owner or unit.name, len(calls)))


def check_example(example: Any) -> None:
    """Raises where a source cannot be run, because the example has no numbers."""
    if any(isinstance(t, jax.ShapeDtypeStruct) for t in jax.tree.leaves(example)):
        raise ValueError(
            "`example` must be an array if `source` is a module, because both models run on it, but it is a shape."
        )
