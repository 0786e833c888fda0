"""Flax's own tests, once on Flax's classes and once on ours.

    python -m tests.flax_suite [-k EXPRESSION]

Fetches the source distribution of the installed Flax with pip into a temporary folder and runs its normalization
tests with pytest: first as they are, then with every class of `bnjax.linen` and `bnjax.nnx` in the place of Flax's
class of that name. As many must pass, and none may be skipped. Then the ResNet of Flax's ImageNet example is trained
with either class (`modules/test_dropin_models.py`). Without `-k`, all tests of norms.

This module is also the pytest plugin that exchanges the classes (`-p tests.flax_suite`).
"""

import argparse
import importlib.metadata
import inspect
import os
import subprocess
import sys
import tarfile
import tempfile
import xml.etree.ElementTree as ElementTree
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import flax.linen
import flax.nnx
import pytest

import bnjax.linen
import bnjax.nnx
from tests.kit.compiling import environment

ROOT = Path(__file__).resolve().parents[1]
FILES = ("tests/linen/linen_test.py", "tests/nnx/nn/normalization_test.py")
EXAMPLE = "examples/imagenet/models.py"
PAIRS = ((flax.linen, bnjax.linen), (flax.nnx, bnjax.nnx))


def same_names():
    """The classes that a module of ours and a module of Flax's both have: (theirs, name, ours)."""
    return [
        (theirs, name, thing)
        for theirs, ours in PAIRS
        for name, thing in vars(ours).items()
        if inspect.isclass(thing) and hasattr(theirs, name)
    ]


def pytest_configure():
    for theirs, name, thing in same_names():
        setattr(theirs, name, thing)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session):
    if any(getattr(theirs, name) is not thing for theirs, name, thing in same_names()):
        pytest.exit("The classes did not stay exchanged.", returncode=4)


class Counts(NamedTuple):
    passed: int
    failed: int
    skipped: int


def fetch(folder: Path) -> Path:
    """Flax's source distribution, unpacked."""
    version = importlib.metadata.version("flax")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", "flax"]
    result = subprocess.run([*command, "--dest", str(folder), f"flax=={version}"], check=False)
    archives = list(folder.glob("flax-*.tar.gz"))
    if result.returncode or len(archives) != 1:
        sys.exit(
            f"FAILED: pip could not fetch the source distribution of flax {version} (exit status "
            f"{result.returncode}); Flax's tests need it, and so a package index that has it."
        )
    with tarfile.open(archives[0]) as archive:
        archive.extractall(folder, filter="data")
    return archives[0].with_name(archives[0].name.removesuffix(".tar.gz"))


def run(source: Path, expression: str, *plugin: str) -> Counts:
    """Runs Flax's tests in `source` and counts.

    Compiled as ours, but optimized: some want linen and nnx to be equal to the last bit.
    """
    report = source / f"report{len(plugin)}.xml"
    command = [sys.executable, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", "--import-mode=importlib"]
    command += ["-c", str(source / "pyproject.toml"), f"--junitxml={report}", "-k", expression, *plugin]
    command += [str(source / file) for file in FILES]
    compiled = environment() | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "0"}
    done = subprocess.run(
        command, cwd=ROOT, env=compiled, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    print(done.stdout)
    if not report.exists():
        return Counts(0, 1, 0)
    suites = list(ElementTree.parse(report).iter("testsuite"))
    total, failed, skipped = (
        sum(int(suite.get(key, 0)) for suite in suites for key in keys)
        for keys in (["tests"], ["failures", "errors"], ["skipped"])
    )
    return Counts(total - failed - skipped, failed, skipped)


def train_example(source: Path) -> int:
    """Our test of whole models, on the ResNet of Flax's ImageNet example."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "flax_example"]
    environment = os.environ | {"FLAX_EXAMPLE": str(source / EXAMPLE)}
    command += ["tests/modules/test_dropin_models.py"]
    return subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode


def main() -> None:
    parser = argparse.ArgumentParser(description="Flax's own normalization tests, on Flax's classes and on ours.")
    parser.add_argument("-k", dest="expression", default="norm")
    expression = parser.parse_args().expression
    with tempfile.TemporaryDirectory() as folder:
        source = fetch(Path(folder))
        with ThreadPoolExecutor(2) as at_once:
            theirs = at_once.submit(run, source, expression)
            ours = at_once.submit(run, source, expression, "-p", "tests.flax_suite")
        flax_counts, our_counts = theirs.result(), ours.result()
        example = train_example(source)
    print(f"\nIn the place of Flax's: {', '.join(f'{t.__name__}.{name}' for t, name, _ in same_names())}")
    print(f"Flax {importlib.metadata.version('flax')}'s own tests, -k {expression!r}:")
    for name, counts in (("Flax's classes", flax_counts), ("bnjax's classes", our_counts)):
        print(f"  on {name:<16} {counts.passed} passed, {counts.failed} failed, {counts.skipped} skipped")
    print(f"  ResNet of its ImageNet example, either class: {'FAILED' if example else 'passed'}")
    equal = our_counts.passed == flax_counts.passed > 0
    if not equal or our_counts.failed or flax_counts.skipped or our_counts.skipped or example:
        sys.exit("FAILED: as many must pass on our classes as on Flax's, and none may be skipped.")


if __name__ == "__main__":
    main()
