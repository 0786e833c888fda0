"""What several runs of one kind were worth, in figures."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from experiments.results.records import MORE, Record, has_recalibrated

TARGET = 0.95  # of the held-out examples


class Summary(NamedTuple):
    """The runs of a norm, one for each seed."""

    norm: str
    accuracies: list[float]  # on the held-out examples, at the end
    steps: list[float | None]  # at the first evaluation that reached the target
    recalibrated: list[float]  # the accuracies with recalibrated statistics, of runs that have them

    @property
    def accuracy(self) -> str:
        """In percent, mean ± sample standard deviation."""
        return _in_percent(self.accuracies)

    @property
    def figures(self) -> dict[str, str]:
        """What tables show, by the heads of their columns."""
        again = {"recalibrated, %": _in_percent(self.recalibrated)} if self.recalibrated else {}
        return {"held-out accuracy, %": self.accuracy, **again, f"steps to {TARGET:.0%}": self.steps_to_target}

    @property
    def steps_to_target(self) -> str:
        """Mean ± sample standard deviation of the runs that reached it, and how many did if not all."""
        reached = [s for s in self.steps if s is not None]
        if not reached:
            return "never"
        some = "" if len(reached) == len(self.steps) else f" ({len(reached)} of {len(self.steps)} runs)"
        return mean_and_deviation(reached, digits=0) + some


def summarize(norm: str, runs: Sequence[Sequence[Record]]) -> Summary:
    steps = [next((r["step"] for r in records if r["eval/accuracy"] >= TARGET), None) for records in runs]
    again = [records[-1][MORE[1]] for records in runs if has_recalibrated(records[-1])]
    return Summary(norm, [records[-1]["eval/accuracy"] for records in runs], steps, again)


def _in_percent(accuracies: Sequence[float]) -> str:
    return mean_and_deviation([100 * a for a in accuracies], digits=2)


def errors_of(runs: Sequence[Sequence[Record]]) -> list[float]:
    """Of every run, the error on the held-out examples at the end, in percent."""
    return [100 * (1 - records[-1]["eval/accuracy"]) for records in runs]


def mean_and_deviation(values: Sequence[float], digits: int) -> str:
    """Mean ± sample standard deviation; of one value, that value.

    >>> mean_and_deviation([1.0, 3.0], digits=1)
    '2.0 ± 1.4'
    """
    deviation = f" ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else ""
    return f"{np.mean(values):.{digits}f}{deviation}"
