"""A model, data and a task of your own: all three stand in this file, and nothing of the program is changed.

    python -m experiments.train --config=configs/own.py

learns a curve from noisy points, and ends at a mean squared error of about 0.03 on points that are held out. The noise
alone is 0.01, and the variance of the curve 0.5.
"""

from typing import Any

import jax
import numpy as np
from flax import linen as nn

from experiments.config import Config, DataConfig, ModelConfig, OptimizerConfig, TrainConfig
from experiments.data import Data
from experiments.models.norms import NormChoice, norms_of
from experiments.tasks.classes import loss, panel
from experiments.tasks.task import Sums, Task, View


class Net(nn.Module):
    """Three dense layers, with the norm of the config and dropout."""

    norm: NormChoice
    dropout: float = 0.0
    width: int = 64

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool, mask: jax.Array) -> jax.Array:
        """The heights (n,) of points (n, 1); `mask` (n,) says which count."""
        norms = norms_of(self.norm, train, mask)
        for _ in range(2):
            x = norms.relu(nn.Dense(self.width)(x))
            x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return nn.Dense(1)(x)[:, 0]


def load(_: DataConfig) -> Data:
    """Points (n, 1) and heights (n,) of a sine curve, with noise of a standard deviation of 0.1."""
    random = np.random.RandomState(0)
    x = random.uniform(-3, 3, (1200, 1)).astype(np.float32)
    y = (np.sin(2 * x[:, 0]) + random.normal(scale=0.1, size=1200)).astype(np.float32)
    return Data(train={"x": x[:1000], "y": y[:1000]}, held_out={"x": x[1000:], "y": y[1000:]})


def view(batch: Any, keys: Any = None) -> View:
    """What the model gets, which of it counts, and what should come out."""
    return View(inputs=batch["x"], mask=batch["mask"], targets=batch["y"], weight=batch["mask"])


def measure(outputs: jax.Array, view: View, train: bool) -> Sums:
    """Sums over the points that count."""
    weight = view.weight.astype(outputs.dtype)
    return {"loss": (weight * (outputs - view.targets) ** 2).sum(), "count": weight.sum()}


REGRESSION = Task(
    needs=("x", "y"),
    view=view,
    measure=measure,
    means=lambda sums: {"loss": sums["loss"] / sums["count"]},
    formats={"loss": ".4f"},
    verdict=lambda record: f"Mean squared error on the held-out points: {record['eval/loss']:.4f}.",
    panels=lambda records: [panel("Mean squared error", records, loss)],
    outputs=lambda view, classes: view.targets.shape,
)


def get_config() -> Config:
    return Config(
        task=REGRESSION,
        data=DataConfig(name=load),
        model=ModelConfig(name=Net, norm="batch"),
        optimizer=OptimizerConfig(name="adam", learning_rate=0.01),
        train=TrainConfig(epochs=60, batch_size=50),
    )
