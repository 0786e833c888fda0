"""What the conversion needs of a model of linen or nnx."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from bnjax._lifecycle.convert.layers import Seen
from bnjax._lifecycle.graph import Graph

Watch = Callable[[str, Any, Any], None]  # is given the path, the input and the output of each layer that runs


class Model(Protocol):
    """A model at evaluation."""

    @property
    def leaves(self) -> Mapping[str, Any]:
        """Its parameters and statistics by path."""

    def traced(self, example: Any) -> tuple[Graph, dict[str, int], dict[str, Seen]]:
        """Its program, the values of its variables in it, and its layers in the order of their first calls."""

    def watched(self, leaves: Mapping[str, Any], example: Any, watch: Watch) -> Any:
        """Runs it with other values, operation by operation, and returns its output."""
