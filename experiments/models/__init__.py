"""Models, one architecture a file: a new one is its file and a line in `MODELS`."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from experiments.cli.errors import UserError
from experiments.config import ModelConfig
from experiments.config.own import chosen_or_own
from experiments.models import article_cnn
from experiments.models.building import built, described
from experiments.models.network import Job as Job
from experiments.models.network import Network
from experiments.models.norms import OF_SOME_WIDTHS, hands_out_moments, linen_norm

Norm = Mapping[str, Any]  # arguments of every norm of the batch

# By name, what makes a network: of a config, for a job, with arguments of every norm of the batch.
MODELS: dict[str, Callable[..., Any]] = {"article_cnn": article_cnn.build}


def make_network(config: ModelConfig, job: Job, norm: Norm | None = None) -> Network:
    """The network of a config; `norm` are arguments of every norm of the batch.

    Raises:
      UserError: a name that is not in `MODELS`, inputs that it does not take, or widths that the norm cannot take.
    """
    build = chosen_or_own(MODELS, config.name, "config.model.name")
    if build is article_cnn.build:
        network = _article_cnn(config, job, norm or {})
    else:
        network = built(build, config, job, partial(linen_norm, config, batch=norm or {}))
    if hands_out_moments(config):
        return network
    return network._replace(measure=partial(network.apply, train=True), hands_out=False)


def _article_cnn(config: ModelConfig, job: Job, norm: Norm) -> Network:
    image = job.inputs
    if config.dropout or config.size:
        option = "dropout" if config.dropout else "size"
        raise UserError(f"`config.model.name={config.name}` takes no `{option}`; leave `config.model.{option}` out.")
    if isinstance(image, Mapping) or len(image.shape) != 4:
        raise UserError(f"`config.model.name={config.name}` takes images, but the task gives it {described(image)}.")
    try:
        network = article_cnn.build(config, image.shape[1:], job.classes, norm)
        if config.norm in OF_SOME_WIDTHS:
            jax.eval_shape(partial(_evaluated, network), jax.random.key(0), jnp.zeros(image.shape))
    except ValueError as error:
        raise UserError(
            f"`config.model.norm={config.norm}` cannot take `config.model.widths={config.widths}`: {error} "
            "Write other widths, or another norm."
        ) from error
    return network


def _evaluated(network: Network, key: Array, x: Array) -> Array:
    logits, _ = network.apply(*network.init(key), x, train=False, mask=jnp.ones(len(x), bool))
    return logits
