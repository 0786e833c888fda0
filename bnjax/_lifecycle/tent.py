"""The parts of TENT (arXiv 2006.10726) that know no framework."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from bnjax._core.state import named_leaves
from bnjax._lifecycle.trees import shown


def entropy(logits: Array) -> Array:
    """The mean entropy of the predictions, in nats, from logits of shape (..., classes)."""
    if jnp.ndim(logits) < 1 or jnp.shape(logits)[-1] < 2:
        raise ValueError(
            "`call` must return logits of shape (..., classes) with two classes or more, but it returned the shape "
            f"{jnp.shape(logits)}; return both logits of two classes, not their difference."
        )
    wide = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    log_p = jax.nn.log_softmax(wide)
    return -(jnp.exp(log_p) * log_p).sum(-1).mean()


def chosen(params: Any, mask: Any) -> list[Array]:
    """The parameters that the mask selects.

    Raises:
      ValueError: it selects none.
    """
    pairs = zip(jax.tree.leaves(params), jax.tree.leaves(mask), strict=True)
    own = [leaf for leaf, selected in pairs if selected]
    if not own:
        raise no_parameters(map(shown, named_leaves(params)[0]))
    return own


def no_parameters(paths: Iterable[str]) -> ValueError:
    """The error for a model without parameters of norms."""
    some = ", ".join(itertools.islice(paths, 20))
    return ValueError(
        "`tent` moves the parameters of norms alone, but `norm_params_mask` finds none among the first of the "
        f"parameters: {some or 'there are none'}."
    )


def put_back(own: list[Array], params: Any, mask: Any) -> Any:
    """`params` with these in the place of those that the mask selects."""
    new = iter(own)
    selected = jax.tree.leaves(mask)
    leaves, structure = jax.tree.flatten(params)
    together = [next(new) if own_one else leaf for leaf, own_one in zip(leaves, selected, strict=True)]
    return jax.tree.unflatten(structure, together)


def stepped(tx: Any, own: list[Array], gradients: list[Array], opt_state: Any) -> tuple[list[Array], Any]:
    """The parameters after an update of optax, in the dtypes they had."""
    updates, opt_state = tx.update(gradients, opt_state, own)
    return [(p + u).astype(p.dtype) for p, u in zip(own, updates, strict=True)], opt_state
