"""Arguments that all verbs have, checked before anything is traced."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax

OF_VARIABLES = ("params", "batch_stats")


def check_call(call: Any) -> None:
    """Raises unless `call` is a function."""
    if not callable(call):
        raise ValueError(
            "`call` must be a function of a model and a batch, such as `lambda model, batch: model(batch['image'])`, "
            f"but it is {call!r:.80}."
        )


def check_variables(variables: Any, *, shapes: bool = False) -> None:
    """Raises unless these are variables of a model of linen, or their `shapes`, where these will do."""
    if not isinstance(variables, Mapping):
        raise ValueError(
            f"`variables` must be what `model.init` returns, but it is a {type(variables).__name__}; write "
            "`{'params': ..., 'batch_stats': ...}`."
        )
    if variables and not any(name in variables for name in OF_VARIABLES):
        raise ValueError(
            f"`variables` must have collections such as 'params' and 'batch_stats', but it has {[*variables]}; write "
            "`{'params': ..., 'batch_stats': ...}`."
        )
    if not shapes:
        check_values("variables", variables)


def check_values(name: str, tree: Any) -> None:
    """Raises where there are shapes in the place of arrays."""
    if any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(tree)):
        raise ValueError(f"`{name}` has shapes in the place of values; give values, such as those of `init`.")


def check_batch(batch: Any) -> None:
    """Raises unless a batch is an array, or a tree of arrays."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(batch):
        if not hasattr(leaf, "dtype") and not isinstance(leaf, bool | int | float | complex):
            where = f" at `batch{jax.tree_util.keystr(path)}`" if path else ""
            raise ValueError(
                f"`batches` must be a list of arrays, or of trees of arrays, but it has a {type(leaf).__name__}"
                f"{where}; leave it out."
            )
