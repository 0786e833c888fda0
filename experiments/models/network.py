"""A model as pure functions, whichever library of layers it is written with."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import nnx
from jax import Array

from bnjax import nnx as bnnx

Tree = Mapping[str, Any]
Shape = tuple[int, int, int]  # height, width, channels


class Network(NamedTuple):
    """A network as pure functions of its parameters and its running statistics."""

    init: Callable[[Array], tuple[Tree, Tree]]
    """`init(key)`: parameters and statistics."""
    apply: Callable[..., tuple[Array, Tree]]
    """`apply(params, stats, x, *, train, mask)`: logits and statistics; `mask` (n,) says which examples count."""
    measure: Callable[..., tuple[Array, Tree]]
    """`measure(params, stats, x, *, mask)`: as `apply` in training, but the moments in the place of the statistics.

    Of a norm that keeps more than moments: the new statistics, as `apply` returns them.
    """
    hands_out: bool = True
    """Whether `measure` returns moments."""


def linen_network(model: nn.Module, shape: Shape, *, takes_mask: bool = True) -> Network:
    """A linen model of images of `shape`, called as `model(x, train=..., mask=...)`.

    Without `takes_mask` it is called without a mask, and every example counts. Logits have the dtype of the input.
    """

    def keywords(train: bool, mask: Array) -> dict[str, Any]:
        return {"train": train, "mask": mask} if takes_mask else {"train": train}

    def init(key: Array) -> tuple[Tree, Tree]:
        variables = model.init(key, jnp.zeros((1, *shape)), **keywords(False, jnp.ones(1, bool)))
        return variables["params"], variables.get("batch_stats", {})

    def call(params: Tree, stats: Tree, x: Array, train: bool, mask: Array, collection: str) -> tuple[Array, Tree]:
        variables = {"params": params, "batch_stats": stats}
        logits, new = model.apply(variables, x, **keywords(train, mask), mutable=[collection])
        return logits.astype(x.dtype), new.get(collection, {})

    def apply(params: Tree, stats: Tree, x: Array, *, train: bool, mask: Array) -> tuple[Array, Tree]:
        return call(params, stats, x, train, mask, "batch_stats")

    def measure(params: Tree, stats: Tree, x: Array, *, mask: Array) -> tuple[Array, Tree]:
        return call(params, stats, x, True, mask, "batch_moments")

    return Network(init, apply, measure)


def nnx_network(make: Callable[[nnx.Rngs], nnx.Module]) -> Network:
    """The nnx model that `make` gives, called as `model(x, train=..., mask=...)`."""

    def model(key: Array) -> Any:
        return make(nnx.Rngs(key))

    graph = nnx.graphdef(nnx.eval_shape(model, jax.random.key(0)))

    def init(key: Array) -> tuple[Tree, Tree]:
        net = model(key)
        return nnx.to_pure_dict(nnx.state(net, nnx.Param)), nnx.to_pure_dict(nnx.state(net, nnx.BatchStat))

    def apply(params: Tree, stats: Tree, x: Array, *, train: bool, mask: Array) -> tuple[Array, Tree]:
        net: Any = nnx.merge(graph, params, stats)
        logits = net(x, train=train, mask=mask)
        return logits, nnx.to_pure_dict(nnx.state(net, nnx.BatchStat))

    def measure(params: Tree, stats: Tree, x: Array, *, mask: Array) -> tuple[Array, Tree]:
        net: Any = nnx.merge(graph, params, stats)
        return nnx.capture(net, bnnx.BatchMoments)(x, train=True, mask=mask)

    return Network(init, apply, measure)
