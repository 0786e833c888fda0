"""Models, one architecture a file."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from experiments.cli.errors import UserError
from experiments.config import ModelConfig
from experiments.models import article_cnn
from experiments.models.network import Network, Shape
from experiments.models.norms import OF_SOME_WIDTHS, hands_out_moments


def make_network(config: ModelConfig, shape: Shape, classes: int, norm: Mapping[str, Any] | None = None) -> Network:
    """The network of a config, for images of `shape`; `norm` are arguments of every norm of the batch.

    Raises:
      UserError: widths that the norm cannot take.
    """
    try:
        network = article_cnn.build(config, shape, classes, norm or {})
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
