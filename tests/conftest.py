"""Strict: no rank promotion unasked, warnings are errors, and eight devices to be distributed over."""

import contextlib
import functools
import gc
import os

os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"

import hypothesis
import jax
import numpy as np
import pytest

from tests.kit._unstable import compiler_options

jax.config.update("jax_numpy_rank_promotion", "raise")
# Tracing makes and drops objects beside millions that stay; to look for cycles as often as usual takes a sixth of the
# time.
gc.set_threshold(50_000, 20, 100)
# No test fails because the machine is busy.
hypothesis.settings.register_profile("busy", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("busy")

# These files' programs are compiled as users' are: they look at the program itself, its memory, its rounding or its
# speed, or train for long. All others run once on a few numbers, and to compile them takes nearly all of the time.
COMPILED_IN_FULL = {
    "core/numerics", "core/remat", "devices/hlo", "documents/readme", "experiments/bench_compiled",
    "experiments/compare", "experiments/processes", "experiments/train",
}  # fmt: skip
# Files whose names begin so say nothing of another release of jax that the rest does not say: training, the benchmark,
# tools and sentences. `pytest -m "not any_jax"` leaves them out, but for a step in every layout and a run of two
# processes.
ANY_JAX = ("experiments/", "source/types")
BUT = {
    "test_every_layout_computes_the_same_in_float32",
    "test_two_processes_end_with_the_parameters_of_one_that_nothing_disturbed",
}
# Of a test with many cases, the newest jax runs so many, from the first to the last in equal steps: what another
# release changes, it changes for more than one of them. Of the contract of every norm it runs all.
CASES = 8
ALL_CASES = ("norms/battery",)
# What the rest do without, beside LLVM's passes: kernels by way of MLIR, and 32 modules to be compiled at a time.
PLAINER = {"xla_cpu_use_fusion_emitters": False, "xla_cpu_parallel_codegen_split_count": 1}


def pytest_collection_modifyitems(items):
    """Marks what says nothing of another release of jax."""
    cases = {}
    for item in items:
        if not isinstance(item, pytest.Function) or item.originalname in BUT:
            continue
        if short_name(item.module).startswith(ANY_JAX):
            item.add_marker("any_jax")
        elif not short_name(item.module).startswith(ALL_CASES):
            cases.setdefault((item.parent.nodeid, item.originalname), []).append(item)
    for same in cases.values():
        kept = {round(n * (len(same) - 1) / (CASES - 1)) for n in range(CASES)}
        for n, item in enumerate(same):
            if len(same) > CASES and n not in kept:
                item.add_marker("any_jax")


def short_name(module):
    """Folder and name, as in the lists above."""
    return module.__name__.removeprefix("tests.").replace(".test_", "/")


@functools.cache
def known():
    """Those of the options above that this XLA has."""

    def accepted(name):
        try:
            return jax.jit(lambda: 0, compiler_options={name: PLAINER[name]})() == 0
        except jax.errors.JaxRuntimeError:
            return False

    return [(name, PLAINER[name]) for name in PLAINER if accepted(name)]


@contextlib.contextmanager
def quickly():
    with compiler_options(known()):
        jax.config.update("jax_disable_most_optimizations", True)
        yield
        jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(autouse=True, scope="module")
def _compiled(request):
    full = short_name(request.module) in COMPILED_IN_FULL
    if full:
        jax.clear_caches()  # of what other files compiled
    with contextlib.nullcontext() if full else quickly():
        yield


@pytest.fixture
def compile_quickly():
    """For the tests that train little, in a file that is compiled in full."""
    with quickly():
        yield


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
