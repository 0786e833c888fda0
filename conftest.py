"""What doctests may name without importing it."""

import pytest


@pytest.fixture(autouse=True)
def _doctest_names(doctest_namespace):
    import jax
    import jax.numpy as jnp

    doctest_namespace.update(jax=jax, jnp=jnp)
