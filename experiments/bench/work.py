"""What is computed: the work, the shapes, and the least traffic that the work could need."""

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

Norm = Literal["batch", "layer", "rms", "group"]


class Work(NamedTuple):
    """What a contender does with a tensor. In training that is forward and backward, everything returned."""

    name: str
    norm: Norm
    relu: bool = False
    residual: bool = False
    training: bool = True

    @property
    def passes(self) -> int:
        """Reads and writes of the whole tensor that cannot be saved.

        A batch norm reads x for its statistics and again for the output, and the same of x and dy in the backward
        pass: nothing of that size stays in a cache. The statistics of the other norms span one example, which does.
        A residual adds a read of itself, and a write of its gradient.
        """
        if not self.training:
            return 2 + self.residual
        return (8 if self.norm == "batch" else 5) + 2 * self.residual


BATCH = (
    Work("norm + relu", "batch", relu=True),
    Work("norm + residual + relu", "batch", relu=True, residual=True),
    Work("norm + relu, evaluation", "batch", relu=True, training=False),
)
SAMPLE = (Work("layer norm", "layer"), Work("RMS norm", "rms"), Work("group norm", "group"))

SHAPES: tuple[tuple[int, ...], ...] = (  # the norms of ResNet-50 at batch 32, a matrix, a sequence
    (32, 56, 56, 64), (32, 56, 56, 256), (32, 28, 28, 128), (32, 28, 28, 512), (32, 14, 14, 256), (32, 14, 14, 1024),
    (32, 7, 7, 512), (32, 7, 7, 2048), (4096, 512), (32, 512, 768),
)  # fmt: skip
QUICK: tuple[tuple[int, ...], ...] = ((32, 14, 14, 256), (4096, 512))
LARGE: tuple[tuple[int, ...], ...] = (  # at least 64 MB in bfloat16
    (256, 56, 56, 64), (128, 56, 56, 256), (128, 28, 28, 512), (256, 14, 14, 1024), (512, 7, 7, 2048), (65536, 1024),
    (64, 1024, 1024),
)  # fmt: skip


class Case(NamedTuple):
    """A work on a tensor of a shape and a dtype."""

    work: Work
    shape: tuple[int, ...]
    dtype: str

    @property
    def features(self) -> int:
        return self.shape[-1]

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * jnp.dtype(self.dtype).itemsize

    def __str__(self) -> str:
        return f"{self.work.name}, {shape_name(self.shape)} {self.dtype}"


def suits(work: Work, shape: tuple[int, ...]) -> bool:
    """Whether anybody does `work` at `shape`: group norm has images, the other norms of an example have rows."""
    if work.norm == "group":
        return len(shape) == 4 and shape[-1] % 32 == 0
    return work.norm == "batch" or len(shape) < 4


def shape_name(shape: tuple[int, ...]) -> str:
    """A short name.

    >>> shape_name((32, 56, 56, 64)), shape_name((4096, 512))
    ('32·56²·64', '4096·512')
    """
    if len(shape) == 4 and shape[1] == shape[2]:
        return f"{shape[0]}·{shape[1]}²·{shape[3]}"
    return "·".join(map(str, shape))


class Tensors(NamedTuple):
    """The operands of a case, channels last."""

    x: Array
    residual: Array | None
    dy: Array | None

    def channels_first(self) -> "Tensors":
        return jax.tree.map(lambda t: jnp.moveaxis(t, -1, 1), self)


def tensors(case: Case, make: Callable[[], Any]) -> Tensors:
    """The operands that the work needs, each from `make`."""
    return Tensors(make(), make() if case.work.residual else None, make() if case.work.training else None)


def random_tensors(case: Case) -> Tensors:
    """Operands from a normal distribution."""
    rng = np.random.default_rng(0)  # NumPy's, because JAX would have to compile its own for every shape
    return tensors(case, lambda: jnp.asarray(rng.standard_normal(case.shape, np.float32), case.dtype))


def copied(x: Array) -> Array:
    """A copy that costs no arithmetic: every bit the other way round."""
    bits: Any = {2: jnp.uint16, 4: jnp.uint32}[x.dtype.itemsize]
    return jax.lax.bitcast_convert_type(~jax.lax.bitcast_convert_type(x, bits), x.dtype)
