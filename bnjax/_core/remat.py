"""The memory switch: the backward pass computes normalized tensors again from what they were normalized from.

A model keeps, for its backward pass, the input of every norm and, beside it, what comes out: the input of the next
layer. One of the two is enough, because it takes one pass to get from the first to the second.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import lax

from bnjax._core.rule import INPUT, MOMENTS
from bnjax._lowering.checkpoint import within_remat

POLICY = jax.checkpoint_policies.save_only_these_names(INPUT, MOMENTS)
F = TypeVar("F", bound=Callable[..., Any])


def remat(f: F) -> F:
    """`f`, of which the backward pass keeps the arguments, and the inputs and moments of norms, and nothing else.

    For each unit of a model, a function of its parameters and its input: a block, or better a few blocks in a row.
    Its backward pass first computes the rest again. A convolution or a dense layer that a norm follows is not
    computed again: its output is the norm's input. The result is exact: the same numbers are computed twice.

    It is `jax.checkpoint` with a policy, and two things without which that gains little: the gradients of a unit wait
    for each other (compilers put off those of the weights, all units' to the end, and hold the tensors for them), and
    norms keep nothing of their own choice.

    Args:
      f: a function of arrays (and trees of them). What goes by position waits for each other: parameters and input.
        Running statistics go by keyword; tied to the input they would, under `shard_map(check_vma=True)`, differ
        between devices as it does.

    Returns:
      The same function; its gradients are the same, forward mode and higher derivatives work.

    >>> unit = remat(lambda params, x: jnp.tanh(x @ params))
    >>> print(jax.grad(lambda w: unit(w, jnp.ones((1, 2))).sum())(jnp.zeros((2, 1))))
    [[1.]
     [1.]]
    """

    @wraps(f)
    def unit(*args: Any, **kwargs: Any) -> Any:
        with within_remat():
            return f(*together(args), **kwargs)

    return jax.checkpoint(unit, policy=POLICY)  # type: ignore[return-value]


def together(tree: Any) -> Any:
    """The same arrays. The backward pass has the gradients of all before it goes on with any."""
    leaves, structure = jax.tree.flatten(tree)
    real = [i for i, leaf in enumerate(leaves) if jnp.issubdtype(jnp.result_type(leaf), jnp.inexact)]
    for i, leaf in zip(real, lax.optimization_barrier([leaves[i] for i in real]), strict=True):
        leaves[i] = leaf
    return jax.tree.unflatten(structure, leaves)
