"""Pairs of mean and variance in the running state of a model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bnjax._core.state import Path, named_leaves


class State(NamedTuple):
    """The running state of a model by the names of its leaves, in a form that can be put together again."""

    leaves: dict[Path, Any]
    structure: Any

    @classmethod
    def of(cls, tree: Any) -> State:
        """The state of any pytree; boxes have no name."""
        return cls(*named_leaves(tree))

    @property
    def owners(self) -> list[Path]:
        """Where there is a mean and a variance, in the order of the state."""
        return [p[:-1] for p in self.leaves if p and p[-1] == "mean" and (*p[:-1], "var") in self.leaves]

    def pairs(self) -> dict[str, dict[str, Any]]:
        """Mean and variance by the path of their module."""
        return {shown(o): {name: self.leaves[*o, name] for name in ("mean", "var")} for o in self.owners}

    def others(self) -> list[str]:
        """The paths of all other leaves."""
        owners = set(self.owners)
        return [shown(p) for p in self.leaves if p[:-1] not in owners or p[-1] not in ("mean", "var")]

    def replaced(self, pairs: Mapping[str, Mapping[str, Any]]) -> Any:
        """The tree with other means and variances."""
        new = {(*o, name): value for o in self.owners for name, value in pairs.get(shown(o), {}).items()}
        return self.structure.unflatten((self.leaves | new).values())


def shown(path: Path) -> str:
    """A path as reports have it."""
    return "/".join(map(str, path))


def like(old: Any, new: Any) -> Any:
    """`new` with the dtype and the sharding of `old`."""
    if jnp.iscomplexobj(new) and not jnp.iscomplexobj(old):
        new = jnp.real(new)
    new = jnp.asarray(new).astype(jnp.result_type(old))
    return jax.device_put(new, old.sharding) if isinstance(old, jax.Array) else new


def flat_paths(tree: Any, is_leaf: Any = None) -> Iterator[tuple[Path, Any]]:
    """The leaves of a tree with the names on their paths."""
    from bnjax._core.state import key_name

    for path, leaf in jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_leaf)[0]:
        yield tuple(map(key_name, path)), leaf
