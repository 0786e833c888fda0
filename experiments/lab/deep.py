"""Deep networks of equal layers, as one layer that is scanned, so that fifty compile as fast as five."""

from typing import Any

from flax import linen as nn
from jax import Array

from bnjax import linen as bnn
from experiments.data import CLASSES

STARTS = {
    "lecun": nn.initializers.lecun_normal(),
    "he": nn.initializers.he_normal(),
    "orthogonal": nn.initializers.orthogonal(),
}


class Layer(nn.Module):
    """A dense layer, a norm, an activation."""

    norm: str
    activation: str
    start: str
    train: bool

    @nn.compact
    def __call__(self, x: Array, _: Any) -> tuple[Array, None]:
        x = nn.Dense(x.shape[-1], kernel_init=STARTS[self.start], name="dense")(x)
        if self.norm != "none":
            state = {"use_running_average": not self.train, "momentum": 0.9} if self.norm == "batch" else {}
            x = bnn.make_norm(self.norm, **state)(name="norm")(x)  # type: ignore[arg-type]
        return getattr(nn, self.activation)(x), None


class Deep(nn.Module):
    """Equal layers in a row, as wide as the input, and a head."""

    norm: str
    depth: int
    activation: str
    start: str = "lecun"

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        layers = nn.scan(
            Layer, variable_axes={"params": 0, "batch_stats": 0}, split_rngs={"params": True}, length=self.depth
        )
        x, _ = layers(self.norm, self.activation, self.start, train, name="layers")(x, None)
        return nn.Dense(CLASSES, name="head")(x)
