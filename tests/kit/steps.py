"""One training step of `batch_norm`, with its gradients."""

import jax
import jax.numpy as jnp

from bnjax import batch_norm


def train(x, g, scale, bias, running, where=None, residual=None, **options):
    """y, dx, dscale, dbias of the loss (y * g).sum(), and the new state."""

    def loss(x, scale, bias):
        y, new = batch_norm(x, running, scale, bias, where=where, residual=residual, **options)
        return jnp.where(g == 0, 0, y.astype(g.dtype) * g).sum(), (y, new)  # without the NaN of 0 * NaN

    grads, (y, new) = jax.grad(loss, (0, 1, 2), has_aux=True)(x, scale, bias)
    return (y, *grads), new
