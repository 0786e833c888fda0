"""Dropout that is the same on any number of devices: each example has a mask of its own, by its number.

Flax draws one mask for all rows that a device holds. Here a key for every example comes from Flax's own key of the
layer and the number of the example, so that neither the layout of the devices nor the rest of the batch matters. Models
use `flax.linen.Dropout` and `flax.nnx.Dropout` as ever.
"""

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import nnx
from jax import Array


class Noise(NamedTuple):
    """What the random numbers of a step are made of."""

    key: Array
    """A random key of the step, the same for all examples."""
    example: Array
    """The number of each example (n,) among all examples."""


_noise: ContextVar[Noise | None] = ContextVar("noise", default=None)


@contextlib.contextmanager
def by_example(noise: Noise | None) -> Iterator[None]:
    """Within it Flax's dropout layers draw a mask for each example; without `noise` they drop nothing."""
    token = _noise.set(noise)
    try:
        with nn.intercept_methods(_intercepted):
            yield
    finally:
        _noise.reset(token)


def _intercepted(call: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
    if isinstance(context.module, nn.Dropout) and context.method_name == "__call__":
        return _linen(context.module, *args, **kwargs)
    return call(*args, **kwargs)


def _linen(layer: nn.Dropout, inputs: Array, deterministic: bool | None = None, rng: Array | None = None) -> Array:
    still = nn.merge_param("deterministic", layer.deterministic, deterministic)
    if still or not layer.rate or _noise.get() is None:
        return inputs
    return dropped(inputs, layer.make_rng(layer.rng_collection) if rng is None else rng, layer)


class ByExample(nnx.Dropout):
    """What `flax.nnx.Dropout` becomes in a network of this program."""

    def __call__(self, inputs: Array, *, deterministic: bool | None = None, rngs: Any = None) -> Array:
        still = self.deterministic if deterministic is None else deterministic
        if still or not self.rate or _noise.get() is None:
            return inputs
        source = self.rngs if rngs is None else rngs
        if isinstance(source, nnx.Rngs):
            source = source[self.rng_collection]
        return dropped(inputs, source() if callable(source) else source, self)


def dropped(inputs: Array, key: Array, layer: nn.Dropout | nnx.Dropout) -> Array:
    """The inputs (n, ...) of a layer, some set to zero and the others larger; `key` is that of the layer.

    Raises:
      ValueError: the first axis of the inputs is not that of the examples.
    """
    noise = _noise.get()
    assert noise is not None
    if not inputs.ndim or len(inputs) != len(noise.example):
        raise ValueError(
            f"Dropout here draws a mask for each of {len(noise.example)} examples, which must be the first axis of its "
            f"inputs, but they have shape {inputs.shape}."
        )
    if layer.rate == 1:
        return jnp.zeros_like(inputs)
    kept, shared = 1 - layer.rate, {axis % inputs.ndim for axis in layer.broadcast_dims}
    shape = [1 if axis in shared else size for axis, size in enumerate(inputs.shape)]
    if 0 in shared:
        mask = jax.random.bernoulli(key, kept, shape)
    else:
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, noise.example)
        mask = jax.vmap(lambda k: jax.random.bernoulli(k, kept, shape[1:]))(keys)
    return jnp.where(mask, inputs / kept, jnp.zeros_like(inputs))


def attention_by_example(
    query: Array,
    key: Array,
    value: Array,
    mask: Array | None = None,
    dropout_rng: Array | None = None,
    dropout_rate: float = 0.0,
    deterministic: bool = False,
    dtype: Any = None,
) -> Array:
    """`flax.linen.dot_product_attention` for linen, with a mask of its own for each example and head, as BERT has it.

    Flax draws one mask for all of them.
    """
    weights = nn.dot_product_attention_weights(query, key, mask=mask, dtype=dtype)
    if dropout_rate and not deterministic:
        weights = nn.Dropout(dropout_rate, deterministic=False)(weights, rng=dropout_rng)
    return jnp.einsum("...hqk,...khd->...qhd", weights, value.astype(weights.dtype))
