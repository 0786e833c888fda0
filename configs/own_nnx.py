"""A model of your own with Flax's nnx, on data and a task that come with the program.

    python -m experiments.train --config=configs/own_nnx.py

It has a batch norm and dropout, and trains on any number of devices and processes.
"""

from flax import nnx
from jax import Array

from experiments.config import Config, DataConfig, ModelConfig, OptimizerConfig, TrainConfig
from experiments.models.norms import Call, NormChoice, nnx_norm


class Net(nnx.Module):
    """Two dense layers, with the norm of the config and dropout between them."""

    def __init__(self, norm: NormChoice, inputs: int, classes: int, dropout: float = 0.1, *, rngs: nnx.Rngs):
        self.active = norm.active
        self.hidden = nnx.Linear(inputs, 64, rngs=rngs)
        self.norm = nnx_norm(norm, "dense", 64, rngs=rngs)
        self.dropout = nnx.Dropout(dropout, rngs=rngs)
        self.head = nnx.Linear(64, classes, rngs=rngs)

    def __call__(self, x: Array, *, train: bool, mask: Array) -> Array:
        """Logits (n, classes) of examples (n, ...); `mask` (n,) says which count."""
        call = Call(train, mask, self.active)
        x = call.relu(self.norm, self.hidden(x.reshape(len(x), -1)))
        return self.head(call.dropout(self.dropout, x))


def get_config() -> Config:
    return Config(
        data=DataConfig(name="digits"),
        model=ModelConfig(name=Net, norm="batch"),
        optimizer=OptimizerConfig(name="sgd", learning_rate=0.1),
        train=TrainConfig(epochs=5, batch_size=64),
    )
