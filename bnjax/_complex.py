"""Products that are right for complex numbers, too."""

import jax.numpy as jnp
from jax import Array


def abs_sq(z: Array) -> Array:
    """|z|^2, real."""
    return dot(z, z)


def dot(a: Array, b: Array) -> Array:
    """The real part of conj(a) b: the product of two numbers read as vectors of the plane."""
    if jnp.iscomplexobj(a):
        return a.real * b.real + a.imag * b.imag
    return a * b
