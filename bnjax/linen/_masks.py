"""Which parameters are those of norms, for linen."""

from collections.abc import Collection, Iterator, Mapping
from typing import Any

import jax
from flax.core.meta import AxisMetadata

from bnjax._state import name_of

NOT_NORMS = ("kernel", "embedding")


def norm_params_mask(params: Any, names: Collection[str] = ()) -> Any:
    """A tree like `params`, true where a parameter is that of a norm: those weight decay should leave alone.

    A norm is told by its parameters: a subtree that holds a `scale`, and no `kernel` or `embedding`. That is true of
    all norms of Flax and of this package; not of a norm without a scale (`use_scale=False`), which must be named, and
    a layer of another make that has a `scale` and calls its matrix something else is taken for a norm.

    Args:
      params: the collection `"params"`: nested mappings, or lists of them, with or without `nn.with_partitioning`.
      names: of submodules that are norms, with all that is in them.

    >>> params = {"dense": {"kernel": 1.0, "bias": 2.0}, "norm": {"scale": 3.0, "bias": 4.0}}
    >>> norm_params_mask(params)
    {'dense': {'bias': False, 'kernel': False}, 'norm': {'bias': True, 'scale': True}}
    >>> keep = jax.tree.map(lambda norm: not norm, norm_params_mask(params))  # for optax.adamw(..., mask=keep)
    """
    norms = set(_norms(params, ()))
    names = (names,) if isinstance(names, str) else names

    def mask(path: Any, parameter: Any) -> Any:
        keys = tuple(map(name_of, path))
        is_norm = keys[:-1] in norms or any(key in names for key in keys[:-1])
        return jax.tree.map(lambda _: is_norm, parameter)  # in a box, if it is in one

    return jax.tree_util.tree_map_with_path(mask, params, is_leaf=lambda t: isinstance(t, AxisMetadata))


def _norms(tree: Any, path: tuple[Any, ...]) -> Iterator[tuple[Any, ...]]:
    """The paths of the subtrees that are norms."""
    if isinstance(tree, Mapping) and "scale" in tree and not any(name in tree for name in NOT_NORMS):
        yield path
    children = tree.items() if isinstance(tree, Mapping) else enumerate(tree) if isinstance(tree, list | tuple) else ()
    for name, child in children:
        yield from _norms(child, (*path, name))
