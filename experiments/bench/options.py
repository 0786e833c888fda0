"""What the benchmark is told on the command line, and the process that it needs."""

import dataclasses
import math
import os
import sys
from collections.abc import Sequence
from typing import Literal

from experiments.cli import memory
from experiments.cli.errors import UserError, shown
from experiments.cli.flags import new_folder, parse_flags
from experiments.measure.targets import target_of

Part = Literal["op", "compiled", "model", "step", "import"]
DType = Literal["float32", "bfloat16"]
MOST_ROUNDS = 10_000
LARGEST = 2**31  # elements

# How the C library hands out large buffers, which must be known before the process starts. Left alone it changes its
# mind on the way, and the same program takes 14 or 40 ms. Names it does not know it ignores. Kept is what a training
# loop has. What is fresh is what has the size of a tensor: XLA's library of sums works in pieces of 128 KiB, and with
# each of those fresh, too, a sum of 8 MB takes 6 ms in the place of 1.
BUFFERS = {
    "fresh": {"MALLOC_MMAP_THRESHOLD_": str(2**20), "MALLOC_TRIM_THRESHOLD_": str(2**30)},
    "kept": memory.VARIABLES,
}
# Peers on one machine: Keras must run on JAX, and JAX must leave an accelerator's memory to PyTorch, too.
PEERS = {"KERAS_BACKEND": "jax", "XLA_PYTHON_CLIENT_PREALLOCATE": "false", "TF_CPP_MIN_LOG_LEVEL": "2"}


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Measure bnjax beside its peers. The run folder gets bench.json and bench.png.

    Contenders that are not installed, and compilers that are missing, are skipped with a sentence.
    """

    parts: tuple[Part, ...] = ("op", "model", "step", "import")
    """`op`: one norm, timed. `compiled`: every norm that Flax has, alone and in models, compiled and not run; `model`:
    of these only the ResNet-50 step with batch norm. `step`: a small ResNet, timed. `import`: the time to import
    bnjax."""
    target: tuple[str, ...] = ("cpu",)
    """What is compiled for, with or without such a device: `cpu`, `tpu:v5e:2x2` (any topology), `gpu:h100`."""
    dtypes: tuple[DType, ...] = ("float32", "bfloat16")
    """For accelerators, `model` is compiled in bfloat16 alone, if it is among these."""
    rounds: int = 15
    """How often each contender is timed, all in turn."""
    repeats: int = 3
    """How often each program is traced and compiled, all in turn; the least seconds are kept."""
    quick: bool = False
    """Fewer shapes and works, the model in float32 and compiled once: two minutes on two cores."""
    large: bool = False
    """Shapes for an accelerator: 64 MB and up."""
    shapes: tuple[str, ...] = ()
    """Shapes for `op` in place of the built-in ones, such as `32x56x56x64`."""
    works: tuple[str, ...] = ()
    """Of `op` and `compiled` only those whose name begins with one of these, such as `layer` or `encoder`."""
    contenders: tuple[str, ...] = ()
    """Only those whose name begins with one of these, such as `bnjax` or `flax.linen`."""
    memory_switch: bool = False
    """Compile the ResNet-50 steps with the memory switch, `bnjax.linen.remat`, too."""
    blocks: int = 12
    """Of the encoder in `compiled`."""
    explain: bool = False
    """List the kernels of our compiled programs that have no counterpart in Flax's, and what they cost."""
    found: str = "runs/compiled.json"
    """Where the facts of compiled programs are kept; `--write` makes its tables of all that stand there."""
    buffers: Literal["fresh", "kept"] = "kept"
    """Large CPU buffers: kept and used again, or fresh from the system for every output, page faults and all."""
    tpu_python: str = sys.executable
    """The interpreter of an environment with `jax[tpu]`."""
    gpu_python: str = sys.executable
    """The interpreter of an environment with `jax[cuda12]`."""
    write: bool = False
    """Put the tables into docs/results."""
    workdir: str = ""
    """The run folder; a new one under `runs/` by default."""

    def chooses(self, contender: str) -> bool:
        """Whether this contender takes part."""
        return not self.contenders or contender.startswith(self.contenders)


def parse(argv: Sequence[str]) -> Arguments:
    """The arguments, checked as far as that goes without importing JAX.

    Raises:
      UserError: a value that is not right.
      SystemExit: an argument that tyro does not understand (status 2), or `--help` (0).
    """
    arguments = parse_flags(Arguments, argv, "python -m experiments.bench")
    for name in ("rounds", "repeats", "blocks"):
        if not 1 <= getattr(arguments, name) <= MOST_ROUNDS:
            raise UserError(f"`--{name}` must be from 1 to {MOST_ROUNDS}, but it is {getattr(arguments, name)}.")
    for shape in arguments.shapes:
        shape_of(shape)
    for target in arguments.target:
        target_of(target)
    return dataclasses.replace(arguments, workdir=arguments.workdir or new_folder("bench"))


def shape_of(text: str) -> tuple[int, ...]:
    """The shape in `--shapes`.

    >>> shape_of("32x56x56x64")
    (32, 56, 56, 64)
    """
    sizes = text.split("x")
    if not all(s.isdecimal() and int(s) > 0 for s in sizes) or not 2 <= len(sizes) <= 4:
        raise UserError(f"`--shapes` must be two to four sizes with an x between, as 32x56x56x64; {text!r} is not.")
    shape = tuple(map(int, sizes)) if max(map(len, sizes)) < 10 else (LARGEST + 1,)
    if math.prod(shape) > LARGEST:
        raise UserError(f"`--shapes` must have at most {LARGEST} elements each, but one is {shown(text)}.")
    return shape


def environment(buffers: str) -> dict[str, str]:
    """What the environment of a process that measures must have."""
    others = {name for settings in BUFFERS.values() for name in settings} - set(BUFFERS[buffers])
    return {k: v for k, v in os.environ.items() if k not in others} | PEERS | BUFFERS[buffers]


def restart(buffers: str) -> None:
    """Starts this program again, in its place, with the environment it needs; returns if it has that."""
    wanted = environment(buffers)
    if wanted != dict(os.environ):
        os.execve(sys.executable, [sys.executable, "-m", "experiments.bench", *sys.argv[1:]], wanted)
