"""Which parameters are frozen, for `optax.multi_transform`."""

from __future__ import annotations

from typing import Any

from bnjax._core.state import named_leaves
from bnjax._lifecycle.overrides import check_match, selects
from bnjax._lifecycle.trees import shown


def frozen_labels(params: Any, match: str) -> Any:
    """A tree like `params` with "frozen" for the leaves whose path `match` is found in, else "train".

    Weight decay moves a parameter that has no gradient. With these labels nothing does::

        tx = optax.multi_transform({"train": optax.adamw(1e-3), "frozen": optax.set_to_zero()}, labels)

    Args:
      params: nested parameters, boxed or not.
      match: a regular expression that is found (`re.search`) in the path of a leaf, such as "conv1/kernel".

    Raises:
      ValueError: no path has it.

    >>> frozen_labels({"conv1": {"kernel": 1.0}, "head": {"kernel": 2.0}}, "^conv")
    {'conv1': {'kernel': 'frozen'}, 'head': {'kernel': 'train'}}
    """
    check_match(match)
    leaves, structure = named_leaves(params)
    labels = {path: "frozen" if selects(match, shown(path)) else "train" for path in leaves}
    if "frozen" not in labels.values():
        paths = [shown(path) for path in leaves]
        some = ", ".join(paths[:20]) + (f" and {len(paths) - 20} more" if len(paths) > 20 else "")
        raise ValueError(f"`match` is found in no path: it is {match!r}, and the parameters are {some or 'none'}.")
    return structure.unflatten(labels.values())
