"""How exact batch normalization is at large means: the table of docs/results/numerics.md.

    python -m experiments.numerics [--write | --check]

Prints it; `--write` puts it into the page, between its markers; `--check` compares what stands there with what this
machine computes: the same rows and columns, and no number further off than rounding may be on another machine.
"""

import dataclasses
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

import bnjax.linen as bnn
from experiments.cli.errors import UserError
from experiments.cli.flags import parse_flags
from experiments.cli.program import run_main
from experiments.results.markers import Markers, write_between
from experiments.results.tables import markdown

PAGE = Path(__file__).resolve().parents[1] / "docs" / "results" / "numerics.md"
MARKERS = Markers("<!-- numerics -->\n", "<!-- /numerics -->\n")
MEANS = (0.0, 1e1, 1e2, 1e3, 1e4, 1e5)
BATCHES, EXAMPLES, FEATURES, STEPS = 8, 1024, 16, 1000
SMALL = 1e-2

HEADER = (
    "mean / std", "Flax", "Flax, two passes", "step 1", "step 1000", '`pivot="sample"`', "`pivot=None`",
    f"steps to {SMALL:g} (momentum 0.99)", "(momentum 0.9)",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Arguments:
    """How exact batch normalization is at large means."""

    write: bool = False
    """Put the table into docs/results/numerics.md."""
    check: bool = False
    """Compare the table in docs/results/numerics.md."""


def data(mean: float) -> tuple[Array, Array]:
    """Batches of float32 numbers of deviation 1, and what float64 makes of them."""
    x = np.float32(mean + np.random.default_rng(0).normal(size=(BATCHES, EXAMPLES, FEATURES)))
    wide = x.astype(np.float64)
    y = (wide - wide.mean(1, keepdims=True)) / np.sqrt(wide.var(1, keepdims=True) + 1e-5)
    return jnp.asarray(x), jnp.asarray(y, jnp.float32)


@partial(jax.jit, static_argnums=(0, 1))
def errors(layer: nn.BatchNorm, steps: int, x: Array, wanted: Array) -> Array:
    """The largest error of the output, step by step of training, the batches in turn."""

    def step(state: dict[str, Array], i: Array) -> tuple[dict[str, Array], Array]:
        y, new = layer.apply({"batch_stats": state}, x[i], mutable="batch_stats")
        return new["batch_stats"], jnp.abs(y - wanted[i]).max()

    start = {"mean": jnp.zeros(FEATURES), "var": jnp.ones(FEATURES)}
    return jax.lax.scan(step, start, jnp.arange(steps) % BATCHES)[1]


def row(mean: float) -> list[str]:
    x, wanted = data(mean)
    plain: dict[str, Any] = {"use_running_average": False, "use_scale": False, "use_bias": False}

    def first(layer: nn.BatchNorm) -> float:
        return float(errors(layer, 1, x, wanted)[0])

    slow, fast = (errors(bnn.BatchNorm(momentum=m, **plain), STEPS, x, wanted) for m in (0.99, 0.9))
    shown = (
        first(nn.BatchNorm(**plain)),
        first(nn.BatchNorm(use_fast_variance=False, **plain)),
        float(slow[0]),
        float(slow[-1]),
        first(bnn.BatchNorm(pivot="sample", **plain)),
        first(bnn.BatchNorm(pivot=None, **plain)),
    )
    return [f"{mean:g}", *(f"{error:.0e}" for error in shown), *(str(steps_to_small(e)) for e in (slow, fast))]


def steps_to_small(error: Array) -> int:
    """After how many steps the error stays small."""
    large = np.flatnonzero(np.asarray(error) > SMALL)
    return int(large[-1]) + 1 if large.size else 0


def table() -> str:
    return markdown(HEADER, [row(mean) for mean in MEANS]) + "\n"


def split(page: str) -> tuple[str, str, str]:
    """What stands before, between and after the markers."""
    return MARKERS.split(page)


def differences(written: str, computed: str) -> list[str]:
    """Where the two tables differ: in their words, or in a number by more than a factor of ten (or 1e-6)."""
    old, new = ([line.split("|") for line in text.splitlines()] for text in (written, computed))
    if [len(cells) for cells in old] != [len(cells) for cells in new]:
        return ["its shape"]
    found = []
    for old_row, new_row in zip(old, new, strict=True):
        for name, a, b in zip(new[0], old_row, new_row, strict=True):
            if not near(a.strip(), b.strip()):
                found.append(f"{name.strip()} at {new_row[1].strip()}: {a.strip()}, here {b.strip()}")
    return found


def near(a: str, b: str) -> bool:
    try:
        x, y = float(a), float(b)
    except ValueError:
        return a == b
    low, high = sorted((x, y))
    return high - low <= 1e-6 or high <= 10 * low


def main(argv: Sequence[str]) -> None:
    arguments = parse_flags(Arguments, argv, "python -m experiments.numerics", __doc__)
    if arguments.write and arguments.check:
        raise UserError("`--write` and `--check` exclude each other: what was just written needs no comparison.")
    computed = table()
    print(computed, end="")
    if arguments.write:
        write_between(PAGE, {MARKERS: computed})
    if arguments.check and (found := differences(split(PAGE.read_text())[1], computed)):
        sys.exit(f"{PAGE.name} says something else: " + "; ".join(found))


if __name__ == "__main__":
    run_main(main)
