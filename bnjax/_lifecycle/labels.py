"""Which parameters are frozen, for `optax.multi_transform`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from bnjax._core.state import key_name
from bnjax._lifecycle.overrides import check_match, selects
from bnjax._lifecycle.trees import shown


def frozen_labels(params: Any, match: str, is_box: Callable[[Any], bool]) -> Any:
    """A tree like `params` with "frozen" where `match` is found in the path, else "train"; one label for each box."""
    check_match(match)
    leaves, structure = jax.tree_util.tree_flatten_with_path(params, is_leaf=is_box)
    paths = [shown(tuple(map(key_name, path))) for path, _ in leaves]
    labels = ["frozen" if selects(match, path) else "train" for path in paths]
    if "frozen" not in labels:
        some = ", ".join(paths[:20]) + (f" and {len(paths) - 20} more" if len(paths) > 20 else "")
        raise ValueError(f"`match` is found in no path: it is {match!r}, and the parameters are {some or 'none'}.")
    return jax.tree.unflatten(structure, labels)
