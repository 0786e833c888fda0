"""Strict: no rank promotion unasked, warnings are errors, and eight devices to be distributed over."""

import os

os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"

import jax
import numpy as np
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(params=[np.float32, np.float64], ids=["float32", "float64"])
def precision(request):
    """Runs the test in float32 and again, 64-bit types enabled, in float64."""
    with jax.enable_x64(request.param is np.float64):
        yield request.param


@pytest.fixture
def x64():
    """64-bit types for one test."""
    with jax.enable_x64(True):
        yield
