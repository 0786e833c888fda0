"""An LSTM with batch norm in the cell, on scikit-learn's handwritten digits: 64 time steps, one pixel each.

    python -m experiments.train --config=configs/lstm_digits_pixels.py

Batch norm keeps statistics for each time step (arXiv 1603.09025).

`python -m experiments.marks` measured:

- median accuracy of three seeds, held-out examples: 0.8028 (0.7944 to 0.8222); the mark is 0.75
- without a norm (`--config.model.norm=none`, seed 0): 0.8444
- CPU time, compilation included: 36 s at most
- time on the clock: 218 s at most, on a busy machine with 2 cores
"""

from experiments.config import Config, ModelConfig, OptimizerConfig, TrainConfig


def get_config() -> Config:
    return Config(
        mark=0.75,
        model=ModelConfig(name="recurrent", size="small_pixels", norm="batch"),
        optimizer=OptimizerConfig(name="adam", learning_rate=0.01),
        train=TrainConfig(epochs=20, batch_size=64),
    )
