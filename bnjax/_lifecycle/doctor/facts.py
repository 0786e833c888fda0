"""What is known of a norm: of its module, of what stands before it, and of the batches that it was given."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from bnjax._lifecycle.fold import wide
from bnjax._lifecycle.population import Measured

TINY = float(np.finfo(np.float32).tiny)
LOW = ("bfloat16", "float16", "float8")  # how names of dtypes of few bits begin


class Batches:
    """The moments of each batch that a norm was given, while all norms normalize by the batch; in float64.

    Attributes:
      calls: in all.
    """

    def __init__(self) -> None:
        self.calls = 0
        self._counts: list[Any] = []
        self._means: list[Any] = []
        self._vars: list[Any] = []
        self._values: list[float] = []

    def add(self, measured: Measured) -> None:
        """One more batch."""
        count, calls = (np.asarray(measured[name], np.float64) for name in ("count", "calls"))
        if not count.max(initial=0.0):
            return
        self.calls += int(calls.max())
        self._values.append(float((count / np.maximum(calls, 1)).max()))
        self._counts.append(count)
        self._means.append(wide(measured["mean"]))
        self._vars.append(np.asarray(measured["var"], np.float64))

    def __len__(self) -> int:
        return len(self._counts)

    @property
    def values(self) -> float:
        """How many values of a feature a call measures, at most."""
        return max(self._values)

    @property
    def finite(self) -> bool:
        """Whether all that was measured is finite."""
        return all(
            bool(np.isfinite(m).all() and np.isfinite(v).all()) for m, v in zip(self._means, self._vars, strict=True)
        )

    @property
    def mean(self) -> Any:
        """Of all values together."""
        return self._pooled(self._means)

    @property
    def within(self) -> Any:
        """The mean of the variances of the batches: what a running variance follows."""
        return self._pooled(self._vars)

    @property
    def var(self) -> Any:
        """Of all values together: that within batches, and that between their means."""
        return self.within + self._pooled([np.abs(m - self.mean) ** 2 for m in self._means])

    def scatter(self) -> tuple[float, float]:
        """How much batches differ: the mean, in standard deviations, and the logarithm of the variance.

        A standard deviation over the batches, of the feature in the middle. Of one batch nothing is known; what so many
        independent values would have stands in its place.
        """
        if len(self) < 2:
            return 1 / np.sqrt(self.values), np.sqrt(2 / self.values)
        std = np.sqrt(np.maximum(self.within, TINY))
        means = np.std(np.stack(self._means), axis=0, ddof=1) / std
        logs = np.std(np.log(np.maximum(np.stack(self._vars), TINY)), axis=0, ddof=1)
        return float(np.median(means)), float(np.median(logs))

    def _pooled(self, parts: list[Any]) -> Any:
        total = np.maximum(sum(self._counts), 1)
        return sum(count * part for count, part in zip(self._counts, parts, strict=True)) / total


@dataclasses.dataclass
class Norm:
    """What is known of a norm.

    Attributes:
      path: of the module, joined by "/"; the root is "".
      kind: a name of `bnjax.NORMS`, or the name of a class.
      epsilon: of the module, if it has one.
      momentum: likewise.
      state: the running mean and variance, in float64, if there are any.
      dtype: of the state.
      parameters: of the module, in float64, by name.
      called: whether the batches reach it.
      why: it was not measured.
      batches: what it was given.
      features: how many numbers one of its means has; with more in the state, it is a stack.
      slice: it measures slices of so many examples (`virtual_batch_size`), and not the batch.
      part: of the values of a batch, that of a slice.
      low: its input is in bfloat16 or float16.
      layer: right before it, which has a bias that it cancels.
      dropout: before it, with no other norm between: path and rate.
    """

    path: str
    kind: str
    epsilon: float = 0.0
    momentum: float | None = None
    state: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    dtype: str = ""
    parameters: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    called: bool = True
    why: str = ""
    batches: Batches = dataclasses.field(default_factory=Batches)
    features: int = 0
    slice: int | None = None
    part: float = 1.0
    low: bool = False
    layer: str = ""
    dropout: tuple[str, float] | None = None

    @property
    def measured(self) -> bool:
        """Whether there is a running state, and something to compare it with."""
        return bool(self.state) and len(self.batches) > 0 and self.finite

    @property
    def finite(self) -> bool:
        """Whether all numbers are finite: of the state, and of what was measured."""
        return all(bool(np.isfinite(t).all()) for t in self.state.values()) and self.batches.finite

    @property
    def live(self) -> Any:
        """Which features vary at all: the others tell nothing.

        Columns of a table have units of their own: one may vary far less than the others, and yet more than epsilon
        and rounding.
        """
        var = self.batches.var
        small = np.maximum(self.epsilon, (ROUNDING * np.abs(self.batches.mean)) ** 2) if self.epsilon else np.inf
        return (var > DEAD * max(float(np.median(var)), TINY)) | (var > small)

    @property
    def mean_off(self) -> Any:
        """The running mean of each feature minus that of the batches, in standard deviations; NaN where it is dead."""
        off = self.state["mean"] - self.batches.mean
        std = np.sqrt(np.maximum(self.batches.within + self.epsilon, TINY))
        return np.where(self.live, (np.abs(off) if np.iscomplexobj(off) else off) / std, np.nan)

    @property
    def log_ratio(self) -> Any:
        """The logarithm of the running variance of each feature over that of the batches; NaN where it is dead."""
        ratio = (self.state["var"] + self.epsilon) / np.maximum(self.batches.within + self.epsilon, TINY)
        return np.where(self.live, np.log(np.maximum(ratio, TINY)), np.nan)

    def slices(self, values: Any) -> list[Any]:
        """Values of all features, those of each norm of a stack by themselves."""
        axes = [axis for axis, size in enumerate(values.shape) if size == self.features]
        if values.size == self.features or not axes:
            return [values.reshape(-1)]
        return [row for axis in axes for row in np.moveaxis(values, axis, -1).reshape(-1, self.features)]


# A feature varies if its variance is more than so much of that of the feature in the middle: a thousandth in standard
# deviations, below what is left of a feature by rounding in bfloat16.
DEAD = 1e-6
ROUNDING = 1e-6  # of a mean in float32, and more


def known(path: str, kind: str, module: Any, parameters: Any, stats: Mapping[str, Any], called: bool) -> Norm:
    """A norm, from the attributes of its module and its variables."""
    state = {name: wide(stats[name]) for name in ("mean", "var") if name in stats}
    momentum = getattr(module, "momentum", None)
    return Norm(
        path, kind, float(getattr(module, "epsilon", None) or 0.0),
        float(momentum) if isinstance(momentum, int | float) else None,
        state if len(state) == 2 else {}, str(jnp.result_type(stats["mean"])) if state else "",
        {name: wide(leaf) for name, leaf in parameters.items()}, called,
        slice=getattr(module, "virtual_batch_size", None),
    )  # fmt: skip
