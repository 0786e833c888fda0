"""What the modules of the norms share that Flax does not have: a table of what each calls and keeps.

The attributes of a module are the keyword arguments of its function, and its variables are in the table: how
a norm looks in linen and in nnx follows from that.
"""

import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike, DTypeLike

from bnjax import _checks as checks
from bnjax import _masks as masks
from bnjax._core.moments import Moments
from bnjax._norms.batch_channel import batch_channel_norm
from bnjax._norms.domain import domain_batch_norm
from bnjax._norms.evonorm import evo_norm_b0, evo_norm_s0
from bnjax._norms.example_weighted import example_weighted_batch_norm
from bnjax._norms.pointwise import dynamic_tanh
from bnjax._norms.renorm import batch_renorm
from bnjax._norms.response import filter_response_norm, global_response_norm, local_response_norm
from bnjax._norms.scale import partial_rms_norm, pixel_norm, positional_norm, scale_norm
from bnjax._norms.switchable import switchable_norm
from bnjax._norms.whitening import Whitening, decorrelated_batch_norm, group_of, iterative_norm

Shape = tuple[int, ...]
Options = Mapping[str, Any]
Start = ArrayLike | Callable[..., Array] | None  # of a parameter: a number, an initializer, or as the norm says


class Variable(NamedTuple):
    """A parameter, or a part of the state: what it starts from, and its shape, given the features' and the options."""

    start: Callable[[Shape, Options], ArrayLike]
    shape: Callable[[Shape, Options], Shape]


def constant(value: float) -> Variable:
    """One number a feature."""
    return Variable(lambda features, options: value, lambda features, options: features)


def number(start: Callable[[Shape, Options], ArrayLike]) -> Variable:
    """One number."""
    return Variable(start, lambda features, options: ())


def three_ones() -> Variable:
    """One number each for instance, layer and batch."""
    return Variable(lambda features, options: 1.0, lambda features, options: (3,))


def by_group(value: float) -> Variable:
    """One number a group of channels."""
    return Variable(lambda features, options: value, lambda features, options: (options["num_groups"],))


def by_domain(value: float) -> Variable:
    """One number a domain and feature."""
    return Variable(lambda features, options: value, lambda features, options: (len(options["domains"]), *features))


ZEROS, ONES = constant(0.0), constant(1.0)
AFFINE = {"scale": ONES, "bias": ZEROS}
RUNNING = {"mean": ZEROS, "var": ONES}


class Layer(NamedTuple):
    """What the modules of a norm call, and what they keep."""

    function: Callable[..., Any]
    parameters: Mapping[str, Variable] = AFFINE
    state: Mapping[str, Variable] = {}
    pack: Callable[..., Any] = lambda mean, var: Moments(jnp.zeros(()), mean, var)  # the state, of its variables
    signature_of: Callable[..., Any] | None = None  # whose keyword arguments the module has; of `function` if None

    @property
    def defaults(self) -> dict[str, Any]:
        """The attributes of the module that are arguments of the function, and their defaults."""
        parameters = inspect.signature(self.signature_of or self.function).parameters.values()
        by_call = {"where", "train", "dtype", "domain"}
        own = {p.name: p.default for p in parameters if p.kind == p.KEYWORD_ONLY and p.name not in by_call}
        return own | {"zero_masked": False}  # all modules take a mask

    @property
    def takes_mask(self) -> bool:
        """Whether there is anything to be masked: a norm without statistics only has a result to be made zero."""
        return "where" in inspect.signature(self.signature_of or self.function).parameters


class ScheduledMoments(NamedTuple):
    """A running state that counts its steps."""

    step: Array
    mean: Array
    var: Array


def scheduled_renorm(
    x: Array, *, running: ScheduledMoments, r_max: Any, d_max: Any, train: bool, **options: Any
) -> tuple[Array, ScheduledMoments]:
    """`batch_renorm`, whose limits may be schedules: functions of the number of steps taken."""
    limits = {n: v(running.step) if callable(v) else v for n, v in (("r_max", r_max), ("d_max", d_max))}
    moments = Moments(jnp.zeros(()), running.mean, running.var)
    y, moments = batch_renorm(x, moments, train=train, **limits, **options)
    # In the dtype that it has: an averaged state, or that of an older checkpoint, may have another than ours.
    step = jnp.asarray(running.step)
    return y, ScheduledMoments(step + jnp.asarray(train, step.dtype), moments.mean, moments.var)


BATCH_RENORM = Layer(
    scheduled_renorm,
    state=RUNNING | {"step": number(lambda features, options: 0)},  # a float: averages of states keep its dtype
    pack=ScheduledMoments,
    signature_of=batch_renorm,
)
EXAMPLE_WEIGHTED = Layer(example_weighted_batch_norm, state=RUNNING)
SWITCHABLE = Layer(switchable_norm, AFFINE | {"mean_weight": three_ones(), "var_weight": three_ones()}, RUNNING)
BATCH_CHANNEL = Layer(
    batch_channel_norm, AFFINE | {"channel_scale": by_group(1.0), "channel_bias": by_group(0.0)}, RUNNING
)
DOMAIN = Layer(domain_batch_norm, state={"mean": by_domain(0.0), "var": by_domain(1.0)})
SPLIT = DOMAIN._replace(parameters={"scale": by_domain(1.0), "bias": by_domain(0.0)})


def _matrices(channels: int, size: int) -> Shape:
    return channels // size, size, size


WHITENING = {
    "mean": ZEROS,
    "matrix": Variable(
        lambda features, options: jnp.eye(group_of(features[0], options["group_size"])),
        lambda features, options: _matrices(features[0], group_of(features[0], options["group_size"])),
    ),
}
DECORRELATED = Layer(decorrelated_batch_norm, state=WHITENING, pack=Whitening)
ITERATIVE = Layer(iterative_norm, state=WHITENING, pack=Whitening)
EVO_NORM_B0 = Layer(evo_norm_b0, AFFINE | {"v": ONES}, RUNNING)
EVO_NORM_S0 = Layer(evo_norm_s0, AFFINE | {"v": ONES})
FILTER_RESPONSE_NORM = Layer(filter_response_norm, AFFINE | {"threshold": ZEROS})
LOCAL_RESPONSE_NORM = Layer(local_response_norm, {})
GLOBAL_RESPONSE_NORM = Layer(global_response_norm, {"scale": ZEROS, "bias": ZEROS})
POSITIONAL_NORM = Layer(positional_norm)
PARTIAL_RMS_NORM = Layer(partial_rms_norm, {"scale": ONES})
SCALE_NORM = Layer(scale_norm, {"scale": number(lambda features, options: math.sqrt(math.prod(features)))})
PIXEL_NORM = Layer(pixel_norm, {})
DYNAMIC_TANH = Layer(dynamic_tanh, AFFINE | {"alpha": number(lambda features, options: 0.5)})


def features_of(x: Array, axis: checks.Axes) -> Shape:
    """The lengths of the feature axes."""
    return tuple(x.shape[a] for a in checks.canonical_axes(axis, x.ndim))


def initial(
    variable: Variable, features: Shape, options: Options, dtype: DTypeLike, given: Any = None, key: Any = None
) -> Array:
    """What a variable starts from: as the table says, or as `given`, a number or an initializer, does."""
    shape = variable.shape(features, options)
    if callable(given):
        return given(key, shape, dtype)
    start = variable.start(features, options) if given is None else given
    return jnp.broadcast_to(jnp.asarray(start, dtype), shape)


def check_given(layer: Layer, given: Options) -> None:
    """Raises where the call gives what the norm does not have."""
    for name, value in given.items():
        if value is not None and name not in layer.parameters:
            raise ValueError(f"`{name}` was given at the call of a norm that has none; leave it out.")


def call(
    layer: Layer,
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
    arguments = {name: options[name] for name in layer.defaults} | inputs | {"dtype": dtype}
    x, valid = masks.read(x, mask, "mask")
    if not layer.takes_mask:
        x, zero = masks.zeroed(x, valid, arguments.pop("zero_masked"))
        return masks.valid(zero, layer.function(x, **parameters, **arguments)), {}
    if valid is not None:
        arguments["where"] = masks.Read(valid, "mask")
    if not state:
        return layer.function(x, **parameters, **arguments), {}
    y, new = layer.function(x, running=layer.pack(**state), **parameters, train=train, **arguments)
    return y, {name: getattr(new, name) for name in state}
