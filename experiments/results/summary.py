"""What several runs of one kind were worth, in figures."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from experiments.results.curves import Score
from experiments.results.records import Record, splits


class Summary(NamedTuple):
    """The runs of a norm, one for each seed, by the score of their task."""

    norm: str
    score: Score
    runs: Sequence[Sequence[Record]]

    def ends(self, split: str = "eval") -> list[float]:
        """The score of every run at its end, on the held-out examples."""
        return [self.score.value(records[-1], split) for records in self.runs]

    @property
    def figures(self) -> dict[str, str]:
        """What tables show, by the heads of their columns."""
        name, unit = self.score.name, self.score.unit
        found = {f"held-out {name}{unit}": shown(self.score, self.ends())}
        for split in other_splits(self.runs[0][-1]):
            found[f"{split}{unit}"] = shown(self.score, self.ends(split))
        if self.score.target is not None:
            found[f"steps to {self.score.goal}"] = self._steps(self.score.target)
        return found

    def single(self, i: int) -> "Summary":
        """One of the runs alone."""
        return self._replace(runs=self.runs[i : i + 1])

    def _steps(self, target: float) -> str:
        """To the first evaluation within the target, of the runs that reached it; and how many did, if not all."""

        def is_within(record: Record) -> bool:  # 95 % right are 5.000000000000004 % wrong
            return round(self.score.value(record, "eval"), 9) <= target

        firsts = [next((r["step"] for r in records if is_within(r)), None) for records in self.runs]
        reached = [step for step in firsts if step is not None]
        if not reached:
            return "never"
        some = "" if len(reached) == len(firsts) else f" ({len(reached)} of {len(firsts)} runs)"
        return mean_and_deviation(reached, digits=0) + some


def other_splits(record: Record) -> tuple[str, ...]:
    """In which other ways the held-out examples were evaluated."""
    return tuple(split for split in splits(record) if split not in ("train", "eval"))


def shown(score: Score, values: Sequence[float]) -> str:
    """Scores of several runs as tables show them: with two digits, small losses with three figures.

    >>> shown(Score("loss", lambda record, split: 0.0), [0.012345])
    '0.0123'
    """
    mean = abs(np.mean(values))
    small = not score.percent and 0 < mean < 1
    return mean_and_deviation(values, digits=2 - int(np.floor(np.log10(mean))) if small else 2)


def mean_and_deviation(values: Sequence[float], digits: int) -> str:
    """Mean ± sample standard deviation; of one value, that value.

    >>> mean_and_deviation([1.0, 3.0], digits=1)
    '2.0 ± 1.4'
    """
    with np.errstate(invalid="ignore"):  # what is infinite has no deviation: it is NaN
        deviation = f" ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else ""
        return f"{np.mean(values):.{digits}f}{deviation}"
