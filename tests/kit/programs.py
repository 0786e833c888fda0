"""What a compiled program says over the wire: its collectives, with their sizes and their groups of devices."""

import math
import re
from typing import NamedTuple

import jax
import numpy as np

OPERATIONS = "all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter|collective-broadcast"


class Collective(NamedTuple):
    operation: str
    size: int  # numbers in the result
    groups: tuple[tuple[int, ...], ...]  # of devices


def compiled(f, *args):
    """A function under `jit` as a program for these arguments: to be counted, and called."""
    return f.lower(*args).compile()


def collectives(program) -> list[Collective]:
    devices = max(len(s.device_set) for s in jax.tree.leaves(program.input_shardings))
    found = re.finditer(rf"= (.*?) ({OPERATIONS})(?:-start)?\(.*?replica_groups=(.*)", program.as_text())
    return [Collective(m[2], _size(m[1]), _groups(m[3], devices)) for m in found]


def operations(program) -> list[str]:
    return [c.operation for c in collectives(program)]


def _size(shapes: str) -> int:
    return sum(math.prod(map(int, filter(None, s.split(",")))) for s in re.findall(r"\w+\[([\d,]*)\]", shapes))


def _groups(text: str, devices: int) -> tuple[tuple[int, ...], ...]:
    """In each of the ways in which XLA writes them."""
    if text.startswith("{}"):
        return (tuple(range(devices)),)
    if m := re.match(r"\{(\{.*?\})\}", text):
        return tuple(tuple(map(int, g.split(","))) for g in re.findall(r"\{([\d,]+)\}", m[1]))
    if m := re.match(r"\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", text):
        shape, dims, order = ([int(n) for n in (g or "").split(",") if n] for g in m.groups())
        return _rows(np.arange(math.prod(dims)).reshape(dims).transpose(order or None).reshape(shape))
    m = re.match(r"mesh\[([^\]]*)\] \{([^}]*)\}", text)
    assert m, text[:200]
    named = {name: (pre, size) for name, pre, size in re.findall(r"'(\w+)'(?::\((\d+)\)(\d+))?", m[2])}
    shape, within = [], []
    for name, length in re.findall(r"'(\w+)'=(\d+)", m[1]):  # an axis, or as much of one as (pre)size says
        pre, size = named.get(name, (length, 1))
        pre, size = (int(pre), int(size)) if pre else (1, int(length))
        within += [len(shape) + 1]
        shape += [pre, size, int(length) // (pre * size)]
    ids = np.moveaxis(np.arange(devices).reshape(shape), within, range(-len(within), 0))
    return _rows(ids.reshape(-1, math.prod(shape[a] for a in within)))


def _rows(ids: np.ndarray) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(map(int, row)) for row in ids)
