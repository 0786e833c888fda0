"""What people do with norms in Flax nnx beside putting one after each convolution."""

from functools import partial

import jax.numpy as jnp
from flax import nnx


class Half(nnx.Module):
    """A norm that is given by its owner."""

    def __init__(self, norm, rngs):
        self.dense, self.norm = nnx.Linear(8, 8, rngs=rngs), norm

    def __call__(self, x):
        return nnx.relu(self.norm(self.dense(x)))


class Shared(nnx.Module):
    """A norm that is called twice, one that two modules share, and a layer with two norms."""

    def __init__(self, rngs):
        norm = partial(nnx.BatchNorm, 8, momentum=0.9, rngs=rngs)
        self.stem, self.conv = nnx.Conv(3, 8, (1, 1), rngs=rngs), nnx.Conv(8, 8, (3, 3), rngs=rngs)
        self.twice, self.first, self.second = norm(), norm(), norm()
        given = norm()
        self.halves = nnx.List([Half(given, rngs), Half(given, rngs)])
        self.head = nnx.Linear(8, 4, rngs=rngs)

    def __call__(self, x):
        x = self.stem(x)
        x = self.twice(nnx.relu(self.twice(x)) + x)
        x = nnx.relu(self.first(self.conv(x))) + self.second(self.conv(2 * x))
        for half in self.halves:
            x = half(x)
        return self.head(x.mean((1, 2)))


class Odd(nnx.Module):
    """Features on another axis; no scale, no bias; a norm that is never trained but by `train()`; dropout."""

    def __init__(self, rngs):
        self.stem = nnx.ConvTranspose(3, 8, (3, 3), rngs=rngs)
        self.first, self.plain = (
            nnx.BatchNorm(8, rngs=rngs, **more) for more in ({}, {"use_scale": False, "use_bias": False})
        )
        self.channels_first = nnx.BatchNorm(8, axis=1, momentum=0.9, epsilon=1e-3, rngs=rngs)
        self.drop = nnx.Dropout(0.3, rngs=rngs)
        fixed = nnx.BatchNorm(8, use_running_average=True, rngs=rngs)
        self.sequence = nnx.Sequential(nnx.Conv(8, 8, (1, 1), rngs=rngs), fixed, nnx.relu)
        self.head = nnx.Linear(8, 4, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.first(self.stem(x)))
        x = self.channels_first(x.transpose(0, 3, 1, 2)).transpose(0, 2, 3, 1)
        return self.head(self.sequence(self.plain(self.drop(x))).mean((1, 2)))


class NormRelu(nnx.BatchNorm):
    """A subclass that asks its base."""

    def __call__(self, x, use_running_average=None, **more):
        return nnx.relu(super().__call__(x, use_running_average, **more))


class Named(nnx.BatchNorm):
    """A subclass with another default."""

    def __init__(self, features, *, momentum=0.9, **more):
        super().__init__(features, momentum=momentum, **more)


class Subclasses(nnx.Module):
    def __init__(self, rngs):
        self.conv1, self.norm1 = nnx.Conv(3, 8, (3, 3), rngs=rngs), NormRelu(8, rngs=rngs)
        self.conv2, self.norm2 = nnx.Conv(8, 8, (3, 3), rngs=rngs), Named(8, rngs=rngs)
        self.head = nnx.Linear(8, 4, rngs=rngs)

    def __call__(self, x):
        return self.head(self.norm2(self.conv2(self.norm1(self.conv1(x)))).mean((1, 2)))


class OwnBatchNorm(nnx.Module):
    """Somebody's own batch norm. It is no subclass, and its code is its own."""

    def __init__(self, features):
        self.mean, self.var = nnx.BatchStat(jnp.zeros(features)), nnx.BatchStat(jnp.ones(features))
        self.scale, self.bias = nnx.Param(jnp.ones(features)), nnx.Param(jnp.zeros(features))
        self.use_running_average = False  # which `train()` and `eval()` set

    def __call__(self, x):
        axes, like = tuple(range(x.ndim - 1)), (1,) * (x.ndim - 1) + (-1,)
        mean, var = self.mean[...], self.var[...]
        if not self.use_running_average:
            mean, var = x.mean(axes), x.var(axes)
            self.mean[...] = 0.9 * self.mean[...] + 0.1 * mean
            self.var[...] = 0.9 * self.var[...] + 0.1 * var
        y = (x - mean.reshape(like)) / jnp.sqrt(var + 1e-5).reshape(like)
        return y * self.scale.reshape(like) + self.bias.reshape(like)


class Centre(nnx.Module):
    """A running mean without a variance, and a count, among the batch statistics."""

    def __init__(self, features):
        self.mean, self.steps = nnx.BatchStat(jnp.zeros(features)), nnx.BatchStat(jnp.zeros((), jnp.int32))
        self.use_running_average = False

    def __call__(self, x):
        if not self.use_running_average:
            self.mean[...] = 0.9 * self.mean[...] + 0.1 * x.mean((0, 1, 2))
            self.steps[...] = self.steps[...] + 1
        return x - self.mean.reshape(1, 1, 1, -1)


class Beside(nnx.Module):
    """Flax's batch norm beside another module with batch statistics."""

    def __init__(self, other, rngs):
        self.conv1, self.norm1 = nnx.Conv(3, 8, (3, 3), rngs=rngs), nnx.BatchNorm(8, momentum=0.9, rngs=rngs)
        self.conv2, self.norm2 = nnx.Conv(8, 8, (3, 3), rngs=rngs), nnx.BatchNorm(8, momentum=0.9, rngs=rngs)
        self.other, self.head = other(8), nnx.Linear(8, 4, rngs=rngs)

    def __call__(self, x):
        x = self.other(nnx.relu(self.norm1(self.conv1(x))))
        return self.head(self.norm2(self.conv2(x)).mean((1, 2)))


class Cell(nnx.Module):
    def __init__(self, rngs):
        self.hidden, self.input = nnx.Linear(8, 8, rngs=rngs), nnx.Linear(8, 8, rngs=rngs)
        self.norm = nnx.BatchNorm(8, momentum=0.9, rngs=rngs)

    def __call__(self, c, x):
        c = jnp.tanh(self.norm(self.hidden(c)) + self.input(x))
        return c, c


class Recurrent(nnx.Module):
    """One cell for all times. Its statistics are carried from time to time, or are the same at all."""

    def __init__(self, rngs, carried):
        self.start, self.cell, self.head = nnx.Linear(8, 8, rngs=rngs), Cell(rngs), nnx.Linear(8, 4, rngs=rngs)
        self.axes = nnx.StateAxes({nnx.BatchStat: nnx.Carry if carried else None, ...: None})

    def __call__(self, x):
        over = partial(nnx.scan, in_axes=(self.axes, nnx.Carry, 1), out_axes=(nnx.Carry, 1))
        _, y = over(lambda cell, c, x: cell(c, x))(self.cell, jnp.tanh(self.start(x[:, 0])), x)
        return self.head(y.mean(1))


class Masked(nnx.Module):
    """Sequences in a dictionary, whose norms are told what is valid."""

    def __init__(self, rngs):
        self.dense = nnx.List(nnx.Linear(8, 8, rngs=rngs) for _ in range(2))
        self.norms = nnx.List(nnx.BatchNorm(8, momentum=0.9, rngs=rngs) for _ in range(2))
        self.drop, self.head = nnx.Dropout(0.2, rngs=rngs), nnx.Linear(8, 4, rngs=rngs)

    def __call__(self, batch):
        x, mask = batch["x"], batch["mask"][..., None]
        for dense, norm in zip(self.dense, self.norms, strict=True):
            x = self.drop(nnx.relu(norm(dense(x), mask=mask)))
        return self.head(jnp.where(mask, x, 0).sum(1) / mask.sum(1))


class Transformer(nnx.Module):
    """All norms of activations but batch norm."""

    def __init__(self, rngs):
        self.norms = nnx.List([nnx.LayerNorm(8, rngs=rngs), nnx.RMSNorm(8, rngs=rngs)])
        self.groups = nnx.List(nnx.GroupNorm(8, num_groups=4, rngs=rngs) for _ in range(2))
        self.attention = nnx.List(nnx.MultiHeadAttention(2, 8, decode=False, rngs=rngs) for _ in range(2))
        self.up = nnx.List(nnx.Linear(8, 16, rngs=rngs) for _ in range(2))
        self.down = nnx.List(nnx.Linear(16, 8, rngs=rngs) for _ in range(2))
        self.last, self.head = nnx.InstanceNorm(8, rngs=rngs), nnx.Linear(8, 4, rngs=rngs)

    def __call__(self, x):
        for i in range(2):
            x = x + self.attention[i](self.norms[i](x))
            x = x + self.down[i](nnx.gelu(self.up[i](self.groups[i](x))))
        return self.head(self.last(x).max(1))


class Wrapped(nnx.Module):
    """Weights under spectral norm and weight norm. The first leaves u and sigma among the batch statistics."""

    def __init__(self, rngs):
        self.conv = nnx.SpectralNorm(nnx.Conv(3, 8, (3, 3), rngs=rngs), rngs=rngs)
        self.norm = nnx.BatchNorm(8, momentum=0.9, rngs=rngs)
        self.head = nnx.WeightNorm(nnx.Linear(8, 4, rngs=rngs), rngs=rngs)

    def __call__(self, x):
        return self.head(nnx.relu(self.norm(self.conv(x))).mean((1, 2)))
