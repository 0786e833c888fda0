"""Norms of somebody's own that scale by 1 + w: a module says so itself, when it is run with zeros."""

from __future__ import annotations

import jax
import numpy as np

from bnjax._lifecycle.convert.layers import OWN, ROLES, Layer


def offset_of(layer: Layer) -> float:
    """What a module adds to its scale: 1 where a scale of zeros does not make zeros, else 0."""
    probe = layer.seen.probe
    if layer.kind != OWN or probe is None or layer.is_product or "weight" not in layer.leaves:
        return 0.0
    zeros = {name: 0.0 for name in layer.seen.leaves if ROLES.get(name) in ("weight", "bias")}
    try:
        outputs = jax.tree.leaves(probe(zeros))
    except Exception:  # somebody's code, out of its place: then it is taken for a plain scale, and the outputs compared
        return 0.0
    return float(any(np.any(np.asarray(y) != 0) for y in outputs))
