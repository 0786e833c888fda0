"""Models of Flax nnx that know nothing of bnjax, by their names: `NNX`. Twins of linen's have the same names."""

from functools import cache, partial

import jax.numpy as jnp
from flax import nnx

from tests.kit import convnets_nnx as convnets
from tests.kit import oddities_nnx as odd
from tests.kit.cases import Case, as_if_trained, images, sequences, values


def call(model, batch):
    return model(batch)


def case(make, draw, flags="", call=call, train=call):
    """`train()` or `eval()` has set the model's mode, before it is called."""
    return Case(make, draw, call, train, frozenset(flags.split()))


def moded(train):
    return lambda model, batch: model(batch, train)


NAMED = nnx.with_metadata(nnx.initializers.ones, unit="volts")
BOXED = partial(convnets.Lifted, scale_init=NAMED)

NNX: dict[str, Case] = {
    "resnet": case(convnets.ResNet, values(16, 16, 3)),
    "axis": case(partial(convnets.ResNet, axis_name="batch"), values(16, 16, 3), "axis"),
    "bfloat16": case(partial(convnets.ResNet, dtype=jnp.bfloat16), values(16, 16, 3), "bfloat16"),
    "densenet": case(convnets.DenseNet, images),
    "mobilenet": case(convnets.MobileNet, images, call=moded(False), train=moded(True)),
    "lifted": case(convnets.Lifted, images, "stacked"),
    "lifted_last": case(partial(convnets.Lifted, axis=1), images, "stacked"),
    "boxed": case(BOXED, images, "stacked boxed"),
    "shared": case(odd.Shared, images, "repeated"),
    "odd": case(odd.Odd, images, "dropout"),
    "subclasses": case(odd.Subclasses, images),
    "own": case(partial(odd.Beside, odd.OwnBatchNorm), images, "foreign"),
    "more": case(partial(odd.Beside, odd.Centre), images, "more"),
    "carried": case(partial(odd.Recurrent, carried=True), values(5, 8), "repeated"),
    "broadcast": case(partial(odd.Recurrent, carried=False), values(5, 8), "repeated broadcast"),
    "masked": case(odd.Masked, sequences, "masked dropout"),
    "transformer": case(odd.Transformer, values(6, 8), "none"),
    "wrapped": case(odd.Wrapped, images, "wrapped more"),
}


@cache
def parts(name):
    made = NNX[name].make(rngs=nnx.Rngs(0))
    graph, state, rest = nnx.split(made, (nnx.Param, nnx.BatchStat), ...)
    return graph, as_if_trained(state), rest


def model(name):
    """A new model of this name, as if it were trained; in training mode."""
    return nnx.merge(*parts(name), copy=True)


@partial(nnx.jit, static_argnums=0)
def evaluate(name, model, batch):
    """The output of evaluation, by Flax."""
    model.eval()
    return NNX[name].call(model, batch)


@partial(nnx.jit, static_argnums=0)
def train(name, model, batch):
    """The output of a training step, by Flax; the model's statistics move."""
    model.train()
    if "axis" not in NNX[name].flags:
        return NNX[name].train(model, batch)
    alone = nnx.vmap(NNX[name].train, in_axes=(None, 0), axis_name="batch")
    return alone(model, batch[None])[0]
