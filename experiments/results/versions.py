"""The versions of what took part in a run."""

import importlib.metadata
import platform
import subprocess
from collections.abc import Sequence
from pathlib import Path

import bnjax

ROOT = Path(__file__).resolve().parents[2]


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


def commit() -> str:
    """The commit of the program, with a + if something was changed since; nothing outside of git."""
    git = ["git", "-C", str(ROOT)]
    head = subprocess.run([*git, "rev-parse", "--short=9", "HEAD"], capture_output=True, text=True, check=False)
    if head.returncode:
        return ""
    paths = ["--", "bnjax", "experiments"]
    changed = subprocess.run([*git, "diff", "--quiet", "HEAD", *paths], capture_output=True, check=False).returncode
    return head.stdout.strip() + "+" * bool(changed)
