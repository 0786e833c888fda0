"""The contenders on JAX: the norm of every library, as its documentation says to use it, brought to one form."""

import importlib
import importlib.util
import warnings
from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from experiments.bench.work import Case

EPSILON, MOMENTUM, GROUPS = 1e-5, 0.99, 32


class Layer(NamedTuple):
    """A norm with what follows it, as a pure function of its variables and its state.

    `apply(variables, state, x, residual)` gives the output and the new state.
    """

    apply: Callable[[Any, Any, Array, Array | None], tuple[Array, Any]]
    variables: Any
    state: Any
    channels_first: bool = False


class Contender(NamedTuple):
    """Who takes part: `build` gives the layer of a case, or `None` where the library has no such norm."""

    name: str
    package: str
    build: Callable[[Case], Layer | None]

    @property
    def ours(self) -> bool:
        return self.package == "bnjax"

    @property
    def installed(self) -> bool:
        return importable(self.package)


def importable(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def library(name: str) -> Any:
    """A module, imported without the warnings that are its own affair."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module(name)


def program(layer: Layer, training: bool) -> Callable[..., Any]:
    """The whole of the work as one function, to be compiled as one."""

    def forward(variables: Any, state: Any, x: Any, residual: Any, _: Any) -> Any:
        return layer.apply(variables, state, x, residual)[0]

    def both(variables: Any, state: Any, x: Any, residual: Any, dy: Any) -> Any:
        def apply(variables: Any, x: Any, residual: Any) -> Any:
            return layer.apply(variables, state, x, residual)

        y, pull, new = jax.vjp(apply, variables, x, residual, has_aux=True)
        return y, new, pull(dy)

    return both if training else forward


def follow(case: Case, y: Array, residual: Array | None) -> Array:
    """The residual and relu, outside the norm."""
    y = y if residual is None else y + residual
    return jax.nn.relu(y) if case.work.relu else y


def bnjax_function(case: Case, inside: bool) -> Layer | None:
    """The functions of bnjax, residual and relu inside the rule or outside."""
    bnjax = library("bnjax")
    norm = getattr(bnjax, f"{case.work.norm}_norm", None)
    if norm is None or (inside and not case.work.relu):
        return None
    zeros, ones = jnp.zeros(case.features), jnp.ones(case.features)
    variables = (ones,) if case.work.norm == "rms" else (ones, zeros)
    state = bnjax.Moments(jnp.zeros(()), zeros, ones) if case.work.norm == "batch" else None

    def call(variables: Any, state: Any, x: Array, **follows: Any) -> tuple[Array, Any]:
        if not case.work.training:
            return bnjax.normalize(x, state, *variables, epsilon=EPSILON, **follows), state
        if case.work.norm == "batch":
            return norm(x, state, *variables, epsilon=EPSILON, momentum=MOMENTUM, **follows)
        return norm(x, *variables, epsilon=EPSILON, **follows), state

    def apply(variables: Any, state: Any, x: Array, residual: Array | None) -> tuple[Array, Any]:
        if inside:
            return call(variables, state, x, residual=residual, activation="relu")
        y, state = call(variables, state, x)
        return follow(case, y, residual), state

    return Layer(apply, variables, state)


CLASSES = {"batch": "BatchNorm", "layer": "LayerNorm", "rms": "RMSNorm", "group": "GroupNorm"}


def class_of(module: ModuleType, case: Case, classes: dict[str, str] = CLASSES) -> Any:
    return getattr(module, classes[case.work.norm], None)


def few(case: Case) -> Array:
    """A small input of the same rank and features, to initialise with."""
    return jnp.zeros((2,) * (len(case.shape) - 1) + case.shape[-1:], case.dtype)


def flax_arguments(case: Case) -> dict[str, Any]:
    """What the classes of Flax, and those that replace them, are made with."""
    batch = {"use_running_average": not case.work.training, "momentum": MOMENTUM}
    return {"epsilon": EPSILON, "dtype": jnp.dtype(case.dtype), **(batch if case.work.norm == "batch" else {})}


def linen(case: Case, module: str) -> Layer | None:
    """`flax.linen`, and what replaces it."""
    cls = class_of(library(module), case)
    if cls is None:
        return None
    norm = cls(**flax_arguments(case))
    variables = dict(jax.jit(norm.init)(jax.random.key(0), few(case)))

    def apply(params: Any, state: Any, x: Array, residual: Array | None) -> tuple[Array, Any]:
        y, new = norm.apply({"params": params, **state}, x, mutable=list(state))
        return follow(case, y, residual), new

    return Layer(apply, variables.pop("params"), variables)


def nnx(case: Case, module: str) -> Layer | None:
    """`flax.nnx`, and what replaces it."""
    from flax import nnx

    cls = class_of(library(module), case)
    if cls is None:
        return None

    def split(norm: Any) -> Any:
        return nnx.split(norm, nnx.Param, ...)

    norm = cls(case.features, **flax_arguments(case), rngs=nnx.Rngs(0))
    graph, variables, state = split(norm)

    def apply(variables: Any, state: Any, x: Array, residual: Array | None) -> tuple[Array, Any]:
        norm = nnx.merge(graph, variables, state, copy=True)
        y = norm(x)
        return follow(case, y, residual), split(norm)[2]

    return Layer(apply, variables, state)


def haiku(case: Case) -> Layer | None:
    """dm-haiku."""
    hk = library("haiku")

    def forward(x: Array, training: bool) -> Array:
        if case.work.norm == "batch":
            return hk.BatchNorm(True, True, MOMENTUM, EPSILON)(x, is_training=training)
        if case.work.norm == "group":
            return hk.GroupNorm(GROUPS, eps=EPSILON)(x)
        if case.work.norm == "rms":
            return hk.RMSNorm(-1, eps=EPSILON)(x)
        return hk.LayerNorm(-1, True, True, eps=EPSILON)(x)

    model = hk.transform_with_state(forward)
    variables, state = model.init(None, few(case), training=True)  # there is no other way to its state
    if case.work.norm == "batch":
        state["batch_norm/~/var_ema"]["average"] += 1  # where all others begin

    def apply(variables: Any, state: Any, x: Array, residual: Array | None) -> tuple[Array, Any]:
        y, state = model.apply(variables, state, None, x, case.work.training)
        return follow(case, y, residual), state

    return Layer(apply, variables, state)


def equinox(case: Case) -> Layer | None:
    """equinox: one example at a time, channels first; `mode="ema"` would not normalize by the batch."""
    eqx = library("equinox")
    if case.work.norm == "batch":
        norm, state = eqx.nn.make_with_state(eqx.nn.BatchNorm)(
            case.features, "batch", EPSILON, momentum=MOMENTUM, mode="batch", inference=not case.work.training
        )
    elif case.work.norm == "group":
        norm, state = eqx.nn.GroupNorm(GROUPS, case.features, EPSILON), None
    else:
        bias = case.work.norm != "rms"
        norm, state = getattr(eqx.nn, CLASSES[case.work.norm])(case.features, EPSILON, use_bias=bias), None
    variables, static = eqx.partition(norm, eqx.is_inexact_array)
    rows = len(case.shape) - 1 if case.work.norm in ("layer", "rms") else 1

    def apply(variables: Any, state: Any, x: Array, residual: Array | None) -> tuple[Array, Any]:
        call: Any = eqx.combine(variables, static)
        if case.work.norm == "batch":
            y, state = jax.vmap(call, in_axes=(0, None), out_axes=(0, None), axis_name="batch")(x, state)
        else:
            for _ in range(rows):
                call = jax.vmap(call)
            y = call(x)
        return follow(case, y.astype(x.dtype), residual), state

    return Layer(apply, variables, state, channels_first=rows == 1)


def keras(case: Case) -> Layer | None:
    """Keras 3 on JAX."""
    lib = library("keras")
    classes = {**CLASSES, "batch": "BatchNormalization", "layer": "LayerNormalization",
               "rms": "RMSNormalization", "group": "GroupNormalization"}  # fmt: skip
    cls = class_of(lib.layers, case, classes)
    if cls is None or lib.backend.backend() != "jax":
        return None
    options: dict[str, dict[str, Any]] = {"batch": {"momentum": MOMENTUM}, "group": {"groups": GROUPS}}
    norm = cls(
        epsilon=EPSILON,
        dtype="mixed_bfloat16" if case.dtype == "bfloat16" else case.dtype,
        **options.get(case.work.norm, {}),
    )
    norm.build(case.shape)
    training = {"training": case.work.training} if case.work.norm == "batch" else {}

    def apply(variables: Any, state: Any, x: Array, residual: Array | None) -> tuple[Array, Any]:
        y, state = norm.stateless_call(variables, state, x, **training)
        return follow(case, y, residual), state

    return Layer(apply, [v.value for v in norm.trainable_variables], [v.value for v in norm.non_trainable_variables])


CONTENDERS = (
    Contender("bnjax, relu inside", "bnjax", partial(bnjax_function, inside=True)),
    Contender("bnjax, relu outside", "bnjax", partial(bnjax_function, inside=False)),
    Contender("bnjax.linen", "bnjax", partial(linen, module="bnjax.linen")),
    Contender("bnjax.nnx", "bnjax", partial(nnx, module="bnjax.nnx")),
    Contender("flax.linen", "flax", partial(linen, module="flax.linen")),
    Contender("flax.nnx", "flax", partial(nnx, module="flax.nnx")),
    Contender("haiku", "haiku", haiku),
    Contender("equinox", "equinox", equinox),
    Contender("keras", "keras", keras),
)
