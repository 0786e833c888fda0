"""Models, data and tasks as a user would hand them in: small, with a norm of the batch and dropout."""

import jax
import numpy as np
from flax import linen as nn
from flax import nnx

from experiments.data import Data
from experiments.models.norms import norms_of


class Tokens(nn.Module):
    """The logits of tokens from the tokens beside them, the padding left out; not causal."""

    classes: int
    norm: object
    dropout: float = 0.25

    @nn.compact
    def __call__(self, x, *, train, mask):
        return decoded(self, nn.Embed(self.classes, 6)(x), train, mask)


class Pairs(nn.Module):
    """The logits of a target from the mean of the source and the tokens before."""

    classes: int
    norm: object
    dropout: float = 0.25

    @nn.compact
    def __call__(self, x, *, train, mask):
        embed = nn.Embed(self.classes, 6)
        source = nn.Dense(6)(embed(x["source"])).sum(1, keepdims=True, where=mask["source"][..., None])
        return decoded(self, embed(x["target"]) + source, train, mask["target"])


def decoded(self, y, train, mask):
    y = norms_of(self.norm, train, mask)(y)
    y = nn.Dropout(self.dropout, deterministic=not train)(nn.relu(nn.Dense(5)(y)))
    return nn.Dense(self.classes)(y)


class NnxImages(nnx.Module):
    """Images through a dense layer and dropout, for nnx."""

    def __init__(self, classes, dropout=0.25, *, rngs):
        self.dense = nnx.Linear(16, 5, rngs=rngs)
        self.dropout = nnx.Dropout(dropout, rngs=rngs)
        self.head = nnx.Linear(5, classes, rngs=rngs)

    def __call__(self, x, *, train):
        y = jax.nn.relu(self.dense(x.reshape(len(x), -1)))
        return self.head(self.dropout(y, deterministic=not train))


def sequences(n=75, length=5, classes=6):
    """Tokens that follow each other, in sequences of different lengths, as text and as pairs."""
    rng = np.random.default_rng(0)
    tokens = (1 + (rng.integers(1, classes, (n, 1)) + np.arange(length)) % (classes - 1)).astype(np.int32)
    mask = np.arange(length) < rng.integers(2, length + 1, (n, 1))
    return {"tokens": tokens, "tokens_mask": mask, "source": tokens, "target": tokens[:, ::-1], "target_mask": mask}


def images(n=75):
    """Noise, and labels that it decides."""
    image = np.random.default_rng(0).normal(size=(n, 4, 4, 1)).astype(np.float32)
    return {"image": image, "label": (image[:, 0, :, 0].argmax(-1)).astype(np.int32)}


def load(config):
    """Both kinds of sequences, of which each task takes what it needs."""
    examples = sequences(length=config.length)
    return Data(examples, {name: array[:20] for name, array in examples.items()}, classes=6)


def load_images(_):
    """Images alone."""
    return Data(images(), images(20), classes=4)
