"""Strict: no rank promotion unasked, warnings are errors, and eight devices to be distributed over."""

import contextlib
import gc
import os
import signal

os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"

import hypothesis
import jax
import numpy as np
import pytest

from tests.kit.compiling import quickly

jax.config.update("jax_numpy_rank_promotion", "raise")
# Programs do not say which lines they come from: nobody reads it, and to write it takes a tenth of the time.
jax.config.update("jax_traceback_in_locations_limit", 0)
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
    "experiments/compare", "experiments/train",
}  # fmt: skip
# Files whose names begin so say nothing of another release of jax that the rest does not say: training, the benchmark,
# tools and sentences. `pytest -m "not any_jax"` leaves them out, but for a step in every layout and a run of two
# processes.
ANY_JAX = ("experiments/", "source/types")
BUT = {
    "test_every_layout_computes_the_same_in_float32",
    "test_two_processes_end_with_the_parameters_of_one_that_nothing_disturbed",
}
# Of a test with many cases, the newest jax runs so many, in equal steps, and each test begins with another one: what
# another release changes, it changes for more than one of them.
CASES = 2


def pytest_collection_modifyitems(items):
    """Marks what says nothing of another release of jax."""
    cases = {}
    for item in items:
        if not isinstance(item, pytest.Function) or item.originalname in BUT:
            continue
        if short_name(item.module).startswith(ANY_JAX):
            item.add_marker("any_jax")
        else:
            cases.setdefault((item.parent.nodeid, item.originalname), []).append(item)
    for first, same in enumerate(cases.values()):
        kept = {(first + n * len(same) // CASES) % len(same) for n in range(CASES)}
        for n, item in enumerate(same):
            if n not in kept:
                item.add_marker("any_jax")


def short_name(module):
    """Folder and name, as in the lists above."""
    return module.__name__.removeprefix("tests.").replace(".test_", "/")


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


@pytest.fixture
def heeds_sigint():
    """What a shell starts in the background ignores SIGINT, and so does all that it starts: not in this test."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
