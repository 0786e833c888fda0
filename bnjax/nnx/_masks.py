"""Which parameters are those of norms, for nnx."""

from typing import Any

from flax import nnx

from bnjax.nnx._layers import Norm
from bnjax.nnx._recurrent import StepNorm

NORMS = (nnx.BatchNorm, nnx.LayerNorm, nnx.RMSNorm, nnx.GroupNorm, nnx.InstanceNorm, Norm, StepNorm)


def norm_params_mask(model: nnx.Module, types: tuple[type, ...] = ()) -> nnx.State:
    """The parameters of `model`, with true where one is that of a norm: those weight decay should leave alone.

    A norm is a module of Flax's norms or of this package's; weight and spectral norm, which wrap other layers, are not.

    Args:
      model: any module.
      types: further classes that are norms.

    >>> class Model(nnx.Module):
    ...     def __init__(self, rngs):
    ...         self.dense, self.norm = nnx.Linear(2, 2, rngs=rngs), nnx.LayerNorm(2, rngs=rngs)
    >>> nnx.to_pure_dict(norm_params_mask(Model(nnx.Rngs(0))))["norm"]
    {'bias': True, 'scale': True}
    """
    owners = {tuple(path) for path, module in nnx.iter_modules(model) if isinstance(module, (*NORMS, *types))}

    def is_norm(path: tuple[Any, ...], parameter: Any) -> bool:
        return tuple(path[:-1]) in owners

    return nnx.map_state(is_norm, nnx.state(model, nnx.Param))
