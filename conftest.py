"""What doctests may name without importing it, how tests are shared out, and how their processes use memory."""

import pytest

from experiments.cli.memory import keep_freed_memory

keep_freed_memory()  # before any test imports JAX


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Neighbours stay together, since what one test of a file compiles serves the next."""
    from xdist.scheduler import WorkStealingScheduling

    return WorkStealingScheduling(config, log) if config.option.dist == "load" else None


@pytest.fixture(autouse=True)
def _doctest_names(doctest_namespace):
    import jax
    import jax.numpy as jnp

    doctest_namespace.update(jax=jax, jnp=jnp)
