"""Norms by name, for linen."""

import dataclasses
from functools import partial
from typing import Any, Literal

from flax import linen as nn
from jax.typing import ArrayLike

from bnjax import _masks as masks
from bnjax import linen
from bnjax._core.affine_map import Activation
from bnjax._core.prepare import Arguments
from bnjax._modules.call import not_normalized
from bnjax._norms.registry import NORMS, NormAlias, NormName, check_arguments, norm_named
from bnjax._norms.spec import Spec


def make_norm(name: NormName | NormAlias | Literal["none"], /, **arguments: Any) -> partial[nn.Module]:
    """The constructor of the module of that name, its arguments filled in.

    All modules take `use_running_average` at the call; those without a running state ignore it. Which have one:
    `bnjax.NORMS[name].takes_running_average`.

    Args:
      name: one of `bnjax.NORMS`, or the name of a class or function: the first norm that has it. `"none"` is the
        identity, see below.
      **arguments: attributes of the module.

    Raises:
      ValueError: no such name (says the nearest), or an argument that the norm does not take (says which it takes).

    `"none"` takes what any norm of activations takes, and ignores it: the module has no variables, and returns its
    input. What comes after a norm stays: an `activation`, and a `residual`, a `scale` and a `bias` that the call gives;
    and `zero_masked`.

    >>> norm = make_norm("group", num_groups=2)
    >>> norm(name="norm1").num_groups
    2
    """
    if name == "none":
        known = set().union(*(_attributes(row) for row in NORMS.values() if not row.wraps))
        check_arguments(name, arguments, known)
        kept = {k: arguments[k] for k in ("activation", "zero_masked", "name") if k in arguments}
        identity: type[nn.Module] = Identity
        return partial(identity, axis=arguments.get("axis", arguments.get("feature_axes", -1)), **kept)
    row = norm_named(name)
    check_arguments(name, arguments, _attributes(row))
    return partial(getattr(linen, row.module), **(dict(row.arguments) | arguments))


class Identity(nn.Module, kw_only=True):
    """No normalization, with the call of all norms of activations."""

    axis: Any = -1
    activation: Activation = None
    zero_masked: bool = False

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


def _attributes(row: Spec) -> set[str]:
    return {f.name for f in dataclasses.fields(getattr(linen, row.module))} - {"parent"}
