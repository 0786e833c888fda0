"""Text that comes with Python: the topics of its `help`, as characters."""

from pydoc_data.topics import topics

import numpy as np

from experiments.config import DataConfig
from experiments.data.examples import Data

_HELD_OUT = 0.1  # of the text, its end


def load(config: DataConfig) -> Data:
    """Pieces of `config.length` characters, one behind the other. Another release of Python may have another text."""
    text = np.array([*"\n\n".join(topics[name] for name in sorted(topics))])
    letters, tokens = np.unique(text, return_inverse=True)
    pieces = len(tokens) // config.length
    cut = 1 + tokens[: pieces * config.length].reshape(pieces, config.length).astype(np.int32)
    train, held_out = np.split(cut, [round((1 - _HELD_OUT) * pieces)])
    return Data({"tokens": train}, {"tokens": held_out}, classes=1 + len(letters))
