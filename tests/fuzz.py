"""Every functional norm on random inputs, against its formula in float64: `python -m tests.fuzz --cases 10000`.

A program is a norm with a shape, the shape of its mask, the axis of its features, a dtype and a pivot. Each is compiled
once and run on five draws of data. A disagreement prints one line that names its program and its draw, and the exit
code is 1. Ctrl-C ends the trial and says what was done.

The tolerance is relative to the largest entry of the output (or 1). It is the sum of the rounding of the output to its
dtype, and of 64 roundings of float32. Statistics that are measured about a running mean, 0 here, are good to a rounding
times 1 + mean^2 / variance, the rule of `moments(pivot=...)`: there the second part is so much larger, by the worst
feature of the draw. Whitening divides by roots of eigenvalues, the smallest of which is epsilon plus rounding where few
examples are measured: there it is 1e3 times as much. Compared are valid places, in sets that are not empty.
"""

import argparse
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bnjax import NORMS, Moments, Whitening
from tests.kit.comparison import wide
from tests.kit.formulas import ROWS, batch, mean_var
from tests.kit.norms import CHANNELS_TOGETHER, MASKED, formula, inputs, sample

DRAWS = 5
DTYPES = (jnp.float32, jnp.bfloat16, jnp.float16)


class Program(NamedTuple):
    name: str
    shape: tuple[int, ...]  # channels last
    mask: tuple[int, ...] | None  # its shape, of that rank
    axis: int  # where the channels are in what the norm gets
    dtype: Any
    pivot: str | None
    mean: float

    def __str__(self) -> str:
        words = (self.name, self.shape, f"mask {self.mask}", f"axis {self.axis}", jnp.dtype(self.dtype).name)
        return " ".join(map(str, (*words, f"pivot {self.pivot}", f"mean {self.mean:g}")))


def draw(rng: np.random.Generator) -> Program:
    name = str(rng.choice(list(ROWS)))
    space = tuple(int(n) for n in rng.integers(1, 5, rng.integers(0, 3)))
    shape = (int(rng.choice([2, 4, 6, 8])), *space, int(rng.choice([6, 12])))
    mask = None
    if name in MASKED and rng.random() < 0.7:
        mask = tuple(s if rng.random() < 0.5 else 1 for s in shape)
        mask = (*mask[:-1], 1) if name in CHANNELS_TOGETHER else mask
    axis = int(rng.integers(1, len(shape)))
    pivot = [None, "sample", "running"][rng.integers(3)] if name in ("batch", "ghost") else "running"
    return Program(name, shape, mask, axis, DTYPES[rng.integers(3)], pivot, float(rng.choice([0, 1, 10])))


def call(program: Program, x: Any, params: Any, state: Any, mask: Any) -> Any:
    """The output, by the function, its features moved to `axis` and back."""
    name, row = program.name, NORMS[program.name]
    options = dict(ROWS[name].options) | inputs(name, x) | {"axis": program.axis}
    if name in ("batch", "ghost"):
        options["pivot"] = program.pivot
    if mask is not None:
        options["where"] = jnp.moveaxis(mask, -1, program.axis)
    x = jnp.moveaxis(x, -1, program.axis)
    if row.takes_running_average:
        packed = Whitening(**state) if "matrix" in state else Moments(jnp.zeros(()), state["mean"], state["var"])
        y, _ = row.function(x, running=packed, **params, **options)
    else:
        y = row.function(x, **params, **options)
    return jnp.moveaxis(y, program.axis, -1)


def tolerance(program: Program, x: np.ndarray, n: np.ndarray) -> float:
    rounding = 64 * 1.2e-7
    if program.name in CHANNELS_TOGETHER:
        rounding *= 1e3
    elif NORMS[program.name].takes_running_average and program.pivot == "running":
        rounding *= 1 + max(ratio(x[part], n[part]) for part in parts(program))
    return float(jnp.finfo(program.dtype).eps) + rounding


def parts(program: Program) -> list[slice]:
    """The examples that are measured together."""
    examples = program.shape[0]
    if program.name == "ghost":
        return [slice(i, i + 2) for i in range(0, examples, 2)]
    if program.name == "domain":
        return [slice(i, None, 2) for i in range(2)]
    return [slice(0, examples // 2), slice(examples // 2, None)] if program.name == "split" else [slice(None)]


def ratio(x: np.ndarray, n: np.ndarray) -> float:
    """The largest mean^2 / variance of a feature."""
    mean, var = mean_var(x, n, batch(x))
    return float((mean**2 / (var + 1e-5)).max())


def disagreements(program: Program, seed: int) -> Iterator[str]:
    """A line for each of the draws on which function and formula differ."""
    run = jax.jit(lambda *arrays: call(program, *arrays))
    rng = np.random.default_rng(seed)
    _, _, variables = sample(program.name, program.shape, seed)
    params, state = variables["params"], {k: v for k, v in variables["batch_stats"].items() if k != "step"}
    if "mean" in state:
        state = state | {"mean": 0 * state["mean"]}
    for number in range(DRAWS):
        x = np.asarray((rng.normal(size=program.shape) + program.mean).astype(program.dtype))
        mask = None if program.mask is None else rng.random(program.mask) < 0.7
        n = np.ones(x.shape) if mask is None else np.broadcast_to(mask, x.shape).astype(np.float64)
        if not n.any():
            continue
        got = np.asarray(run(x, params, state, mask), np.float64)
        with np.errstate(all="ignore"):
            want = formula(program.name, wide(x), wide({"params": params, "batch_stats": state}), n)[0]
        seen = n > 0
        if program.name == "prms":  # the first half of the features is measured, for all of them
            seen &= n[..., : x.shape[-1] // 2].any(-1, keepdims=True)
        if not seen.any():
            continue
        error = np.abs(got - want)[seen].max() / max(np.abs(want[seen]).max(), 1)
        bound = tolerance(program, wide(x), n)
        if not error <= bound:
            yield f"{program}: draw {number} of seed {seed} is off by {error:.1e}, more than {bound:.1e}"


def programs(cases: int, seed: int) -> list[tuple[Program, int]]:
    """As many programs as make so many cases, each with a seed of its own."""
    rng = np.random.default_rng(seed)
    return [(draw(rng), int(rng.integers(2**31))) for _ in range(-(-cases // DRAWS))]


def main() -> None:
    parser = argparse.ArgumentParser(description="All functional norms on random inputs, against float64.")
    parser.add_argument("--cases", type=int, default=10000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    jax.config.update("jax_disable_most_optimizations", True)  # each program runs ten times only
    wrong, done, distinct = 0, 0, set()
    try:
        for program, seed in programs(arguments.cases, arguments.seed):
            for line in disagreements(program, seed):
                wrong += 1
                print(line, flush=True)
            done += DRAWS
            distinct.add(program[1:5])
            if done % 500 == 0:
                print(f"{done} cases", file=sys.stderr, flush=True)
    except KeyboardInterrupt:
        print("Interrupted.")
    print(f"{done} cases, {len(distinct)} distinct (shape, mask, axis, dtype): {wrong} disagree.")
    sys.exit(wrong > 0)


if __name__ == "__main__":
    main()
