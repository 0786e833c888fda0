"""Models of Flax linen that know nothing of bnjax, by their names: `LINEN`. The nnx twins are in `models_nnx`."""

from functools import cache, partial

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.core import freeze
from flax.traverse_util import path_aware_map

from tests.kit import convnets_linen as convnets
from tests.kit import oddities_linen as odd
from tests.kit.cases import Case, as_if_trained, images, sequences, values


def case(make, draw, flags="", train="train", **more):
    """Of a model whose call takes the mode as `train`, or as another argument."""

    def run(model, batch, training):
        return model(batch, **{train: training != (train == "deterministic")})

    return Case(make, draw, partial(run, training=False), partial(run, training=True), frozenset(flags.split()), **more)


def boxed(variables):
    """Scales and statistics in boxes with the names of their axes, as `nn.with_partitioning` puts parameters."""

    def box(path, leaf):
        stacked = path[1] in ("scanned", "vmap")
        return nn.Partitioned(leaf, ("layers",) * stacked + ("features",)) if path[-1] in ("scale", "mean") else leaf

    return path_aware_map(box, variables)


BOXED = partial(nn.BatchNorm, bias_init=nn.with_partitioning(nn.initializers.zeros, ("features",)))
BLOCKS = {"basic": convnets.Basic, "bottleneck": convnets.Bottleneck}
BF16 = jnp.bfloat16

LINEN: dict[str, Case] = {
    "resnet": case(partial(convnets.ResNet, BLOCKS["basic"]), values(16, 16, 3)),
    "bottleneck": case(partial(convnets.ResNet, BLOCKS["bottleneck"], 4), values(16, 16, 3)),
    "axis": case(partial(convnets.ResNet, BLOCKS["basic"], axis_name="batch"), values(16, 16, 3), "axis"),
    "bfloat16": case(partial(convnets.ResNet, BLOCKS["basic"], dtype=BF16), values(16, 16, 3), "bfloat16"),
    "densenet": case(convnets.DenseNet, images),
    "frozendict": case(convnets.DenseNet, images, "frozen", prepare=freeze),
    "mobilenet": case(convnets.MobileNet, images, train="is_training"),
    "lifted": case(convnets.Lifted, images, "stacked"),
    "lifted_last": case(partial(convnets.Lifted, 1), images, "stacked"),
    "boxed": case(partial(convnets.Lifted, norm=BOXED), images, "stacked boxed", prepare=boxed),
    "shared": case(odd.Shared, images, "repeated"),
    "odd": case(odd.Odd, images, "dropout", train="deterministic"),
    "subclasses": case(odd.Subclasses, images),
    "own": case(partial(odd.Beside, odd.OwnBatchNorm), images, "foreign"),
    "more": case(partial(odd.Beside, odd.Centre), images, "more"),
    "carried": case(partial(odd.Recurrent, True), values(5, 8), "repeated"),
    "broadcast": case(partial(odd.Recurrent, False), values(5, 8), "repeated broadcast"),
    "masked": case(odd.Masked, sequences, "masked dropout"),
    "transformer": case(odd.Transformer, values(6, 8), "none"),
    "wrapped": case(odd.Wrapped, images, "wrapped more"),
}


@cache
def variables(name):
    """Of the model of this name, as if it were trained."""
    case = LINEN[name]
    init = jax.jit(nn.init(case.call, case.make()))
    return case.prepare(as_if_trained(init(jax.random.key(0), case.example)))


@partial(jax.jit, static_argnums=0)
def evaluate(name, variables, batch):
    """The output of evaluation, by Flax. A scan that carries the statistics wants them mutable in every mode."""
    case = LINEN[name]
    return nn.apply(case.call, case.make(), mutable=["batch_stats"])(variables, batch)[0]


@partial(jax.jit, static_argnums=0)
def train(name, variables, batch, key=0):
    """The output of a training step and the batch statistics after it, by Flax."""
    case = LINEN[name]

    def step(batch):
        run = nn.apply(case.train, case.make(), mutable=["batch_stats"])
        y, new = run(variables, batch, rngs={"dropout": jax.random.key(key)})
        return y, new.get("batch_stats", {})

    if "axis" not in case.flags:
        return step(batch)
    alone = jax.vmap(step, axis_name="batch")(jax.tree.map(lambda t: t[None], batch))
    return jax.tree.map(lambda t: t[0], alone)
