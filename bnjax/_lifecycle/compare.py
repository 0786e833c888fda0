"""The outputs of a model before and after a change that should change nothing."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bnjax._lifecycle.report import Report

MOST = 1e-3  # of the largest output, in float32
LOW = ("bfloat16", "float16", "float8")


def compared(verb: str, report: Report, before: Any, after: Any, *, exact: bool) -> Report:
    """The report with the difference of the outputs in its rows.

    Args:
      verb: the name of the caller, for errors.
      report: what was changed.
      before: the outputs of before.
      after: those of after.
      exact: whether all was computed in float32 or wider.

    Raises:
      ValueError: outputs in float32 or wider that differ by more than rounding.
    """
    pairs = zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True)
    error = max((difference(b, a) for b, a in pairs if jnp.issubdtype(jnp.result_type(b), jnp.inexact)), default=0.0)
    if exact and not error <= MOST:
        raise ValueError(
            f"`{verb}` would change the output by {error:.1e} of its largest entry, so nothing was changed. If `call` "
            "draws random numbers or runs the model in training mode, have it run as for evaluation; otherwise this is "
            f"a fault of `{verb}`.\n{report}"
        )
    return Report(row._replace(evidence=row.evidence | {"error": error}) if row.done else row for row in report)


def is_exact(dtypes: Iterable[str]) -> bool:
    """Whether all values of a program are in float32 or wider, so that rounding stays small."""
    return not any(dtype.startswith(LOW) for dtype in dtypes)


def difference(before: Any, after: Any) -> float:
    """The largest difference, relative to the largest entry."""
    a, b = (np.asarray(t).astype(complex) for t in (before, after))
    if not a.size:
        return 0.0
    return float(np.max(np.abs(a - b)) / max(float(np.max(np.abs(a))), np.finfo(np.float32).tiny))
