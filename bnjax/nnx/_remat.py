"""The memory switch for nnx."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

from flax import nnx

from bnjax._core.remat import POLICY, together

_STATE = nnx.All(nnx.Variable, nnx.Not(nnx.Param))  # running statistics, say
F = TypeVar("F", bound=Callable[..., Any])


def remat(f: F) -> F:
    """`flax.nnx.remat` with what norms need: see `bnjax.remat`.

    Args:
      f: a function of a module and of arrays: a block, or better a few blocks in a row; also as a decorator of
        a module's `__call__`.

    >>> import jax.numpy as jnp
    >>> remat(lambda layer, x: layer(x))(nnx.Linear(3, 2, rngs=nnx.Rngs(0)), jnp.ones((1, 3))).shape
    (1, 2)
    """

    @wraps(f)
    def tied(*args: Any) -> Any:
        graph, *states = nnx.split(args, nnx.Not(_STATE), _STATE)
        again = nnx.merge(graph, together(states[0]), states[1])
        y = f(*again)
        nnx.update(args, nnx.state(again, _STATE))
        return y

    return nnx.remat(tied, policy=POLICY)  # type: ignore[return-value]
