"""Which parameters are frozen, for nnx."""

from typing import Any

from flax import nnx

from bnjax._lifecycle import labels as shared


def frozen_labels(params: Any, match: str) -> Any:
    """A tree like `params` with "frozen" for the parameters whose path `match` is found in, else "train".

    Weight decay moves a parameter that has no gradient. With these labels nothing does::

        tx = optax.multi_transform({"train": optax.adamw(1e-3), "frozen": optax.set_to_zero()}, labels)

    Args:
      params: a module, an `nnx.State`, or its pure dict.
      match: a regular expression that is found (`re.search`) in the path of a parameter, such as "conv1/kernel".

    Returns:
      The labels: for a module those of its `nnx.Param`.

    Raises:
      ValueError: `match` is found in no path.

    >>> model = nnx.Sequential(nnx.Linear(2, 3, rngs=nnx.Rngs(0)), nnx.LayerNorm(3, rngs=nnx.Rngs(0)))
    >>> frozen_labels(model, "layers/0")["layers"][0]["kernel"], frozen_labels(model, "scale")["layers"][1]["scale"]
    ('frozen', 'frozen')
    """
    params = nnx.state(params, nnx.Param) if isinstance(params, nnx.Module) else params
    return shared.frozen_labels(params, match, lambda t: isinstance(t, nnx.Variable))
