"""What the tests use that JAX does not promise to keep. Where it is gone, programs are compiled in full."""

import contextlib
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import pytest


@contextlib.contextmanager
def compiler_options(more: Sequence[tuple[str, Any]]) -> Iterator[None]:
    """JAX's own choice of compiler options, and these. JAX takes them from a user for one `jit`, not for `pmap`."""
    with pytest.MonkeyPatch.context() as patch:
        with contextlib.suppress(ImportError, AttributeError):
            from jax._src import compiler

            options_of = compiler.get_compile_options

            def chosen(*args: Any, **how: Any) -> Any:
                options = options_of(*args, **how)
                options.env_option_overrides = [*options.env_option_overrides, *more]
                return options

            patch.setattr(compiler, "get_compile_options", chosen)
        yield


@contextlib.contextmanager
def one_lowering_context() -> Iterator[None]:
    """All programs are written in one context of MLIR: to make one takes longer than to write a small program."""
    with pytest.MonkeyPatch.context() as patch:
        with contextlib.suppress(ImportError, AttributeError):
            from jax._src.interpreters import mlir

            patch.setattr(mlir, "make_ir_context", functools.cache(mlir.make_ir_context))
        yield
