"""Whether a norm decides for itself what its backward pass keeps."""

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


def own_checkpoint() -> bool:
    """Whether a norm that is called here has its own `jax.checkpoint`; within `remat` it has not."""
    return not _within_remat.get()
