"""What the modules of the norms that Flax does not have share: the call.

The attributes of a module are the keyword arguments of its function, and its variables are in its `Spec`: how a norm
looks in linen and in nnx follows from that.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike, DTypeLike

from bnjax import _checks as checks
from bnjax import _masks as masks
from bnjax._norms.spec import Options as Options
from bnjax._norms.spec import Shape as Shape
from bnjax._norms.spec import Spec as Spec
from bnjax._norms.spec import Variable

Start = ArrayLike | Callable[..., Array] | None  # of a parameter: a number, an initializer, or as the norm says


def features_of(x: Array, axis: checks.Axes) -> Shape:
    """The lengths of the feature axes."""
    return tuple(x.shape[a] for a in checks.canonical_axes(axis, x.ndim))


def initial(
    variable: Variable, features: Shape, options: Options, dtype: DTypeLike, given: Any = None, key: Any = None
) -> Array:
    """What a variable starts from: as the norm's `Spec` says, or as `given`, a number or an initializer, does."""
    shape = variable.shape(features, options)
    if callable(given):
        return given(key, shape, dtype)
    start = variable.start(features, options) if given is None and variable.start else given
    return jnp.broadcast_to(jnp.asarray(start, dtype), shape)


def check_given(spec: Spec, given: Options) -> None:
    """Raises where the call gives what the norm does not have."""
    for name, value in given.items():
        if value is not None and name not in spec.parameters:
            raise ValueError(f"`{name}` was given at the call of a norm that has none; leave it out.")


def call(
    spec: Spec,
    x: Array,
    parameters: Mapping[str, Any],
    state: Mapping[str, Array],
    options: Options,
    *,
    train: bool,
    mask: ArrayLike | None,
    dtype: DTypeLike,
    **inputs: Any,
) -> tuple[Array, Mapping[str, Array]]:
    """One call of a module: the output, and the new variables of its state."""
    arguments = {name: options[name] for name in spec.defaults} | inputs | {"dtype": dtype}
    function = spec.called or spec.function
    if not spec.mask:  # no statistics: only the result may have to be zero
        x, valid = masks.read(x, mask, "mask")
        x, zero = masks.zeroed(x, valid, arguments.pop("zero_masked"))
        return masks.valid(zero, function(x, **parameters, **arguments)), {}
    arguments["where"] = masks.NamedMask(mask, "mask")
    if not state:
        return function(x, **parameters, **arguments), {}
    y, new = function(x, running=spec.pack(**state), **parameters, train=train, **arguments)
    return y, {name: getattr(new, name) for name in state}
