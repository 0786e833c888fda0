"""What the linen and the nnx modules share: everything but reading parameters and writing state."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Protocol

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike, DTypeLike

from bnjax import _checks as checks
from bnjax import _masks as masks
from bnjax._collectives.psum import AxisName, Groups
from bnjax._core.affine_map import Activation
from bnjax._core.moments import Moments
from bnjax._core.normalize import normalize_prepared
from bnjax._core.prepare import Arguments, prepare
from bnjax._core.state import Update
from bnjax._norms.batch import BatchOptions, check_virtual_batch_size, normalize_and_step
from bnjax._norms.spec import Spec
from bnjax._unstable import is_traced


class BatchNormAttributes(Protocol):
    """The attributes that both BatchNorm modules have."""

    axis: Any
    momentum: Any
    epsilon: float
    dtype: Any
    axis_name: AxisName | None
    axis_index_groups: Groups
    use_fast_variance: bool
    pivot: checks.Pivot
    virtual_batch_size: int | None
    unbiased: bool
    activation: Activation
    zero_masked: bool
    use_running_average: bool | None
    track_running_stats: bool


def check_batch_norm(module: BatchNormAttributes) -> None:
    """Raises for attributes of a BatchNorm that have no meaning, when it is made."""
    checks.choice(module.pivot, "pivot", checks.PIVOTS)
    check_virtual_batch_size(module.virtual_batch_size)
    checks.flag(module.use_running_average, "use_running_average")
    checks.flag(module.track_running_stats, "track_running_stats")
    if not module.track_running_stats:
        by_batch_only(module.use_running_average)
        for name, given in (("momentum=None", module.momentum is None), ("unbiased=True", module.unbiased)):
            if given:
                raise _no_running_state(name)


def running_state(shape: tuple[int, ...], stats: Mapping[str, Array]) -> Moments:
    """The variables of a state as moments of the features' shape; without variables numbers that are not read."""
    if not stats:
        return Moments(jnp.zeros(()), jnp.zeros(shape), jnp.ones(shape))
    count = stats["count"].reshape(shape) if "count" in stats else jnp.zeros(())
    return Moments(count, stats["mean"].reshape(shape), stats["var"].reshape(shape))


def by_batch_only(use_running_average: bool | None) -> bool:
    """`use_running_average` of a module without a running state: false. Raises where it is true."""
    if use_running_average:
        raise _no_running_state("use_running_average=True")
    return False


def _no_running_state(name: str) -> ValueError:
    return ValueError(
        f"`{name}` is about the running state, which `track_running_stats=False` does not keep; leave out one of the "
        "two."
    )


def check_state(path: Sequence[str], name: str, value: ArrayLike, want: tuple[int, ...], x: Array) -> None:
    """Raises where a variable of the module at `path`, of the state that is given, does not have the shape it needs."""
    if jnp.shape(value) != want:
        where = f"the module {'/'.join(path)}" if path else "the module at the top"
        raise ValueError(
            f"`{name}` of {where} must have the shape {want} for an input of shape {x.shape}, but its shape is "
            f"{jnp.shape(value)}; pass the state of this model, or make a new one with `init`."
        )


def check_num_features(module: Any, made_for: Sequence[int], features: Sequence[int], x: Array) -> None:
    """Raises where a module was made for features of other lengths than those of `x`."""
    if tuple(made_for) != tuple(features):
        was, want = (lengths[0] if len(lengths) == 1 else tuple(lengths) for lengths in (made_for, features))
        axes = next((name for name in ("feature_axes", "axis") if hasattr(module, name)), None)
        raise ValueError(
            f"`num_features` of {type(module).__name__} does not fit: it was made for {was}, but `x` of shape "
            f"{x.shape} has {want}; write `num_features={want}`"
            + (f", or say by `{axes}` where they are." if axes else ".")
        )


def result_dtype(*arrays: ArrayLike | None, dtype: DTypeLike | None) -> Any:
    """`dtype`, or what Flax infers from input and parameters: at least a float."""
    if dtype is not None:
        return checks.named_dtype(dtype)
    inferred = jnp.result_type(*(a for a in arrays if a is not None))
    return inferred if jnp.issubdtype(inferred, jnp.inexact) else jnp.promote_types(jnp.float32, inferred)


def floating(x: ArrayLike) -> Array:
    """`x` as it is, integers as float32."""
    x = jnp.asarray(x)
    return x if jnp.issubdtype(x.dtype, jnp.inexact) else x.astype(jnp.float32)


def not_widened(x: Array, promoted: Array) -> Array:
    """`x` as Flax would promote it, but never to a wider dtype: the rule does that, and keeps `x`."""
    x, promoted = floating(x), floating(promoted)
    return x if checks.wider(x.dtype, promoted.dtype) == promoted.dtype else promoted


def replaced(own: Any, given: ArrayLike | None, name: str, used: bool) -> Any:
    """The parameter, or what the call gives in its place."""
    if given is not None and used:
        raise ValueError(
            f"`{name}` was given at the call, but the module has its own; construct it with `use_{name}=False`."
        )
    return own if given is None else given


def call_batch_norm(
    module: BatchNormAttributes, x: Array, running: Moments, arguments: Arguments, *, train: bool, local_only: bool
) -> tuple[Array, Moments, Moments]:
    """One call of a BatchNorm module: the output, the new running state, and the moments that normalized.

    At evaluation both are the old running state.

    Args:
      module: its attributes are added to the arguments.
      x: the input.
      running: the running state.
      arguments: those of the call.
      train: normalize by the batch.
      local_only: the named axis may not exist, and one value per feature is no error, as when Flax initialises.
    """
    if not module.use_fast_variance and module.pivot not in ("running", None):
        raise ValueError(
            f"`use_fast_variance=False` means `pivot=None`, but `pivot` is {module.pivot!r}; leave out one."
        )
    pivot = module.pivot if module.use_fast_variance else None
    if pivot == "running" and not module.track_running_stats:
        pivot = "auto"
    arguments = arguments._replace(
        axis=module.axis, epsilon=module.epsilon, zero_masked=module.zero_masked, activation=module.activation
    )
    ops = prepare(x, arguments)
    if not train:
        return normalize_prepared(ops, running), running, running
    if jnp.issubdtype(ops.config.compute_dtype, jnp.complexfloating):
        running = Moments(running.count, running.mean.astype(ops.config.compute_dtype), running.var)
    options = BatchOptions(
        module.momentum, module.unbiased, module.axis_name, module.axis_index_groups, module.virtual_batch_size, pivot,
        local_only, keeps_state=module.track_running_stats,
    )  # fmt: skip
    return normalize_and_step(ops, running, options)


def not_normalized(x: ArrayLike, arguments: Arguments) -> Any:
    """`x` through all that follows a norm, without the norm."""
    follows = arguments.scale, arguments.bias, arguments.residual, arguments.activation
    nothing_follows = all(t is None for t in follows)
    if nothing_follows and not arguments.zero_masked:
        return x
    x = floating(x)
    if nothing_follows:
        x, mask = masks.read(x, arguments.where)
        return masks.zeroed(x, mask, arguments.zero_masked)[0]
    dtype = result_dtype(x, arguments.scale, arguments.bias, dtype=None)
    ones = jnp.ones((1,) * x.ndim)
    return normalize_prepared(prepare(x, arguments._replace(dtype=dtype)), Moments(jnp.ones(()), 0 * ones, ones))


def batch_update(module: BatchNormAttributes, batch: Moments) -> Update:
    """The moments of a batch with the options of a step of the running state, for `update_batch_stats`."""
    if is_traced(module.momentum):
        raise ValueError(
            "`momentum` must be a number, or None, where the moments of the batch are handed out, but it is traced; "
            "read its value outside of `jit`."
        )
    momentum = None if module.momentum is None else float(module.momentum)
    return Update(batch.count, batch.mean, batch.var, momentum, module.unbiased)


def no_moments(name: str, instead: str) -> ValueError:
    """The error where the moments of the batch are asked of a module whose state needs more than moments."""
    return ValueError(
        f"`{name}` hands out no moments, so its running state could not make one step of several micro-batches. Write "
        f"{instead} to have it make one with each batch; for `accumulate` take `BatchNorm`, or a norm without such a "
        "state."
    )


def one_value(x: Array, features: Sequence[int]) -> bool:
    """Whether `x` has one value per feature."""
    return math.prod(s for a, s in enumerate(x.shape) if a not in features) == 1


def is_matrix(w: Array, n_steps: int, error_on_non_matrix: bool) -> bool:
    """Whether spectral norm changes these weights."""
    steps = checks.concrete(n_steps)
    some = steps is None or steps >= 1
    if w.ndim > 2 and some and error_on_non_matrix:
        raise ValueError(
            f"Input is {w.ndim}D but error_on_non_matrix is True; the shape of the weights is {w.shape}. Write "
            "`error_on_non_matrix=False` to have all axes but the last taken as one."
        )
    return w.ndim >= 2 and bool(some)


class SampleNormAttributes(Protocol):
    """The attributes that all modules of layer, RMS, group and instance norm have."""

    spec: ClassVar[Spec]
    epsilon: float
    axis_name: AxisName | None
    axis_index_groups: Groups
    use_fast_variance: bool
    activation: Activation
    zero_masked: bool


def features_shape(module: SampleNormAttributes, x: Array) -> tuple[int, ...]:
    """The shape of scale and bias."""
    axes = getattr(module, module.spec.attributes["axis"]) if "axis" in module.spec.attributes else -1
    return tuple(x.shape[a] for a in checks.canonical_axes(axes, x.ndim, "feature_axes"))


def call_sample_norm(
    module: SampleNormAttributes,
    x: Array,
    scale: ArrayLike | None,
    bias: ArrayLike | None,
    *,
    mask: ArrayLike | None,
    residual: ArrayLike | None,
    dtype: DTypeLike,
) -> Array:
    """One call of a module of layer, RMS, group or instance norm."""
    arguments = {name: getattr(module, attribute) for name, attribute in module.spec.attributes.items()}
    if module.spec.centred:
        arguments["pivot"] = "auto" if module.use_fast_variance else None
    return module.spec.function(
        floating(x), scale, bias, where=masks.NamedMask(mask, "mask"), residual=residual, dtype=dtype,
        zero_masked=module.zero_masked, epsilon=module.epsilon, axis_name=module.axis_name,
        axis_index_groups=module.axis_index_groups, activation=module.activation, **arguments,
    )  # fmt: skip
