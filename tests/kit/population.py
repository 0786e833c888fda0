"""The statistics that every batch norm of a model should have after all batches, in float64, without the library.

The model runs in float64 by Flax; what its norms are given is handed to numpy from inside the program, under whatever
transformations. A slice of a stack is known by its old statistics, which come along: no two are alike.
"""

import contextlib
import inspect
from functools import cache
from itertools import combinations, product
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

from tests.kit import models_linen, models_nnx, references
from tests.kit.cases import names_of
from tests.kit.models_linen import LINEN
from tests.kit.models_nnx import NNX


class Pair(NamedTuple):
    mean: np.ndarray
    var: np.ndarray


class Heard:
    """What norms were given, by their statistics."""

    def __init__(self):
        self.inputs = {}

    def tap(self, x, mask, axis, mean, var):
        """Inside a program: keeps `x` with the features last, and what is valid. What comes back is `x`."""
        features = sorted(a % x.ndim for a in np.atleast_1d(axis))
        last = range(-len(features), 0)
        valid = jnp.broadcast_to(True if mask is None else mask, x.shape)
        arrays = jnp.moveaxis(x, features, last), mean, var
        # Callbacks run in threads of their own, where 64-bit types are off: words of 32 bits pass unchanged.
        words = [jax.lax.bitcast_convert_type(t.astype(jnp.float64), jnp.uint32) for t in arrays]
        arrays = *words, jnp.moveaxis(valid, features, last)
        # Without effects, which Flax's scan takes for a variable that it cannot share; so the result has to be used.
        nothing = jax.pure_callback(self.keep, np.zeros((), np.int32), *arrays, vmap_method="sequential")
        return x + nothing.astype(x.dtype)

    def keep(self, *arrays):
        # With more to copy, a callback may wait for the thread that it runs on.
        assert arrays[0].nbytes < 100_000
        *words, valid = map(np.array, arrays)
        x, mean, var = (t.view(np.float64)[..., 0] for t in words)
        rows = (-1, *mean.shape)
        self.inputs.setdefault(key_of(mean, var), []).append((x.reshape(rows), valid.reshape(rows)))
        return np.zeros((), np.int32)

    def statistics(self, pairs):
        """The pairs of the norms that were heard, slice by slice, measured over all that they were given."""
        found, places = {}, places_of(pairs)
        for key, calls in self.inputs.items():
            ((path, index),) = places[key]
            new = found.setdefault(path, Pair(*(t.copy() for t in pairs[path])))
            _, new.mean[index], new.var[index] = references.moments(*over(calls))
        self.inputs.clear()
        return found


def over(calls):
    """The arguments of `references.moments`: all rows of all calls."""
    x, valid = (np.concatenate(ts) for ts in zip(*calls, strict=True))
    return x, 0, valid


def key_of(*arrays):
    return tuple((t.shape, t.tobytes()) for t in arrays)


def places_of(pairs):
    """Where statistics stand: their path, and their index in the stack, which has up to two axes."""
    places = {}
    for path, pair in pairs.items():
        shape = pair.mean.shape
        for stacked in (s for k in range(min(3, len(shape))) for s in combinations(range(len(shape)), k)):
            for at in product(*(range(shape[a]) for a in stacked)):
                index = tuple(dict(zip(stacked, at, strict=True)).get(a, slice(None)) for a in range(len(shape)))
                places.setdefault(key_of(*(t[index] for t in pair)), []).append((path, index))
    return places


def pairs_of(state):
    """Every mean and var that stand side by side, by the path of their module."""
    flat = {place_of(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(state)}
    return {p: Pair(flat[p, "mean"], flat[p, "var"]) for p, name in flat if name == "mean" and (p, "var") in flat}


def place_of(path):
    """Module and name of a leaf. In linen the statistics have a tree of their own, which is no part of the path."""
    *module, name = names_of(path)
    return "/".join(module[module[:1] == ["batch_stats"] :]), name


def wide(tree):
    """Floats in float64."""
    return jax.tree.map(lambda t: np.asarray(t, np.float64 if t.dtype.kind == "f" else t.dtype), tree)


def by_batch(x, mask, norm, scale, bias):
    """Batch norm about the statistics of `x`, where `mask` says."""
    features = {a % x.ndim for a in np.atleast_1d(norm.axis)}
    axes = tuple(a for a in range(x.ndim) if a not in features)
    like = [n if a in features else 1 for a, n in enumerate(x.shape)]
    valid = jnp.broadcast_to(True if mask is None else mask, x.shape)
    mean = x.mean(axes, where=valid, keepdims=True)
    y = (x - mean) / jnp.sqrt(jnp.square(x - mean).mean(axes, where=valid, keepdims=True) + norm.epsilon)
    y = y if scale is None else y * scale.reshape(like)
    return y if bias is None else y + bias.reshape(like)


@contextlib.contextmanager
def linen_heard(heard, flow):
    """Every call of Flax's own batch norm is heard, and does what it does in this flow."""

    def intercept(next_fun, args, kwargs, context):
        if inspect.unwrap(context.orig_method.func) is not inspect.unwrap(nn.BatchNorm.__call__):
            return next_fun(*args, **kwargs)
        norm, mask = context.module, kwargs.get("mask")
        stats, params = (nn.meta.unbox(norm.variables.get(kind, {})) for kind in ("batch_stats", "params"))
        x = heard.tap(args[0], mask, norm.axis, stats["mean"], stats["var"])
        if flow == "evaluation":
            return next_fun(x, *args[1:], **kwargs)
        return by_batch(x, mask, norm, params.get("scale"), params.get("bias"))

    with nn.intercept_methods(intercept):
        yield


@contextlib.contextmanager
def nnx_heard(heard, flow):
    """The same of nnx."""
    call = nnx.BatchNorm.__call__

    def hear(self, x, use_running_average=None, *, mask=None):
        x = heard.tap(x, mask, self.axis, self.mean[...], self.var[...])
        if flow == "evaluation":
            return call(self, x, use_running_average, mask=mask)
        return by_batch(x, mask, self, *(None if v is None else v[...] for v in (self.scale, self.bias)))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nnx.BatchNorm, "__call__", hear)
        yield


class Subject:
    """A model with its state: `run(state, batch)` evaluates it, and in `hearing(heard, flow)` its norms are heard."""

    def __init__(self, state, run, hearing):
        self.state, self.run, self.hearing, self.heard = wide(state), run, hearing, Heard()
        self.pairs = pairs_of(self.state)
        self.program = cache(self.program)  # one for each flow

    def program(self, flow):
        def evaluate(state, batch):
            with self.hearing(self.heard, flow):
                return self.run(state, batch)

        return jax.jit(evaluate)

    def measure(self, flow, pairs, batches):
        """Of each norm, what it is given in this flow, where all norms have these pairs."""

        def put(path, leaf):
            module, name = place_of(path)
            return getattr(pairs[module], name) if module in pairs and name in Pair._fields else leaf

        state = jax.tree_util.tree_map_with_path(put, self.state)
        with jax.enable_x64(True):
            for batch in batches:  # what a program hands over is there before its result
                jax.block_until_ready(self.program(flow)(state, wide(batch)))
        return self.heard.statistics(pairs)


@cache
def linen(name):
    case = LINEN[name]

    def run(variables, batch):
        return nn.apply(case.call, case.make(), mutable=["batch_stats"])(variables, batch)[0]

    return Subject(models_linen.variables(name), run, linen_heard)


@cache
def of_nnx(name):
    model = models_nnx.model(name)
    model.eval()
    graph, state, rest = nnx.split(model, (nnx.Param, nnx.BatchStat), ...)

    def run(state, batch):
        return NNX[name].call(nnx.merge(graph, state, rest, copy=True), batch)

    return Subject(state, run, nnx_heard)


def one_pass(subject, batches):
    """Pairs by path: every norm measured in one pass, in which each batch is normalized by itself."""
    return subject.measure("batch", subject.pairs, batches)


def by_layer(subject, batches, most=20):
    """Pairs by path: every norm measured where all norms before it have these statistics themselves.

    What is measured is put in until it is what is measured. With a norm that is called several times that may never be.
    """
    pairs = subject.pairs
    for _ in range(most):
        new = subject.measure("evaluation", pairs, batches)
        if all(np.allclose(a, b, rtol=1e-13, atol=1e-13) for p in new for a, b in zip(new[p], pairs[p], strict=True)):
            return new
        pairs = {**pairs, **new}
    raise AssertionError(f"not settled after {most} passes")
