"""A GRU with layer norm in the cell, on scikit-learn's handwritten digits: 64 time steps, one pixel each.

    python -m experiments.train --config=configs/gru_digits_pixels.py

`python -m experiments.marks` measured:

- median accuracy of three seeds, held-out examples: 0.7583 (0.7583 to 0.7750); the mark is 0.7
- without a norm (`--config.model.norm=none`, seed 0): 0.8222
- CPU time, compilation included: 41 s at most
- time on the clock: 231 s at most, on a busy machine with 2 cores
"""

from experiments.config import Config, ModelConfig, OptimizerConfig, TrainConfig


def get_config() -> Config:
    return Config(
        mark=0.7,
        model=ModelConfig(name="recurrent", size="small_gru_pixels", norm="layer"),
        optimizer=OptimizerConfig(name="adam", learning_rate=0.01),
        train=TrainConfig(epochs=20, batch_size=64),
    )
