"""VGG-11 with an eighth of its widths and batch norm, on scikit-learn's handwritten digits (8×8, no download).

    python -m experiments.train --config=configs/vgg_digits.py

The published dropout of one half is too much for so narrow a network, which sees so few images.

`python -m experiments.marks` measured:

- median accuracy of three seeds, held-out examples: 0.9500 (0.9500 to 0.9556); the mark is 0.9
- without a norm (`--config.model.norm=none`, seed 0): 0.3250
- CPU time, compilation included: 44 s at most
- time on the clock: 234 s at most, on a busy machine with 2 cores
"""

from experiments.config import Config, ModelConfig, OptimizerConfig, TrainConfig


def get_config() -> Config:
    return Config(
        mark=0.9,
        model=ModelConfig(name="vgg", norm="batch", dropout=0.2),
        optimizer=OptimizerConfig(name="adam", learning_rate=0.002),
        train=TrainConfig(epochs=6, batch_size=64),
    )
