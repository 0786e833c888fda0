"""Arguments that all verbs have, checked before anything is traced."""

from __future__ import annotations

from typing import Any

from flax import linen as nn

from bnjax._lifecycle.arguments import check_call, check_variables


def check_arguments(model: Any, variables: Any, call: Any, *, shapes: bool = False) -> None:
    """Raises unless these are a model, its variables, or their `shapes` where these will do, and a function."""
    if not isinstance(model, nn.Module):
        got = f"the class {model.__name__}" if isinstance(model, type) else f"a {type(model).__name__}"
        raise ValueError(f"`model` must be a module of linen, such as `Model()`, but it is {got}.")
    check_variables(variables, shapes=shapes)
    check_call(call)
