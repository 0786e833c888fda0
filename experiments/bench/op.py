"""One norm, timed: every contender against the fastest of the peers on JAX, and against the floor."""

import math
from collections.abc import Iterator, Sequence
from functools import partial
from statistics import median
from typing import Any

import jax

from experiments.bench import contenders, pytorch, work
from experiments.bench.options import Arguments, shape_of
from experiments.bench.work import Case, Tensors
from experiments.cli.errors import UserError
from experiments.measure.timing import Timed, interleave

Record = dict[str, Any]
COPY = "copy"


def cases(arguments: Arguments) -> list[Case]:
    """What is measured. The other norms take part as soon as bnjax has them."""
    shapes = work.LARGE if arguments.large else work.QUICK if arguments.quick else work.SHAPES
    if arguments.shapes:
        shapes = tuple(map(shape_of, arguments.shapes))
    bnjax = contenders.library("bnjax")
    works = [*work.BATCH, *(w for w in work.SAMPLE if hasattr(bnjax, f"{w.norm}_norm"))]
    if arguments.quick:
        works = works[:2]
    chosen = [w for w in works if w.name.startswith(arguments.works or "")]
    if not chosen:
        raise UserError(f"`--works` must begin one of {', '.join(w.name for w in works)}; {arguments.works} does not.")
    return [Case(w, s, d) for w in chosen for d in arguments.dtypes for s in shapes if work.suits(w, s)]


def absent(arguments: Arguments) -> Iterator[str]:
    """A sentence for every library that is not there."""
    for c in contenders.CONTENDERS:
        if arguments.chooses(c.name) and not c.installed:
            yield f"{c.name}: not installed; `pip install 'bnjax[bench]'` brings it."
    if any(arguments.chooses(t.name) for t in pytorch.EAGER) and not contenders.importable("torch"):
        yield "PyTorch: not installed; `pip install torch` brings it."


def entrants(case: Case, arguments: Arguments, operands: Tensors) -> tuple[dict[str, Timed], list[str]]:
    """What is to be timed, by name, and the names of the peers on JAX."""
    first = operands.channels_first()
    timed, peers = {}, []
    for c in contenders.CONTENDERS:
        if not arguments.chooses(c.name) or not c.installed or (layer := c.build(case)) is None:
            continue
        run = jax.jit(contenders.program(layer, case.work.training))
        mine = first if layer.channels_first else operands
        timed[c.name] = Timed(partial(run, layer.variables, layer.state, *mine))
        if not c.ours:
            peers.append(c.name)
    if contenders.importable("torch"):
        torch = contenders.library("torch")
        for t in pytorch.contenders(torch):
            if arguments.chooses(t.name) and (call := pytorch.build(t, case, operands)) is not None:
                timed[t.name] = Timed(call, lambda _: pytorch.wait(torch))
    return timed, peers


def measure(case: Case, arguments: Arguments) -> Record:
    """The seconds of all contenders at one case, and their ratios."""
    operands = work.random_tensors(case)
    timed, peers = entrants(case, arguments, operands)
    timed[COPY] = Timed(partial(jax.jit(work.copied), operands.x))
    seconds = interleave(timed, arguments.rounds)
    copy = min(seconds.pop(COPY))
    floor = case.work.passes / 2 * copy
    best = min((min(seconds[name]) for name in peers), default=None)
    return {
        "work": case.work.name,
        "shape": case.shape,
        "dtype": case.dtype,
        "megabytes": case.bytes / 1e6,
        "copy_seconds": copy,
        "copy_gigabytes_per_second": 2 * case.bytes / copy / 1e9,
        "floor_passes": case.work.passes,
        "floor_seconds": floor,
        "contenders": {
            name: {
                "min_seconds": min(values),
                "median_seconds": median(values),
                "over_floor": min(values) / floor,
                "against_best_jax_peer": None if best is None else best / min(values),
            }
            for name, values in seconds.items()
        },
    }


def geomean(values: Sequence[float]) -> float:
    """The geometric mean.

    >>> geomean([1.0, 4.0])
    2.0
    """
    return math.exp(sum(map(math.log, values)) / len(values))
