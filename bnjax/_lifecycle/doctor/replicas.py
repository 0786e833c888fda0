"""Whether the replicas of a model, whose leaves have an axis of devices in front, are alike."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from bnjax._core.state import Path
from bnjax._lifecycle.doctor.facts import TINY
from bnjax._lifecycle.fold import wide
from bnjax._lifecycle.trees import shown


def check_replicated(leaves: Mapping[Path, Any]) -> None:
    """Raises unless all leaves have as many devices in front."""
    sizes = {np.shape(leaf)[:1] for leaf in leaves.values()}
    if len(sizes) != 1 or () in sizes:
        found = ", ".join(str(size[0]) if size else "a number" for size in sorted(sizes))
        raise ValueError(
            "`replicated=True` says that each leaf of the variables has an axis of devices in front, but their first "
            f"axes have the lengths {found or 'of nothing'}; pass what `pmap` returned, or leave it out."
        )


def differing(leaves: Mapping[Path, Any]) -> dict[Path, float]:
    """The leaves in which replicas differ, by how much: relative to the largest entry of the leaf."""
    found = {}
    for path, leaf in leaves.items():
        if not np.issubdtype(np.asarray(leaf).dtype, np.number) and "float" not in str(np.asarray(leaf).dtype):
            continue
        value = wide(leaf)
        apart = float(np.abs(value - value[:1]).max(initial=0.0))
        if apart:
            found[path] = apart / max(float(np.abs(value).max()), TINY)
    return found


def statistics_apart(mean: Any, var: Any) -> tuple[float, float]:
    """How far replicas of one norm are apart: the mean in standard deviations, the variance as a factor."""
    mean, var = wide(mean), np.maximum(wide(var), TINY)
    moved = np.abs(mean - mean[:1]) / np.sqrt(var[:1])
    factor = np.exp(np.abs(np.log(var / var[:1])))
    return float(moved.max(initial=0.0)), float(factor.max(initial=1.0))


def modules_of(paths: Mapping[Path, float]) -> dict[str, float]:
    """The modules of leaves, each with its largest difference."""
    found: dict[str, float] = {}
    for path, apart in paths.items():
        module = shown(path[:-1])
        found[module] = max(found.get(module, 0.0), apart)
    return found
