"""Which parameters are frozen, for linen."""

from typing import Any

from bnjax._lifecycle import labels as shared
from bnjax.linen._unstable import AxisMetadata


def frozen_labels(params: Any, match: str) -> Any:
    """A tree like `params` with "frozen" for the parameters whose path `match` is found in, else "train".

    Weight decay moves a parameter that has no gradient. With these labels nothing does::

        tx = optax.multi_transform({"train": optax.adamw(1e-3), "frozen": optax.set_to_zero()}, labels)

    Args:
      params: the collection `"params"`, with or without `nn.with_partitioning`.
      match: a regular expression that is found (`re.search`) in the path of a parameter, such as "conv1/kernel".

    Returns:
      The labels; a boxed parameter has one, without a box.

    Raises:
      ValueError: `match` is found in no path.

    >>> frozen_labels({"conv1": {"kernel": 1.0}, "head": {"kernel": 2.0}}, "^conv")
    {'conv1': {'kernel': 'frozen'}, 'head': {'kernel': 'train'}}
    """
    return shared.frozen_labels(params, match, lambda t: isinstance(t, AxisMetadata))
