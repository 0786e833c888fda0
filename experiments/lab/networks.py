"""Small networks with a norm of one's choice."""

from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from bnjax import linen as bnn
from experiments.data import CLASSES

GROUPS = 4  # of channels, where the norm is that of groups


def norm_of(name: str, train: bool) -> Any:
    """The constructor of a norm: with a momentum that fits some hundred steps, and few groups for few channels."""
    more: dict[str, Any] = {
        "batch": {"use_running_average": not train, "momentum": 0.9},
        "group": {"num_groups": GROUPS},
    }
    return bnn.make_norm(name, **more.get(name, {}))  # type: ignore[arg-type]


class CNN(nn.Module):
    """Convolutions of 3 by 3, each with a norm and relu, the later ones of stride 2; their mean, and a head.

    A convolution is a dense layer of all patches: in a loop, and where `jax.vmap` gives each seed a kernel of its own,
    that is faster than XLA's own convolutions on a CPU.
    """

    norm: str
    widths: tuple[int, ...] = (16, 32)

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        norm = norm_of(self.norm, train)
        for i, width in enumerate(self.widths, 1):
            x = nn.Dense(width, name=f"conv{i}")(patches(x, 1 if i == 1 else 2))
            x = nn.relu(norm(name=f"norm{i}")(x))
        return nn.Dense(CLASSES, name="head")(x.mean((1, 2)))


def patches(x: Array, stride: int) -> Array:
    """The 3 by 3 points around every point, or every other one, as channels; zeros outside of the image."""
    height, width = x.shape[1:3]
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    parts = [padded[:, i : i + height : stride, j : j + width : stride] for i in range(3) for j in range(3)]
    return jnp.concatenate(parts, -1)
