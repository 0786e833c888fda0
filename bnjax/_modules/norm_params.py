"""Which parameters of a model are those of norms, told by their names and shapes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import jax
from jax.tree_util import tree_flatten_with_path

from bnjax._core.state import Path, key_name

MATRICES = {"kernel", "embedding"}
SCALES = {"weight", "gamma", "g", "kernel"}
SHIFTS = {"bias", "beta", "b", "offset", "shift"}


def norm_params_mask(
    params: Any,
    names: Collection[str],
    *,
    owners: Collection[Path] = (),
    is_box: Callable[[Any], bool],
    is_parameter: Callable[[Any], bool] = lambda leaf: True,
) -> Any:
    """A tree like `params`, true where a parameter is that of a norm.

    Args:
      params: nested mappings or lists of arrays, perhaps in boxes.
      names: of modules that are norms, with all that is in them.
      owners: paths of modules that are norms.
      is_box: tells the boxes; what comes back has them, too.
      is_parameter: tells the parameters. Other leaves, such as a running state, are false and not looked at.
    """
    leaves, structure = tree_flatten_with_path(params, is_leaf=is_box)
    paths = [tuple(map(key_name, path)) for path, _ in leaves]
    modules: dict[Path, dict[Any, tuple[int, ...]]] = {}
    for path, (_, leaf) in zip(paths, leaves, strict=True):
        if path and is_parameter(leaf):
            modules.setdefault(path[:-1], {})[path[-1]] = _shape(leaf)
    parents = {module[:n] for module in modules for n in range(len(module))}
    norms = {module for module, own in modules.items() if _is_norm(own, module in parents)} | set(owners)
    names = {names} if isinstance(names, str) else set(names)

    def mask(path: Path, leaf: Any) -> Any:
        is_norm = is_parameter(leaf) and (path[:-1] in norms or not names.isdisjoint(path[:-1]))
        return jax.tree.map(lambda _: is_norm, leaf)  # in a box, if it is in one

    return jax.tree.unflatten(structure, [mask(path, leaf) for path, (_, leaf) in zip(paths, leaves, strict=True)])


def _is_norm(own: Mapping[Any, tuple[int, ...]], has_children: bool) -> bool:
    """Whether the parameters that a module holds itself, by their names, are those of a norm."""
    if "scale" in own and own.keys().isdisjoint(MATRICES):
        return True
    if has_children or own.keys().isdisjoint(SCALES) or not own.keys() <= SCALES | SHIFTS | {"scale"}:
        return False
    return all(len(shape) == 1 or (name not in ("kernel", "weight") and _is_row(shape)) for name, shape in own.items())


def _is_row(shape: tuple[int, ...]) -> bool:
    """(1, ..., 1, C)."""
    return len(shape) > 0 and all(n == 1 for n in shape[:-1])


def _shape(leaf: Any) -> tuple[int, ...]:
    """The shape of an array, in a box or not; `()` for a Python number."""
    return next((tuple(getattr(t, "shape", ())) for t in jax.tree.leaves(leaf)), ())
