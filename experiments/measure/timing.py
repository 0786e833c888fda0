"""Timing side by side: all in turn, round after round, so that what disturbs the machine disturbs everybody."""

import math
import random
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax

ENOUGH = 0.02  # seconds of work between two looks at the clock on an accelerator, which works on while we call


class Timed(NamedTuple):
    """What is timed: a call, and the wait until what it returned is there."""

    call: Callable[[], Any]
    wait: Callable[[Any], object] = jax.block_until_ready


def interleave(timed: Mapping[str, Timed], rounds: int) -> dict[str, list[float]]:
    """The seconds that every call took, in every round.

    Each is called twice before, to compile and to warm up. The order is another one in every round, so that nobody
    always comes after the same one.
    """
    calls = {name: _calls(t) for name, t in timed.items()}
    seconds: dict[str, list[float]] = {name: [] for name in timed}
    order, shuffled = list(timed), random.Random(0)
    for _ in range(rounds):
        shuffled.shuffle(order)
        for name in order:
            seconds[name].append(_seconds(timed[name], calls[name]))
    return seconds


def _calls(timed: Timed) -> int:
    """How many calls to time as one: on the CPU each by itself."""
    timed.wait(timed.call())
    once = _seconds(timed, 1)
    return 1 if jax.default_backend() == "cpu" else min(math.ceil(ENOUGH / once), 100)


def _seconds(timed: Timed, calls: int) -> float:
    began = time.perf_counter()
    for _ in range(calls):
        made = timed.call()
    timed.wait(made)
    return (time.perf_counter() - began) / calls
