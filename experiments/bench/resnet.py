"""ResNet as in Flax's ImageNet example, with the norm as an argument, and one SGD step of it."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jax import Array

from bnjax import linen as bnn

FIFTY = (3, 4, 6, 3)  # blocks in every stage


class Bottleneck(nn.Module):
    """Three convolutions beside a shortcut."""

    filters: int
    conv: Any
    norm: Callable[..., Array]
    strides: tuple[int, int] = (1, 1)

    @nn.compact
    def __call__(self, x: Array) -> Array:
        y = self.norm(self.conv(self.filters, (1, 1))(x))
        y = self.norm(self.conv(self.filters, (3, 3), self.strides)(y))
        y = self.conv(self.filters * 4, (1, 1))(y)

        def shortcut() -> Array:
            if x.shape == y.shape:
                return x
            projected = self.conv(self.filters * 4, (1, 1), self.strides, name="conv_proj")(x)
            return self.norm(projected, relu=False, name="norm_proj")

        return self.norm(y, shortcut=shortcut, scale_init=nn.initializers.zeros)


class Stem(nn.Module):
    """What comes before the stages: a quarter of the resolution."""

    filters: int
    conv: Any
    norm: Callable[..., Array]

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = self.conv(self.filters, (7, 7), (2, 2), padding=[(3, 3), (3, 3)], name="conv_init")(x)
        return nn.max_pool(self.norm(x, name="bn_init"), (3, 3), strides=(2, 2), padding="SAME")


class Stage(nn.Module):
    """Blocks in a row, at one resolution."""

    first: int  # the number of its first block in the network
    blocks: int
    halves: bool  # the resolution, in its first block
    filters: int
    conv: Any
    norm: Callable[..., Array]

    @nn.compact
    def __call__(self, x: Array) -> Array:
        for j in range(self.blocks):
            strides = (2, 2) if self.halves and j == 0 else (1, 1)
            x = Bottleneck(self.filters, self.conv, self.norm, strides, name=f"Bottleneck_{self.first + j}")(x)
        return x


class ResNet(nn.Module):
    """Version 1.5: the strides are in the 3x3 convolutions."""

    norm: Any  # a class with the attributes of `flax.linen.BatchNorm`
    relu_inside: bool = False  # whether it takes the residual and relu, too
    remat: bool = False  # `bnjax.linen.remat` of the stem and of every stage
    stages: Sequence[int] = FIFTY
    filters: int = 64
    classes: int = 1000
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool = True) -> Array:
        conv = partial(nn.Conv, use_bias=False, dtype=self.dtype)

        def norm(
            x: Array, shortcut: Callable[[], Array | None] = lambda: None, relu: bool = True, **more: Any
        ) -> Array:
            make = partial(
                self.norm, use_running_average=not train, momentum=0.9, epsilon=1e-5, dtype=self.dtype, **more
            )
            if self.relu_inside:
                return make(activation="relu" if relu else None)(x, residual=shortcut())
            y = make()(x)  # before the shortcut, as in Flax's example: the order decides a per cent of memory
            residual = shortcut()
            y = y if residual is None else residual + y
            return nn.relu(y) if relu else y

        stem = bnn.remat(Stem) if self.remat else Stem
        stage = bnn.remat(Stage) if self.remat else Stage
        x = stem(self.filters, conv, norm, name="Stem")(x)
        for i, blocks in enumerate(self.stages):
            x = stage(sum(self.stages[:i]), blocks, i > 0, self.filters * 2**i, conv, norm, name=f"Stage_{i}")(x)
        x = jnp.mean(x, (1, 2))
        return nn.Dense(self.classes, dtype=self.dtype)(x)


def models(memory_switch: bool) -> dict[str, dict[str, Any]]:
    """The attributes of a ResNet, by contender."""
    made: dict[str, dict[str, Any]] = {
        "flax.linen": {"norm": nn.BatchNorm},
        "bnjax, drop-in": {"norm": bnn.BatchNorm},
        "bnjax, relu inside": {"norm": bnn.BatchNorm, "relu_inside": True},
    }
    if memory_switch:
        made |= {f"{name}, remat": {**a, "remat": True} for name, a in made.items() if "bnjax" in name}
    return made


OPTIMIZER = optax.sgd(0.1, 0.9)


def step_of(model: nn.Module) -> Callable[..., Any]:
    """`(params, stats, opt_state, images, labels)` to the same first three and the loss."""

    def step(params: Any, stats: Any, opt_state: Any, images: Array, labels: Array) -> Any:
        def loss_of(params: Any) -> Any:
            variables = {"params": params, "batch_stats": stats}
            logits, new = model.apply(variables, images, mutable=["batch_stats"])
            losses = optax.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), labels)
            return losses.mean(), new["batch_stats"]

        (loss, new_stats), grads = jax.value_and_grad(loss_of, has_aux=True)(params)
        updates, opt_state = OPTIMIZER.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), new_stats, opt_state, loss

    return step


def images_and_labels(batch: int, size: int, dtype: Any) -> tuple[jax.ShapeDtypeStruct, jax.ShapeDtypeStruct]:
    """Shapes of a batch."""
    return jax.ShapeDtypeStruct((batch, size, size, 3), dtype), jax.ShapeDtypeStruct((batch,), jnp.int32)


def initial(model: nn.Module, images: Any) -> tuple[Any, Any, Any]:
    """Parameters, running statistics and optimizer state; under `jax.eval_shape` their shapes."""
    variables = model.init(jax.random.key(0), jnp.zeros((1, *images.shape[1:]), images.dtype), train=False)
    return variables["params"], variables["batch_stats"], OPTIMIZER.init(variables["params"])
