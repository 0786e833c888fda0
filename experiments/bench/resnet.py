"""The ResNets that are compared, and one SGD step of them."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jax import Array

from bnjax import linen as bnn
from experiments.models.resnet import FIFTY as FIFTY
from experiments.models.resnet import ResNet as ResNet


def models(memory_switch: bool, norm: str = "BatchNorm") -> dict[str, dict[str, Any]]:
    """The attributes of a ResNet, by contender."""
    theirs, ours = (_as_batch_norm(getattr(module, norm)) for module in (nn, bnn))
    made: dict[str, dict[str, Any]] = {
        "flax.linen": {"norm": theirs},
        "bnjax, drop-in": {"norm": ours},
        "bnjax, relu inside": {"norm": ours, "relu_inside": True},
    }
    if memory_switch:
        made |= {f"{name}, remat": {**a, "remat": True} for name, a in made.items() if "bnjax" in name}
    return made


def _as_batch_norm(cls: Any) -> Any:
    """What makes the norm from the attributes of a batch norm, of which others have no running state."""
    if issubclass(cls, nn.BatchNorm):
        return cls

    def make(momentum: float, **attributes: Any) -> nn.Module:
        return cls(**attributes)

    return make


OPTIMIZER = optax.sgd(0.1, 0.9)


def step_of(model: nn.Module) -> Callable[..., Any]:
    """`(params, stats, opt_state, images, labels)` to the same first three and the loss."""

    def step(params: Any, stats: Any, opt_state: Any, images: Array, labels: Array) -> Any:
        def loss_of(params: Any) -> Any:
            variables = {"params": params, "batch_stats": stats}
            logits, new = model.apply(variables, images, mutable=["batch_stats"])
            losses = optax.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), labels)
            return losses.mean(), new.get("batch_stats", {})

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
    return variables["params"], variables.get("batch_stats", {}), OPTIMIZER.init(variables["params"])
