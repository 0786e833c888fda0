"""A small model of Flax nnx with what is hard about models, for the tests beside this file."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

C = 5


class Block(nnx.Module):
    """A layer, a norm and a dropout, as in most models."""

    def __init__(self, rngs, norm=nnx.BatchNorm, **options):
        self.layer = nnx.Linear(C, C, rngs=rngs)
        self.norm = norm(C, rngs=rngs, **options)
        self.drop = nnx.Dropout(0.3)

    def __call__(self, x):
        return nnx.relu(self.drop(self.norm(self.layer(x)), rngs=nnx.Rngs(dropout=0))) + x


def stacked(rngs, n=3, **options):
    """Blocks stacked along a new first axis of all their Variables."""

    @nnx.split_rngs(splits=n)
    @nnx.vmap(in_axes=0, out_axes=0)
    def make(rngs):
        return Block(rngs, **options)

    return make(rngs)


@nnx.scan(in_axes=(0, nnx.Carry), out_axes=nnx.Carry)
def through(block, x):
    return nnx.remat(lambda block, x: block(x))(block, x)


class Chain(nnx.Module):
    """Norms one after the other: three blocks are stacked and scanned, under `remat`; one is jitted."""

    def __init__(self, rngs, norm=nnx.BatchNorm, **options):
        self.first = norm(C, rngs=rngs, **options)
        self.blocks = nnx.List([Block(rngs, norm, **options), Block(rngs, norm, **options)])
        self.stack = stacked(rngs, norm=norm, **options)
        self.head = nnx.Linear(C, 2, rngs=rngs)

    def __call__(self, x):
        x = self.blocks[0](self.first(x))
        x = jitted(self.blocks[1], x)
        return self.head(through(self.stack, x))


@nnx.jit
def jitted(block, x):
    return block(x)


def norm_inputs(model, x):
    """What each norm of a chain gets at evaluation, by path, in float64 and in numpy alone."""
    x, seen = np.asarray(x, np.float64), {"first": np.asarray(x, np.float64)}
    x = normalized(x, model.first)
    for path, block in unstacked(model):
        h = x @ np.asarray(block["layer"]["kernel"], np.float64) + np.asarray(block["layer"]["bias"], np.float64)
        seen[path] = h
        x = np.maximum(normalized(h, block["norm"]), 0) + x
    return seen


def unstacked(model):
    """The blocks of a chain in their order, as pure trees."""
    trees = [nnx.to_pure_dict(nnx.state(block)) for block in model.blocks]
    stack = nnx.to_pure_dict(nnx.state(model.stack))
    slices = [jax.tree.map(lambda t, n=n: t[n], stack) for n in range(3)]
    return [(f"blocks/{n}/norm", t) for n, t in enumerate(trees)] + [
        (f"stack/norm{n}", t) for n, t in enumerate(slices)
    ]


def normalized(x, norm):
    mean, var, scale, bias = (
        np.asarray(norm[n] if isinstance(norm, dict) else getattr(norm, n)[...], np.float64)
        for n in ("mean", "var", "scale", "bias")
    )
    return (x - mean) / np.sqrt(var + 1e-5) * scale + bias


def randomize(model, seed=0):
    """Gives a model the parameters and statistics of one that was trained."""
    rng = np.random.default_rng(seed)
    for path, v in nnx.to_flat_state(nnx.state(model, (nnx.Param, nnx.BatchStat))):
        r = 0.3 * rng.normal(size=v.shape)
        if path[-1] not in ("kernel", "count", "step"):
            v[...] = jnp.asarray(np.exp(r) if path[-1] == "var" else 1 + r if path[-1] == "scale" else r, v.dtype)
    return model


def drawn(n, seed, *shape):
    """Examples whose means and deviations are far from 0 and 1, and differ from batch to batch."""
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(n, *shape, C)) * rng.uniform(0.5, 3, C) + 3 * rng.normal(size=C)).astype(np.float32)
