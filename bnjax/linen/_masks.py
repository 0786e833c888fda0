"""Which parameters are those of norms, for linen."""

from collections.abc import Collection, Iterator, Mapping
from typing import Any

import jax

NOT_NORMS = ("kernel", "embedding")


def norm_params_mask(params: Any, names: Collection[str] = ()) -> Any:
    """A tree like `params`, true where a parameter is that of a norm: those weight decay should leave alone.

    A norm is told by its parameters: a subtree that holds a `scale`, and no `kernel` or `embedding`. That is true of
    all norms of Flax and of this package; not of a norm without a scale (`use_scale=False`), which must be named, and
    a layer of another make that has a `scale` and calls its matrix something else is taken for a norm.

    Args:
      params: the collection `"params"`: nested mappings.
      names: of submodules that are norms, with all that is in them.

    >>> params = {"dense": {"kernel": 1.0, "bias": 2.0}, "norm": {"scale": 3.0, "bias": 4.0}}
    >>> norm_params_mask(params)
    {'dense': {'bias': False, 'kernel': False}, 'norm': {'bias': True, 'scale': True}}
    >>> keep = jax.tree.map(lambda norm: not norm, norm_params_mask(params))  # for optax.adamw(..., mask=keep)
    """
    norms = set(_norms(params, ()))

    def is_norm(path: Any, leaf: Any) -> bool:
        keys = tuple(entry.key for entry in path)
        return keys[:-1] in norms or any(key in names for key in keys[:-1])

    return jax.tree_util.tree_map_with_path(is_norm, params)


def _norms(tree: Any, path: tuple[Any, ...]) -> Iterator[tuple[Any, ...]]:
    if isinstance(tree, Mapping):
        if "scale" in tree and not any(name in tree for name in NOT_NORMS):
            yield path
        for name, child in tree.items():
            yield from _norms(child, (*path, name))
