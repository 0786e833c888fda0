"""The article's CNN with BatchNorm on scikit-learn's handwritten digits (8×8, no download).

    python -m experiments.train --config=configs/digits_cnn.py

ends at 98.3 to 99.4 % of the held-out digits for seeds 0, 1 and 2 (nnx, seed 0: 99.2 %), in 7 to 16 seconds on two
CPU cores, compilation included. Without BatchNorm (`--config.model.norm=none`) it is 98.6 %, and the first 95 % take
45 steps instead of 26.

The network follows the article that this project implements; BatchNorm is the paper's where they differ: mean zero,
scale one at the start, and running statistics at evaluation.
"""

from experiments.config import Config, DataConfig, ModelConfig, OptimizerConfig, TrainConfig


def get_config() -> Config:
    return Config(
        data=DataConfig(name="digits"),
        model=ModelConfig(norm="batch", widths=(32, 64, 128), momentum=0.9),
        optimizer=OptimizerConfig(name="sgd", learning_rate=0.1, schedule="cosine"),
        train=TrainConfig(epochs=12, batch_size=64, eval_every=4),
    )
