"""scikit-learn's handwritten digits, 8 by 8, which come with it."""

import numpy as np

from experiments.config import DataConfig
from experiments.data.examples import Data

_HELD_OUT = 360  # of 1797


def load(_: DataConfig) -> Data:
    """The split never changes: NumPy keeps `RandomState`'s streams as they are."""
    from sklearn.datasets import load_digits  # here, as the compilers' environments do not have it

    images, labels = load_digits(return_X_y=True)
    images = images.reshape(-1, 8, 8, 1).astype(np.float32) / 16
    order = np.random.RandomState(0).permutation(len(labels))
    held_out, train = np.split(order, [_HELD_OUT])
    labels = labels.astype(np.int32)
    return Data(
        {"image": images[train], "label": labels[train]}, {"image": images[held_out], "label": labels[held_out]}
    )
