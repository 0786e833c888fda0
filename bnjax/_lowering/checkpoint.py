"""Whether a norm chooses what its backward pass keeps (by `linear`), or a `jax.checkpoint` around it does."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_within_remat = ContextVar("within_remat", default=False)


@contextmanager
def within_remat() -> Iterator[None]:
    """Norms called here are within a `jax.checkpoint` that knows what to keep. Two, one in the other, keep more."""
    token = _within_remat.set(True)
    try:
        yield
    finally:
        _within_remat.reset(token)


def chooses_residuals() -> bool:
    """Whether a norm that is called here chooses what its backward pass keeps; within `remat` it does not."""
    return not _within_remat.get()
