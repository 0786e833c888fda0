"""Why a verb that selects a norm cannot do it, and what counts: the same for every framework."""

from __future__ import annotations

from typing import Any

from bnjax import _masks as masks
from bnjax._lifecycle.overrides import Entry, Freeze, Swap
from bnjax._lifecycle.swap import WRAPS
from bnjax._norms.registry import NORMS

NOT_CALLED = "it was not called"
NONE_VALID = "no element was valid"
FROZEN = "it is frozen"
FROZEN_TOO = "it is frozen, too"
STATELESS = "it has no running state"
NOT_FOLDED = "it is no plain batch norm: its map at evaluation does not go into a kernel"


def refused(entry: Entry, kind: str, stateful: bool) -> str | None:
    """Why an entry that selects a norm cannot do it, as far as its kind and its state tell; or nothing."""
    if isinstance(entry, Swap | Freeze) and NORMS[kind].wraps:
        return WRAPS
    if not isinstance(entry, Freeze):
        return None
    if not stateful and not entry.parameters:
        return f"{STATELESS}; `parameters=True` holds its parameters"
    if stateful and kind != "batch" and entry.use and entry.update:
        return f"a state of a norm of kind {kind!r} steps only where it normalizes by the batch"
    return None


def foreign(cls: str) -> str:
    """Why nothing is done to a module that has a mean and a variance."""
    return f"`{cls}` is no norm of Flax or bnjax"


def valid_too(x: Any, mask: Any, valid: Any, path: str) -> tuple[Any, Any]:
    """The input of a norm, and the mask of what both its mask and `valid`, of the first axes, call valid.

    Raises:
      ValueError: `valid` does not fit the input.
    """
    if valid is None:
        return x, mask
    if valid.shape != x.shape[: valid.ndim]:
        raise ValueError(
            f"`valid` must give an array whose shape is that of the first axes of the input of every norm, but its "
            f"shape is {valid.shape}, and the input of the norm at {path!r} has the shape {x.shape}."
        )
    valid = valid.reshape(valid.shape + (1,) * (x.ndim - valid.ndim))
    x, own = masks.read(x, masks.NamedMask(mask, "mask"))
    return x, valid if own is None else valid & own
