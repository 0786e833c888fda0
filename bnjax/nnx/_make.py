"""Norms by name, for nnx."""

import inspect
from functools import partial
from typing import Any, Literal

from flax import nnx
from jax.typing import ArrayLike

from bnjax import _masks as masks
from bnjax import nnx as family
from bnjax._checks import Axes
from bnjax._core.affine_map import Activation
from bnjax._core.prepare import Arguments
from bnjax._modules.call import not_normalized
from bnjax._norms.registry import NORMS, NormAlias, NormName, check_arguments, norm_named
from bnjax._norms.spec import Spec


def make_norm(name: NormName | NormAlias | Literal["none"], /, *positional: Any, **arguments: Any) -> Any:
    """The module of that name; without a number of features and without `rngs`, its constructor, as in linen.

    All modules take `use_running_average` at the call; those without a running state ignore it. Which have one:
    `bnjax.NORMS[name].takes_running_average`.

    Args:
      name: one of `bnjax.NORMS`, or the name of a class or function: the first norm that has it. `"none"` is the
        identity, see below.
      *positional: what the module takes first: the number of features, or the layer that it wraps.
      **arguments: of the module, `rngs` among them.

    Raises:
      ValueError: no such name (says the nearest), or an argument that the norm does not take (says which it takes).

    `"none"` takes what any norm of activations takes, and ignores it: the module has no variables, and returns its
    input. What comes after a norm stays: an `activation`, and a `residual`, a `scale` and a `bias` that the call gives;
    and `zero_masked`.

    >>> make_norm("group", 8, num_groups=2, rngs=nnx.Rngs(0)).num_groups
    2
    >>> norm = make_norm("group", num_groups=2)
    >>> norm(8, rngs=nnx.Rngs(0)).num_groups
    2
    """
    if name == "none":
        constructor = partial(_identity, **arguments)
        known = set().union(*(_arguments(row) for row in NORMS.values() if not row.wraps))
        check_arguments(name, arguments, known)
    else:
        row = norm_named(name)
        constructor = partial(getattr(family, row.module), **(dict(row.arguments) | arguments))
        check_arguments(name, arguments, _arguments(row))
    return constructor(*positional) if positional or "rngs" in arguments else constructor


class Identity(nnx.Module):
    """No normalization, with the call of all norms of activations."""

    def __init__(self, axis: Axes, activation: Activation = None, zero_masked: bool = False):
        self.axis, self.activation, self.zero_masked = axis, activation, zero_masked

    def __call__(
        self,
        x: ArrayLike,
        *ignored: Any,
        use_running_average: bool | None = None,
        mask: ArrayLike | None = None,
        domain: Any = None,
        residual: ArrayLike | None = None,
        scale: ArrayLike | None = None,
        bias: ArrayLike | None = None,
    ) -> Any:
        """`x`, times `scale`, plus `bias` and `residual`, through the activation: of what there is."""
        where = masks.NamedMask(mask, "mask")
        arguments = Arguments(scale, bias, self.axis, 0.0, where, self.zero_masked, residual, self.activation)
        return not_normalized(x, arguments)


def _arguments(row: Spec) -> set[str]:
    return set(inspect.signature(getattr(family, row.module).__init__).parameters) - {"self"}


def _identity(*positional: Any, **arguments: Any) -> Identity:
    """The identity, of the arguments of any norm of activations."""
    if any(isinstance(t, nnx.Module) for t in positional):
        raise ValueError(
            "`name` is 'none', the identity in the place of norms of activations, but a layer was given to be wrapped; "
            "call the layer itself."
        )
    kept = {k: arguments[k] for k in ("activation", "zero_masked") if k in arguments}
    return Identity(arguments.get("axis", arguments.get("feature_axes", -1)), **kept)
