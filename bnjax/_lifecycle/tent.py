"""The parts of TENT (arXiv 2006.10726) that know no framework."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array


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
        paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
        raise ValueError(
            "`tent` moves the parameters of norms alone, but `norm_params_mask` finds none among "
            f"{', '.join(paths[:20]) or 'no parameters'}."
        )
    return own


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
