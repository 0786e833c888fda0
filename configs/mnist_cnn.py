"""The article's CNN with BatchNorm on MNIST or Fashion-MNIST: 28×28, the four idx files in a folder of yours.

    python -m experiments.train --config=configs/mnist_cnn.py --config.data.directory=path/to/mnist

The files (`train-images-idx3-ubyte`, `train-labels-idx1-ubyte`, `t10k-images-idx3-ubyte`,
`t10k-labels-idx1-ubyte`) may be compressed (`.gz`).
"""

from experiments.config import Config, DataConfig, ModelConfig, OptimizerConfig, TrainConfig


def get_config() -> Config:
    return Config(
        data=DataConfig(name="idx"),
        model=ModelConfig(norm="batch", widths=(32, 64, 128), momentum=0.9),
        optimizer=OptimizerConfig(name="sgd", learning_rate=0.1, schedule="cosine"),
        train=TrainConfig(epochs=5, batch_size=128, eval_batch_size=1000),
    )
