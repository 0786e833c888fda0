"""Models, one architecture a file: a new one is its file and a line in `MODELS`."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from experiments.cli.errors import UserError, chosen
from experiments.config import ModelConfig
from experiments.models import article_cnn
from experiments.models.network import Network, Shape
from experiments.models.norms import OF_SOME_WIDTHS, hands_out_moments

# By name, what makes a network: for a config, images of a shape and so many classes; with arguments of every norm of
# the batch.
MODELS: dict[str, Callable[[ModelConfig, Shape, int, Mapping[str, Any]], Network]] = {
    "article_cnn": article_cnn.build,
}


def make_network(config: ModelConfig, shape: Shape, classes: int, norm: Mapping[str, Any] | None = None) -> Network:
    """The network of a config, for images of `shape`; `norm` are arguments of every norm of the batch.

    Raises:
      UserError: a name that is not in `MODELS`, or widths that the norm cannot take.
    """
    build = chosen(MODELS, config.name, "config.model.name")
    try:
        network = build(config, shape, classes, norm or {})
        if config.norm in OF_SOME_WIDTHS:
            jax.eval_shape(partial(_evaluated, network), jax.random.key(0), jnp.zeros((1, *shape)))
    except ValueError as error:
        raise UserError(
            f"`config.model.norm={config.norm}` cannot take `config.model.widths={config.widths}`: {error} "
            "Write other widths, or another norm."
        ) from error
    if hands_out_moments(config):
        return network
    return network._replace(measure=partial(network.apply, train=True), hands_out=False)


def _evaluated(network: Network, key: Array, x: Array) -> Array:
    logits, _ = network.apply(*network.init(key), x, train=False, mask=jnp.ones(len(x), bool))
    return logits
