"""How long an import takes when JAX and Flax are there already, beside other libraries for JAX."""

import subprocess
import sys
from collections.abc import Iterator
from statistics import median
from typing import Any

from experiments.bench.contenders import importable
from experiments.bench.options import Arguments, environment
from experiments.measure.compile import child_environment

STATEMENTS = {
    "bnjax": "import bnjax",
    "bnjax, linen and nnx": "import bnjax, bnjax.linen, bnjax.nnx",
    "haiku": "import haiku",
    "equinox": "import equinox",
}
_PROGRAM = """
import time, flax.linen, flax.nnx, jax.numpy
began = time.perf_counter()
{}
print(time.perf_counter() - began)
"""


def measure(arguments: Arguments) -> Iterator[dict[str, Any]]:
    """The seconds of every import, each in a new process, all in turn."""
    chosen = {n: s for n, s in STATEMENTS.items() if arguments.chooses(n) and importable(n.split(",")[0])}
    seconds: dict[str, list[float]] = {name: [] for name in chosen}
    for _ in range(2 if arguments.quick else 5):
        for name, statement in chosen.items():
            seconds[name].append(_import(statement, arguments))
    for name, values in seconds.items():
        yield {"contender": name, "min_seconds": min(values), "median_seconds": median(values)}


def _import(statement: str, arguments: Arguments) -> float:
    program = [sys.executable, "-W", "ignore", "-c", _PROGRAM.format(statement)]
    env = child_environment(environment(arguments.buffers))
    done = subprocess.run(program, env=env, capture_output=True, text=True, check=True)
    return float(done.stdout)
