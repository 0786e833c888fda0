"""What a user of `from_torch` or `from_keras` asked for."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from bnjax._lifecycle.convert.renamed import Rename
from bnjax._lifecycle.convert.sources import array


@dataclasses.dataclass(frozen=True)
class Ask:
    """What a user asked for; see `from_torch`."""

    verb: str
    example: Any
    rename: Rename | None = None
    keep: str | None = None
    expect: tuple[Any, Any] | None = None

    def __post_init__(self) -> None:
        if self.keep is not None and not isinstance(self.keep, str):
            raise ValueError(f"`keep` must be a regular expression, but it is {self.keep!r}.")
        if self.keep is not None:
            try:
                re.compile(self.keep)
            except re.error as error:
                raise ValueError(f"`keep` must be a regular expression, but it is {self.keep!r}: {error}.") from error
        if self.expect is not None and (not isinstance(self.expect, tuple) or len(self.expect) != 2):
            raise ValueError(
                "`expect` must be a pair of a batch and the output for it, both as the Flax model has them."
            )
        if self.expect is not None:
            own = lambda t: array(t, "expect") if hasattr(t, "detach") else t  # noqa: E731
            object.__setattr__(self, "expect", jax.tree.map(own, self.expect))
        if self.rename is not None and not callable(self.rename):
            raise ValueError(f"`rename` must be a function of a name, but it is a {type(self.rename).__name__}.")

    def keeps(self, leaf: str) -> bool:
        """Whether a leaf stays as it is."""
        return self.keep is not None and re.search(self.keep, leaf) is not None

    def check_kept(self, leaves: Mapping[str, Any]) -> None:
        """Raises unless `keep` is found in the path of a leaf."""
        if self.keep is not None and not any(map(self.keeps, leaves)):
            raise ValueError(
                f"`keep` is {self.keep!r}, which is found in no path of the model; the model has {some([*leaves])}."
            )


def some(names: Sequence[str], beside: Mapping[str, str] | None = None) -> str:
    """The first names of a list, with what is said beside them."""
    shown = ", ".join(f"{name!r}{(beside or {}).get(name, '')}" for name in names[:8])
    return f"{shown}{' and more' if len(names) > 8 else ''}"
