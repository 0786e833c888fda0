"""What people do with norms in Flax linen beside putting one after each convolution."""

from collections.abc import Callable

import jax.numpy as jnp
from flax import linen as nn


class Half(nn.Module):
    """A norm that is given by its owner."""

    norm: nn.Module

    @nn.compact
    def __call__(self, x, train: bool):
        return nn.relu(self.norm(nn.Dense(8)(x), use_running_average=not train))


class Shared(nn.Module):
    """A norm that is called twice, one that two modules share, and a layer with two norms."""

    @nn.compact
    def __call__(self, x, train: bool):
        mode = {"use_running_average": not train}
        conv, twice, first, second = (
            nn.Conv(8, (3, 3)),
            *(nn.BatchNorm(momentum=0.9, name=n) for n in ("twice", "first", "second")),
        )
        x = nn.Conv(8, (1, 1))(x)
        x = twice(nn.relu(twice(x, **mode)) + x, **mode)
        x = nn.relu(first(conv(x), **mode)) + second(conv(2 * x), **mode)
        norm = nn.BatchNorm(momentum=0.9, name="given")
        return nn.Dense(4)(Half(norm)(Half(norm)(x, train), train).mean((1, 2)))


class Odd(nn.Module):
    """Modules made in `setup`; features on other axes and on two; no scale, no bias; dropout."""

    def setup(self):
        self.stem, self.head = nn.ConvTranspose(8, (3, 3)), nn.DenseGeneral((2, 3))
        self.first, self.plain = nn.BatchNorm(), nn.BatchNorm(use_scale=False, use_bias=False, epsilon=1e-3)
        self.channels_first, self.two = nn.BatchNorm(axis=1, momentum=0.9), nn.BatchNorm(axis=(-1, -2))
        self.drop = nn.Dropout(0.3)
        self.sequence = nn.Sequential([nn.Conv(8, (1, 1)), nn.BatchNorm(use_running_average=True), nn.relu])

    def __call__(self, x, deterministic: bool = True):
        mode = {"use_running_average": deterministic}
        x = nn.relu(self.first(self.stem(x), **mode))
        x = self.channels_first(x.transpose(0, 3, 1, 2), **mode).transpose(0, 2, 3, 1)
        x = self.plain(self.drop(x, deterministic=deterministic), **mode)
        return self.two(self.head(self.sequence(x).mean((1, 2))), **mode)


class NormRelu(nn.BatchNorm):
    """A subclass that asks its base."""

    @nn.compact
    def __call__(self, x, use_running_average=None, **more):
        return nn.relu(super().__call__(x, use_running_average, **more))


class Named(nn.BatchNorm):
    """A subclass with another default."""

    momentum: float = 0.9


class Subclasses(nn.Module):
    @nn.compact
    def __call__(self, x, train: bool):
        x = NormRelu(use_running_average=not train)(nn.Conv(8, (3, 3))(x))
        return nn.Dense(4)(Named()(nn.Conv(8, (3, 3))(x), use_running_average=not train).mean((1, 2)))


class OwnBatchNorm(nn.Module):
    """Somebody's own batch norm. It is no subclass, and its code is its own."""

    @nn.compact
    def __call__(self, x, train: bool):
        mean = self.variable("batch_stats", "mean", jnp.zeros, x.shape[-1:])
        var = self.variable("batch_stats", "var", jnp.ones, x.shape[-1:])
        axes, like = tuple(range(x.ndim - 1)), (1,) * (x.ndim - 1) + (-1,)
        now = (x.mean(axes), x.var(axes)) if train else (mean.value, var.value)
        if train and not self.is_initializing():
            mean.value, var.value = 0.9 * mean.value + 0.1 * now[0], 0.9 * var.value + 0.1 * now[1]
        scale = self.param("scale", nn.initializers.ones, x.shape[-1:])
        bias = self.param("bias", nn.initializers.zeros, x.shape[-1:])
        y = (x - now[0].reshape(like)) / jnp.sqrt(now[1] + 1e-5).reshape(like)
        return y * scale.reshape(like) + bias.reshape(like)


class Centre(nn.Module):
    """A running mean without a variance, and a count, among the batch statistics."""

    @nn.compact
    def __call__(self, x, train: bool):
        mean = self.variable("batch_stats", "mean", jnp.zeros, x.shape[-1:])
        steps = self.variable("batch_stats", "steps", jnp.zeros, (), jnp.int32)
        if train and not self.is_initializing():
            mean.value, steps.value = 0.9 * mean.value + 0.1 * x.mean((0, 1, 2)), steps.value + 1
        return x - mean.value.reshape(1, 1, 1, -1)


class Beside(nn.Module):
    """Flax's batch norm beside another module with batch statistics."""

    other: Callable

    @nn.compact
    def __call__(self, x, train: bool):
        x = nn.BatchNorm(momentum=0.9)(nn.Conv(8, (3, 3))(x), use_running_average=not train)
        x = self.other(name="other")(nn.relu(x), train)
        x = nn.BatchNorm(momentum=0.9)(nn.Conv(8, (3, 3))(x), use_running_average=not train)
        return nn.Dense(4)(x.mean((1, 2)))


class Cell(nn.Module):
    @nn.compact
    def __call__(self, c, x, train: bool):
        y = nn.BatchNorm(use_running_average=not train, momentum=0.9)(nn.Dense(8)(c))
        c = jnp.tanh(y + nn.Dense(8)(x))
        return c, c


class Recurrent(nn.Module):
    """One cell for all times. Its statistics are carried from time to time, or are the same at all."""

    carried: bool

    @nn.compact
    def __call__(self, x, train: bool):
        how = {"variable_carry": "batch_stats"} if self.carried else {}
        broadcast = "params" if self.carried else ("params", "batch_stats")
        over = {"variable_broadcast": broadcast, "split_rngs": {"params": False}, "in_axes": 1, "out_axes": 1}
        cell = Cell(name="cell")
        start = jnp.tanh(nn.Dense(8)(x[:, 0]))
        if self.is_initializing():
            cell(start, x[:, 0], train)  # statistics that are carried must be there before
        run = nn.scan(lambda m, c, x: m(c, x, train), **over, **how)
        return nn.Dense(4)(run(cell, start, x)[1].mean(1))


class Masked(nn.Module):
    """Sequences in a dictionary, whose norms are told what is valid."""

    @nn.compact
    def __call__(self, batch, train: bool):
        x, mask = batch["x"], batch["mask"][..., None]
        for _ in range(2):
            x = nn.BatchNorm(momentum=0.9)(nn.Dense(8)(x), use_running_average=not train, mask=mask)
            x = nn.Dropout(0.2)(nn.relu(x), deterministic=not train)
        return nn.Dense(4)(jnp.where(mask, x, 0).sum(1) / mask.sum(1))


class Transformer(nn.Module):
    """All norms of activations but batch norm."""

    @nn.compact
    def __call__(self, x, train: bool):
        for norm in (nn.LayerNorm, nn.RMSNorm):
            x = x + nn.MultiHeadDotProductAttention(2)(norm()(x), deterministic=not train)
            x = x + nn.Dense(8)(nn.gelu(nn.Dense(16)(nn.GroupNorm(num_groups=4)(x))))
        return nn.Dense(4)(nn.InstanceNorm()(x).max(1))


class Wrapped(nn.Module):
    """Weights under spectral norm and weight norm. The first leaves u and sigma among the batch statistics."""

    @nn.compact
    def __call__(self, x, train: bool):
        x = nn.SpectralNorm(nn.Conv(8, (3, 3)))(x, update_stats=train)
        x = nn.relu(nn.BatchNorm(momentum=0.9)(x, use_running_average=not train))
        return nn.WeightNorm(nn.Dense(4))(x.mean((1, 2)))
