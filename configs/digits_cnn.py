"""The article's CNN with BatchNorm on scikit-learn's handwritten digits (8×8, no download).

    python -m experiments.train --config=configs/digits_cnn.py

TODO accuracy.
"""

from experiments.config import Config, DataConfig, ModelConfig, OptimizerConfig, TrainConfig


def get_config() -> Config:
    return Config(
        data=DataConfig(name="digits"),
        model=ModelConfig(norm="batch", widths=(32, 64, 128), momentum=0.9),
        optimizer=OptimizerConfig(name="sgd", learning_rate=0.1, schedule="cosine"),
        train=TrainConfig(epochs=12, batch_size=64, eval_every=4),
    )
