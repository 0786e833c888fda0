"""What is compiled: every norm that Flax has, alone and in models. Imported where nothing but JAX and Flax may be."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array, lax

from bnjax import linen as bnn
from experiments.bench import resnet
from experiments.bench.work import shape_name
from experiments.models.encoder import Encoder
from experiments.models.layers import linen_layers
from experiments.models.norms import Call
from experiments.models.resnet_parts import Plan, Style, add_stage, run_stage

CLASSES = {  # how a norm is called here, its class, and what else the class is given
    "layer norm": ("LayerNorm", {}),
    "RMS norm": ("RMSNorm", {}),
    "batch norm": ("BatchNorm", {"use_running_average": False}),
    "group norm": ("GroupNorm", {}),
    "instance norm": ("InstanceNorm", {}),
    "weight norm": ("WeightNorm", {}),
    "spectral norm": ("SpectralNorm", {}),
}  # fmt: skip
OF_IMAGES = ("batch norm", "group norm", "instance norm")
OF_WEIGHTS = ("weight norm", "spectral norm")  # hold the layer whose weights they normalize
EXAMPLES, SIZE = 32, 224  # of a step, for each device; pixels
SEQUENCES, IMAGES = (32, 512, 768), (32, 56, 56, 256)  # what the encoder and the bottlenecks are given


class Settings(NamedTuple):
    """What a task says of the programs."""

    dtype: str
    devices: int  # of the target
    blocks: int  # of the encoder
    memory_switch: bool


class Program(NamedTuple):
    """Something to compile: a function, its operands, which of them are split over the devices, and which donated."""

    what: str
    contender: str
    make: Callable[[], Callable[..., Any]]  # a new function every time, or JAX would not trace it again
    operands: tuple[Any, ...]
    split: tuple[bool, ...]
    donated: tuple[int, ...] = ()

    @property
    def alone(self) -> bool:
        """Whether one device is enough for it."""
        return not any(self.split)


class Row(NamedTuple):
    """Programs that are compared: all do the same, one with each contender."""

    name: str
    programs: Callable[[str, Settings], Iterator[Program]]


class Alone(NamedTuple):
    """A norm with what follows it, and the shape of its input."""

    norm: str
    shape: tuple[int, ...]
    relu: bool = False
    residual: bool = False

    @property
    def name(self) -> str:
        follows = " + residual" * self.residual + " + relu" * self.relu
        return f"{self.norm}{follows}, {shape_name(self.shape)}"

    def programs(self, what: str, settings: Settings) -> Iterator[Program]:
        """Flax's norm, ours in its place, and ours with residual and relu inside, forward and backward."""
        dtype = jnp.dtype(settings.dtype)
        inside = {"activation": "relu" if self.relu else None} if self.relu or self.residual else None
        for contender, module, more in (
            ("flax.linen", nn, {}), ("bnjax, drop-in", bnn, {}), ("bnjax, relu inside", bnn, inside)
        ):  # fmt: skip
            if more is None:
                continue
            norm = _norm(module, self.norm, dtype, more)
            x = jax.ShapeDtypeStruct(self.shape, dtype)
            variables = jax.eval_shape(partial(norm.init, **_arguments(self.norm)), jax.random.key(0), x)
            apply = partial(_followed, norm, self, bool(more))
            residual = x if self.residual else None
            y = jax.eval_shape(apply, variables, x, residual)
            make = partial(_forward_and_backward, apply)
            yield Program(what, contender, make, (variables, x, residual, y), (False,) * 4)


def _norm(module: Any, norm: str, dtype: Any, more: dict[str, Any]) -> nn.Module:
    name, settings = CLASSES[norm]
    if norm in OF_WEIGHTS:
        return getattr(module, name)(nn.Dense(4096, dtype=dtype))
    return getattr(module, name)(dtype=dtype, **settings, **more)


def _arguments(norm: str) -> dict[str, Any]:
    """What it is called with beside the input."""
    return {"update_stats": True} if norm == "spectral norm" else {}


def _followed(norm: nn.Module, row: Alone, inside: bool, variables: Any, x: Array, residual: Array | None) -> Array:
    if inside:
        y, _ = norm.apply(variables, x, residual=residual, mutable="batch_stats")
        return y
    y, _ = norm.apply(variables, x, **_arguments(row.norm), mutable="batch_stats")
    y = y if residual is None else y + residual
    return nn.relu(y) if row.relu else y


def _forward_and_backward(apply: Callable[..., Array]) -> Callable[..., Any]:
    """Output and gradients in one program, with a barrier between.

    Without it XLA would join parts of the backward pass to the forward pass, which it cannot do in a model. Running
    statistics are left to the models.
    """

    def both(variables: Any, x: Array, residual: Array | None, dy: Array) -> Any:
        def forward(params: Any, x: Array, residual: Array | None) -> Array:
            return apply({**variables, "params": params}, x, residual)

        y, pull = jax.vjp(forward, variables["params"], x, residual)
        y, dy = lax.optimization_barrier((y, dy))
        return y, pull(dy)

    return both


def encoder_programs(norm: str, what: str, settings: Settings) -> Iterator[Program]:
    """The gradients of an encoder."""
    dtype = jnp.dtype(settings.dtype)
    for contender, module in (("flax.linen", nn), ("bnjax, drop-in", bnn)):
        made = getattr(module, CLASSES[norm][0])
        model = Encoder(made, settings.blocks, features=SEQUENCES[-1], dtype=dtype)
        yield _gradients(f"{what} ({settings.blocks} blocks)", contender, model, SEQUENCES, dtype)


def bottleneck_programs(norm: str, what: str, settings: Settings) -> Iterator[Program]:
    """The gradients of three blocks of a ResNet."""
    dtype = jnp.dtype(settings.dtype)
    name, _ = CLASSES[norm]
    for contender, module, inside in (
        ("flax.linen", nn, False), ("bnjax, drop-in", bnn, False), ("bnjax, relu inside", bnn, True)
    ):  # fmt: skip
        layers = linen_layers(getattr(module, name), dtype)
        plan = Plan(stages=(3,), filters=IMAGES[-1] // 4)
        add = partial(
            add_stage, layers=layers, plan=plan, style=Style(inside=inside), number=0, inputs=IMAGES[-1]
        )  # fmt: skip
        model = layers.part(add, lambda net, x: run_stage(net, x, Call(train=True)))
        yield _gradients(what, contender, model, IMAGES, dtype)


def _gradients(what: str, contender: str, model: nn.Module, shape: tuple[int, ...], dtype: Any) -> Program:
    x = jax.ShapeDtypeStruct(shape, dtype)
    variables = jax.eval_shape(model.init, jax.random.key(0), x)
    return Program(what, contender, partial(_gradients_of, model), (variables, x), (False, False))


def _gradients_of(model: nn.Module) -> Callable[..., Any]:
    def gradients(variables: Any, x: Array) -> Any:
        def loss(params: Any, x: Array) -> Any:
            y, new = model.apply({**variables, "params": params}, x, mutable="batch_stats")
            return (y.astype(jnp.float32) ** 2).mean(), new

        return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(variables["params"], x)

    return gradients


def step_programs(
    norm: str, what: str, settings: Settings, examples: int = EXAMPLES, size: int = SIZE, **attributes: Any
) -> Iterator[Program]:
    """An SGD step of ResNet-50, the examples split over all devices."""
    name, _ = CLASSES[norm]
    for contender, chosen in resnet.models(settings.memory_switch, name).items():
        model = resnet.ResNet(dtype=jnp.dtype(settings.dtype), **chosen, **attributes)
        batch = resnet.images_and_labels(examples * settings.devices, size, model.dtype)
        state = jax.eval_shape(partial(resnet.initial, model, batch[0]))
        make = partial(resnet.step_of, model)
        yield Program(what, contender, make, (*state, *batch), (False,) * 3 + (True,) * 2, (0, 1, 2))


ALONE = (
    *(Alone("layer norm", shape) for shape in ((8192, 1024), (8192, 4096), (16, 512, 768))),
    Alone("layer norm", (16, 512, 768), residual=True),
    *(Alone("RMS norm", shape) for shape in ((8192, 1024), (8192, 4096), (16, 512, 768))),
    *(Alone(norm, (32, 56, 56, 64)) for norm in OF_IMAGES),
    *(Alone(norm, shape, relu=True) for norm in OF_IMAGES for shape in ((32, 56, 56, 64), (32, 28, 28, 512))),
    *(Alone(norm, (32, 56, 56, 256), relu=True, residual=True) for norm in OF_IMAGES),
    *(Alone(norm, (8192, 1024)) for norm in OF_WEIGHTS),
)
STEP = "ResNet-50 step"
ROWS = (
    *(Row(alone.name, alone.programs) for alone in ALONE),
    *(Row(f"encoder, {norm}", partial(encoder_programs, norm)) for norm in ("layer norm", "RMS norm")),
    *(Row(f"bottlenecks, {norm}", partial(bottleneck_programs, norm)) for norm in OF_IMAGES),
    *(Row(f"{STEP}, {norm}", partial(step_programs, norm)) for norm in OF_IMAGES),
)


def chosen(works: tuple[str, ...]) -> list[Row]:
    """The rows whose name begins with one of `works`; all of them if there is none."""
    return [row for row in ROWS if row.name.startswith(works or "")]
