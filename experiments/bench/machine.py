"""On what it was measured."""

import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

import jax

import bnjax

PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "dm-haiku", "equinox", "keras", "torch")


def machine() -> dict[str, Any]:
    """The processor, the accelerator if there is one, and the versions of what took part."""
    device = jax.devices()[0]
    return {
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "accelerator": None if device.platform == "cpu" else device.device_kind,
        "system": platform.system(),
        "versions": {"python": platform.python_version(), "bnjax": bnjax.__version__, **_versions()},
    }


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return " ".join(line.split(":", 1)[1].split())
    return platform.processor() or platform.machine()


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def sentence(facts: dict[str, Any]) -> str:
    """The same in words."""
    device = f"{facts['accelerator']}, " if facts["accelerator"] else ""
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    return f"{device}{facts['cpu']}, {facts['cores']} cores; {versions}."
