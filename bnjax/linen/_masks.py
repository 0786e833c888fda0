"""Which parameters are those of norms, for linen."""

from collections.abc import Collection
from typing import Any

from bnjax._modules import norm_params as shared
from bnjax.linen._unstable import AxisMetadata


def norm_params_mask(params: Any, names: Collection[str] = ()) -> Any:
    """A tree like `params`, true where a parameter is that of a norm: those weight decay should leave alone.

    A norm is told by the parameters that a module holds itself, not by those of its children. Either (a) it has a
    `scale`, and no `kernel` or `embedding`. Or (b) it has no children, it has one of `weight`, `gamma`, `g` and
    `kernel`, all its other parameters are among these, `scale`, `bias`, `beta`, `b`, `offset` and `shift`, and every
    parameter has one axis (those that are not named `kernel` or `weight` may also have the shape (1, ..., 1, C)).

    So all norms of Flax and of this package are norms, but not one without a scale (`use_scale=False`), which must be
    named. LayerScale, whose only parameter is `gamma`, counts as a norm. A layer of another make that has a `scale`
    and calls its matrix something else is taken for a norm.

    Args:
      params: the collection `"params"`: nested mappings, or lists of them, with or without `nn.with_partitioning`.
      names: of submodules that are norms, with all that is in them.

    >>> params = {"dense": {"kernel": 1.0, "bias": 2.0}, "norm": {"scale": 3.0, "bias": 4.0}}
    >>> norm_params_mask(params)
    {'dense': {'bias': False, 'kernel': False}, 'norm': {'bias': True, 'scale': True}}
    >>> decayed = lambda p: jax.tree.map(lambda is_norm: not is_norm, norm_params_mask(p))  # optax.adamw(mask=decayed)
    """
    return shared.norm_params_mask(params, names, is_box=lambda t: isinstance(t, AxisMetadata))
