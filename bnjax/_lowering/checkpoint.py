"""What the backward pass keeps: `jax.checkpoint`, as each compiler wants it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any

import jax
from jax import lax

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


def rematerialized(has_checkpoint: bool, f: Callable[..., Any], *args: Any, **per_platform: Callable[..., Any]) -> Any:
    """`f(*args)`, of which the backward pass keeps the arguments only.

    On a CPU the checkpoint has a barrier (`prevent_cse`). Without it the forward pass keeps `x - c` in float32: half as
    much memory again. Elsewhere it has none: there a barrier separates the sums from the fusions around them, and costs
    traffic.

    Args:
      has_checkpoint: what `own_checkpoint` said when the norm was called.
      f: the function.
      *args: its arguments.
      **per_platform: the same as `f`, written in another way for a platform.
    """
    branches = per_platform | {"cpu": jax.checkpoint(per_platform.get("cpu", f))}
    either = partial(lax.platform_dependent, **branches, default=f)
    return (jax.checkpoint(either, prevent_cse=False) if has_checkpoint else either)(*args)
