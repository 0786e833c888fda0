"""Which parameters are those of norms, for nnx."""

from collections.abc import Collection
from typing import Any

from flax import nnx

from bnjax._modules import norm_params as shared
from bnjax.nnx._layers import Norm
from bnjax.nnx._recurrent import StepNorm

NORMS = (nnx.BatchNorm, nnx.LayerNorm, nnx.RMSNorm, nnx.GroupNorm, nnx.InstanceNorm, Norm, StepNorm)


def norm_params_mask(model: Any, types: tuple[type, ...] = (), names: Collection[str] = ()) -> Any:
    """The parameters of `model`, with true where one is that of a norm: those weight decay should leave alone.

    Of a module, every instance of Flax's norms and of this package's is a norm, whatever parameters it has; weight and
    spectral norm, which wrap other layers, are not. A state does not know classes.

    In a module and in a state a norm is told by the parameters that a module holds itself, not by those of its
    children. Either (a) it has a `scale`, and no `kernel` or `embedding`. Or (b) it has no children, it has one of
    `weight`, `gamma`, `g` and `kernel`, all its other parameters are among these, `scale`, `bias`, `beta`, `b`,
    `offset` and `shift`, and every parameter has one axis (those that are not named `kernel` or `weight` may also have
    the shape (1, ..., 1, C)). LayerScale, whose only parameter is `gamma`, counts as a norm.

    Args:
      model: a module, an `nnx.State` of variables or of arrays, or its pure dict. An optimizer hands a state to
        `optax.adamw(..., mask=callable)`.
      types: further classes that are norms, where `model` is a module.
      names: of submodules that are norms, with all that is in them.

    Returns:
      An `nnx.State` of `Param` for a module, else a tree like `model`; a variable that is no `Param` is false.

    Raises:
      ValueError: `types` for a state.

    >>> class Model(nnx.Module):
    ...     def __init__(self, rngs):
    ...         self.dense, self.norm = nnx.Linear(2, 2, rngs=rngs), nnx.LayerNorm(2, rngs=rngs)
    >>> nnx.to_pure_dict(norm_params_mask(Model(nnx.Rngs(0))))["norm"]
    {'bias': True, 'scale': True}
    >>> decayed = lambda p: jax.tree.map(lambda is_norm: not is_norm, norm_params_mask(p))  # optax.adamw(mask=decayed)
    """
    owners = set()
    if isinstance(model, nnx.Module):
        owners = {tuple(path) for path, module in nnx.iter_modules(model) if isinstance(module, (*NORMS, *types))}
        model = nnx.state(model, nnx.Param)
    elif types:
        raise ValueError(
            f"`types` needs a module, but `model` is of type {type(model).__name__}, which does not know classes; pass "
            "the module, or give the `names` of submodules."
        )
    return shared.norm_params_mask(
        model, names, owners=owners, is_box=lambda t: isinstance(t, nnx.Variable), is_parameter=_is_parameter
    )


def _is_parameter(leaf: Any) -> bool:
    return isinstance(leaf, nnx.Param) or not isinstance(leaf, nnx.Variable)
