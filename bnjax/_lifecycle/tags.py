"""Names on values, by which a traced program tells where layers and norms begin and end.

A name given by `checkpoint_name` survives `jit`, `scan`, `remat` and `vmap`, and changes no number.
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from jax import Array
from jax.ad_checkpoint import checkpoint_name

_PREFIX = "bnjax:"


class Tag(NamedTuple):
    """What a value is.

    Attributes:
      role: `"layer"`, a layer's output; `"norm_in"` and `"norm_out"`, a norm's input and output; `"dropout"`.
      path: of the module.
      rank: of the value where it was named; under `vmap` it has more axes in the program.
      axis: of a norm, its feature axis; of a layer's kernel, that of the output features, from the right. `None` where
        there are several.
      features: of a layer, how many axes of its output are features.
      epsilon: of a norm.
      train: whether a norm normalizes by the batch.
      dtype: of the value.
    """

    role: str
    path: str
    rank: int
    axis: int | None = None
    features: int = 1
    epsilon: float = 0.0
    train: bool = False
    dtype: str = ""


def tagged(x: Array, tag: Tag) -> Array:
    """`x` with a name."""
    return checkpoint_name(x, _PREFIX + json.dumps(tag._replace(dtype=str(x.dtype))))


def tag_of(primitive: str, params: Any) -> Tag | None:
    """The tag that an operation of a program puts on a value, if it does that."""
    name = str(params["name"]) if primitive == "name" else ""
    return Tag(*json.loads(name.removeprefix(_PREFIX))) if name.startswith(_PREFIX) else None
