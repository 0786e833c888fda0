"""The versions of what took part in a run."""

import importlib.metadata
import platform
from collections.abc import Sequence

import bnjax


def versions(packages: Sequence[str]) -> dict[str, str]:
    """The versions of Python, of this library, and of those packages that are installed."""
    found = {"python": platform.python_version(), "bnjax": bnjax.__version__}
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def in_words(found: dict[str, str]) -> str:
    """Names and versions in one line.

    >>> in_words({"jax": "0.10.2", "flax": "0.12.8"})
    'jax 0.10.2, flax 0.12.8'
    """
    return ", ".join(f"{name} {version}" for name, version in found.items())
