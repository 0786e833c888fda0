"""Programs compiled with less effort: nearly all of them run once, on a few numbers."""

import contextlib
import functools
import os
from collections.abc import Iterator
from pathlib import Path

import jax

from tests.kit._unstable import compiler_options, one_lowering_context

ROOT = Path(__file__).resolve().parents[2]
# What they do without, beside LLVM's passes: kernels by way of MLIR, and 32 modules to be compiled at a time.
PLAINER = {"xla_cpu_use_fusion_emitters": False, "xla_cpu_parallel_codegen_split_count": 1}


@functools.cache
def known() -> list[tuple[str, bool | int]]:
    """Those of the options above that this XLA has."""

    def accepted(name: str) -> bool:
        try:
            return bool(jax.jit(lambda: 0, compiler_options={name: PLAINER[name]})() == 0)
        except jax.errors.JaxRuntimeError:
            return False

    return [(name, PLAINER[name]) for name in PLAINER if accepted(name)]


@contextlib.contextmanager
def quickly() -> Iterator[None]:
    with compiler_options(known()), one_lowering_context():
        before = jax.config.read("jax_disable_most_optimizations")
        jax.config.update("jax_disable_most_optimizations", True)
        yield
        jax.config.update("jax_disable_most_optimizations", before)


def environment() -> dict[str, str]:
    """Of a process that compiles in the same way, without the devices of this one."""
    flags = " ".join(f"--{name}={str(value).lower()}" for name, value in known())
    same = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1", "JAX_TRACEBACK_IN_LOCATIONS_LIMIT": "0", "XLA_FLAGS": flags}
    return {**os.environ, **same, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
