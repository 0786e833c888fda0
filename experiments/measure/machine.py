"""On what it was measured."""

import os
import platform
from pathlib import Path
from typing import Any

import jax

from experiments.results.versions import in_words, versions

PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "dm-haiku", "equinox", "keras", "torch")


def machine() -> dict[str, Any]:
    """The processor, the accelerator if there is one, and the versions of what took part."""
    device = jax.devices()[0]
    return {
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "accelerator": None if device.platform == "cpu" else device.device_kind,
        "system": platform.system(),
        "versions": versions(PACKAGES),
    }


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return " ".join(line.split(":", 1)[1].split())
    return platform.processor() or platform.machine()


def sentence(facts: dict[str, Any]) -> str:
    """The same in words."""
    device = f"{facts['accelerator']}, " if facts["accelerator"] else ""
    return f"{device}{facts['cpu']}, {facts['cores']} cores; {in_words(facts['versions'])}."
