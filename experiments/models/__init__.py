"""Models, one architecture a file: a new one is its file and a line in `MODELS`."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from experiments.cli.errors import UserError, chosen
from experiments.config import ModelConfig
from experiments.config.own import chosen_or_own
from experiments.models import (
    alexnet,
    article_cnn,
    bert,
    bn_inception,
    densenet,
    mlp,
    recurrent,
    resnet,
    transformer,
    vgg,
    xception,
)
from experiments.models.building import built, described
from experiments.models.network import Job as Job
from experiments.models.network import Network
from experiments.models.norms import OF_SOME_WIDTHS, hands_out_moments

Norm = Mapping[str, Any]  # arguments of every norm of the batch

# By name, what makes a model for linen, of a `norm`; `article_cnn` makes a network of a config.
MODELS: dict[str, Callable[..., Any]] = {
    "article_cnn": article_cnn.build,
    "mlp": mlp.build,
    "resnet": resnet.build,
    "vgg": vgg.build,
    "alexnet": alexnet.build,
    "bn_inception": bn_inception.build,
    "densenet": densenet.build,
    "xception": xception.build,
    "transformer": transformer.build,
    "bert": bert.build,
    "recurrent": recurrent.build,
}
# Those that there are for nnx, too.
NNX: dict[str, Callable[..., Any]] = {
    "mlp": mlp.build_nnx,
    "resnet": resnet.build_nnx,
    "transformer": transformer.build_nnx,
}


def make_network(config: ModelConfig, job: Job, norm: Norm | None = None) -> Network:
    """The network of a config; `norm` are arguments of every norm of the batch.

    Raises:
      UserError: a name that is not in `MODELS`, inputs that it does not take, or a norm that cannot sit there.
    """
    build = chosen_or_own(MODELS, config.name, "config.model.name")
    if config.name in MODELS and config.api == "nnx" and build is not article_cnn.build:
        build = chosen({"article_cnn": build, **NNX}, config.name, "config.model.name` with `config.model.api=nnx")
    network = (_article_cnn if build is article_cnn.build else partial(built, build))(config, job, norm or {})
    if hands_out_moments(config):
        return network
    return network._replace(measure=partial(network.apply, train=True), hands_out=False)


def _article_cnn(config: ModelConfig, job: Job, norm: Norm) -> Network:
    image = job.inputs
    if config.size:
        raise UserError(f"`config.model.name={config.name}` has no sizes; write `config.model.widths`.")
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
