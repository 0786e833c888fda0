"""The memory switch: the backward pass computes the outputs of norms again from their inputs.

For its backward pass a model keeps the input of every norm, and its output, which is the input of the next layer. The
first is enough, because one pass over it gives the second.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import lax

from bnjax._core.rule import INPUT, MOMENTS

POLICY = jax.checkpoint_policies.save_only_these_names(INPUT, MOMENTS)
F = TypeVar("F", bound=Callable[..., Any])


def remat(f: F) -> F:
    """`f`, whose backward pass keeps the arguments, the inputs and moments of the norms, and nothing else.

    For each unit of a model, a function of its parameters and its input: a block, or better a few blocks in a row.
    Its backward pass first computes the rest again. A convolution or a dense layer that a norm follows is not
    computed again: its output is the norm's input. The result is exact: the same numbers are computed twice.

    It is `jax.checkpoint` with a policy and an addition, without which little memory is saved. The gradients of a unit
    wait for each other: compilers would move those of all weights to the end, and keep the tensors that they need.

    Args:
      f: a function of arrays (and trees of them). Pass parameters and input by position: their gradients wait for each
        other. Pass running statistics by keyword: if they waited for the input, they would vary between devices, as it
        does, under `shard_map(check_vma=True)`.

    Returns:
      The same function; its gradients are the same, forward mode and higher derivatives work.

    >>> unit = remat(lambda params, x: jnp.tanh(x @ params))
    >>> print(jax.grad(lambda w: unit(w, jnp.ones((1, 2))).sum())(jnp.zeros((2, 1))))
    [[1.]
     [1.]]
    """

    @wraps(f)
    def unit(*args: Any, **kwargs: Any) -> Any:
        return f(*together(args), **kwargs)

    return jax.checkpoint(unit, policy=POLICY)  # type: ignore[return-value]


def together(tree: Any) -> Any:
    """The same arrays. The backward pass computes the gradients of all of them before it uses any."""
    leaves, structure = jax.tree.flatten(tree)
    real = [i for i, leaf in enumerate(leaves) if jnp.issubdtype(jnp.result_type(leaf), jnp.inexact)]
    for i, leaf in zip(real, lax.optimization_barrier([leaves[i] for i in real]), strict=True):
        leaves[i] = leaf
    return jax.tree.unflatten(structure, leaves)
