"""The memory switch for linen."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import jax
from flax import linen as nn

from bnjax._core.remat import POLICY, together
from bnjax.linen._unstable import lift_transform, pack

M = TypeVar("M", bound=type[nn.Module] | Callable[..., Any])


def remat(target: M) -> M:
    """`flax.linen.remat` with what norms need: see `bnjax.remat`.

    Args:
      target: a module class, a block or better a few blocks in a row, as in `Block = remat(Block)`. Variables keep
        their names.

    >>> class Unit(nn.Module):
    ...     @nn.compact
    ...     def __call__(self, x):
    ...         return nn.Dense(2)(x)
    >>> jax.tree.map(jax.numpy.shape, remat(Unit)().init(jax.random.key(0), jax.numpy.ones((1, 3))))["params"]
    {'Dense_0': {'bias': (2,), 'kernel': (3, 2)}}
    """

    def lifted(fn: Callable[..., Any]) -> Callable[..., Any]:
        def inner(scope_fn: Any, repack: Any, variables: Any, rngs: Any, *args: Any, **kwargs: Any) -> Any:
            def unit(variables: Any, rngs: Any, args: Any) -> Any:
                params, others = variables
                params, args = together((params, args))
                scope = scope_fn((params, others), rngs)
                y = fn(scope, *args, **kwargs)
                return y, repack(scope)

            return jax.checkpoint(unit, policy=POLICY)(variables, rngs, args)

        return pack(inner, ("params", True), ("params", True), (True,), name="remat")

    return lift_transform(lifted, target)
