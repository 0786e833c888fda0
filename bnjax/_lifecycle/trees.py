"""Pairs of mean and variance in the running state of a model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bnjax._core.state import Path, named_leaves
from bnjax._lifecycle.report import Row


class State(NamedTuple):
    """The running state of a model by the names of its leaves, in a form that can be put together again."""

    leaves: dict[Path, Any]
    structure: Any

    @classmethod
    def of(cls, tree: Any) -> State:
        """The state of any pytree; boxes have no name."""
        return cls(*named_leaves(tree))

    def without(self, prefix: str) -> State:
        """The state without leaves of such names; it cannot be put together again."""
        return State({p: leaf for p, leaf in self.leaves.items() if not str(p[-1]).startswith(prefix)}, None)

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

    def other_rows(self) -> list[Row]:
        """Of a report: that nothing is done to these leaves."""
        return [Row(path, "leaf", False, "no mean and no variance") for path in self.others()]

    def replaced(self, pairs: Mapping[str, Mapping[str, Any]]) -> Any:
        """The tree with other means and variances."""
        new = {(*o, name): value for o in self.owners for name, value in pairs.get(shown(o), {}).items()}
        return self.structure.unflatten((self.leaves | new).values())


def shown(path: Path) -> str:
    """A path as reports have it."""
    return "/".join(map(str, path))


def like(old: Any, new: Any) -> Any:
    """`new` with the dtype and the sharding of `old`; on no device in particular, if `old` was on none."""
    if jnp.iscomplexobj(new) and not jnp.iscomplexobj(old):
        new = jnp.real(new)
    new = jnp.asarray(new).astype(jnp.result_type(old))
    if not isinstance(old, jax.Array):
        return new
    return jax.device_put(new, old.sharding) if old.committed else jnp.asarray(np.asarray(new))
