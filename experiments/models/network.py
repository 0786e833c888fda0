"""A model as pure functions, whichever library of layers it is written with."""

import contextlib
import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import nnx
from jax import Array

from bnjax import linen as bnn
from bnjax import nnx as bnnx
from bnjax.linen import Diagnosis
from experiments.config import ModelConfig
from experiments.models.dropout import ByExample, Noise, by_example

Tree = Mapping[str, Any]
Shape = tuple[int, int, int]  # height, width, channels


class Job(NamedTuple):
    """What a network is made for: shapes and dtypes of one example, with an axis of length 1 for it."""

    inputs: Any
    """An array, or arrays by their names."""
    classes: int
    mask: Any = jax.ShapeDtypeStruct((1,), bool)
    outputs: tuple[int, ...] | None = None
    """The shape that the outputs must have, where it is known."""
    options: Mapping[str, Any] = {}
    """Keywords for the function that builds the model, where it takes them."""


class Network(NamedTuple):
    """A network as pure functions of its parameters and its running statistics.

    `x` are the inputs and `mask` says which of them count: of each example, or of each position, as the inputs are.
    """

    init: Callable[[Array], tuple[Tree, Tree]]
    """`init(key)`: parameters and statistics."""
    apply: Callable[..., tuple[Array, Tree]]
    """`apply(params, stats, x, *, train, mask)`: outputs and statistics; with `noise` where it is `random`."""
    measure: Callable[..., tuple[Array, Tree]]
    """`measure(params, stats, x, *, mask)`: as `apply` in training, but the moments in the place of the statistics.

    Of a norm that keeps more than moments: the new statistics, as `apply` returns them.
    """
    hands_out: bool = True
    """Whether `measure` returns moments."""
    random: bool = False
    """Whether it takes `noise`. Without it nothing is dropped."""
    examine: Callable[..., Diagnosis] | None = None
    """`examine(params, stats, batches, tx)`: what is wrong with its norms, by batches of pairs `(x, mask)`."""


def linen_network(model: nn.Module, job: Job, *, takes_mask: bool = True, random: bool = False) -> Network:
    """A linen model, called as `model(x, train=..., mask=...)`; without `takes_mask`, every example counts.

    Outputs have the dtype of the parameters. With `random` it has a random key called `dropout`.
    """

    def keywords(train: bool, mask: Any) -> dict[str, Any]:
        return {"train": train, "mask": mask} if takes_mask else {"train": train}

    def init(key: Array) -> tuple[Tree, Tree]:
        x = jax.tree.map(lambda t: jnp.zeros(t.shape, t.dtype), job.inputs)
        mask = jax.tree.map(lambda t: jnp.ones(t.shape, t.dtype), job.mask)
        variables = model.init(key, x, **keywords(False, mask))
        return variables["params"], variables.get("batch_stats", {})

    def call(
        params: Tree, stats: Tree, x: Any, *, train: bool, mask: Any, noise: Noise | None = None, out: str
    ) -> tuple[Array, Tree]:
        rngs = {"dropout": jax.random.key(0) if noise is None else noise.key} if random else None
        with by_example(noise) if random else contextlib.nullcontext():
            outputs, new = model.apply(
                {"params": params, "batch_stats": stats}, x, **keywords(train, mask), mutable=[out], rngs=rngs
            )
        return outputs.astype(dtype_of(params)), new.get(out, {})

    def evaluated(model: Any, batch: Any) -> Any:
        return model(batch[0], **keywords(False, batch[1]))

    def examine(params: Tree, stats: Tree, batches: Iterable[Any], tx: Any) -> Diagnosis:
        variables = {"params": params, "batch_stats": stats}
        return bnn.doctor(model, variables, batches, call=evaluated, tx=tx)

    measure = functools.partial(call, train=True, out="batch_moments")
    return Network(init, functools.partial(call, out="batch_stats"), measure, random=random, examine=examine)


def dtype_of(params: Tree) -> Any:
    """The dtype of the parameters, which all have the same."""
    return jax.tree.leaves(params)[0].dtype


def kept_dtype(config: ModelConfig) -> str:
    """The dtype of parameters and statistics: in bfloat16 most steps would change nothing."""
    return "float32" if config.dtype == "bfloat16" else config.dtype


def nnx_network(make: Callable[[nnx.Rngs], nnx.Module], *, takes_mask: bool = True, random: bool = False) -> Network:
    """The nnx model that `make` gives, called as `linen_network` calls one."""

    def model(key: Array) -> Any:
        return make(nnx.Rngs(key))

    abstract = nnx.eval_shape(model, jax.random.key(0))
    graph, rngs = nnx.graphdef(abstract), nnx.state(abstract, nnx.RngState)

    def init(key: Array) -> tuple[Tree, Tree]:
        net = model(key)
        return nnx.to_pure_dict(nnx.state(net, nnx.Param)), nnx.to_pure_dict(nnx.state(net, nnx.BatchStat))

    def call(
        params: Tree, stats: Tree, x: Any, *, train: bool, mask: Any, noise: Noise | None = None, moments: bool = False
    ) -> tuple[Array, Tree]:
        net: Any = nnx.merge(graph, params, stats, _seeded(rngs, noise))
        for _, module in nnx.iter_modules(net):
            if type(module) is nnx.Dropout:
                module.__class__ = ByExample
        how = {"train": train, "mask": mask} if takes_mask else {"train": train}
        with by_example(noise) if random else contextlib.nullcontext():
            if moments:
                outputs, new = nnx.capture(net, bnnx.BatchMoments)(x, **how)
            else:
                outputs, new = net(x, **how), nnx.to_pure_dict(nnx.state(net, nnx.BatchStat))
        return outputs.astype(dtype_of(params)), new

    def evaluated(net: Any, batch: Any) -> Any:
        return net(batch[0], **({"train": False, "mask": batch[1]} if takes_mask else {"train": False}))

    def examine(params: Tree, stats: Tree, batches: Iterable[Any], tx: Any) -> Diagnosis:
        net = nnx.merge(graph, params, stats, _seeded(rngs, None))
        return bnnx.doctor(net, batches, call=evaluated, tx=tx)

    return Network(init, call, functools.partial(call, train=True, moments=True), random=random, examine=examine)


def _seeded(rngs: nnx.State, noise: Noise | None) -> nnx.State:
    """The random state of an nnx model at the beginning of a step: each of its keys from that of the step."""
    key = jax.random.key(0) if noise is None else noise.key
    leaves, tree = jax.tree.flatten(rngs)
    is_key = [jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) for leaf in leaves]
    fresh = [jax.random.fold_in(key, i) if k else jnp.zeros((), leaves[i].dtype) for i, k in enumerate(is_key)]
    return jax.tree.unflatten(tree, fresh)
