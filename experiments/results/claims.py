"""A claim is code: a sentence, its figures from the evidence, and whether they bear it out."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from scipy.special import stdtrit

from experiments.results.evidence import Evidence

Verdict = Literal["confirmed", "refuted", "within noise", "not measured"]
LEVEL = 0.95


class Interval(NamedTuple):
    """A mean over some seeds, and the 95 % interval for the mean over many."""

    mean: float
    low: float
    high: float

    def __format__(self, form: str) -> str:
        """The mean with its interval: `0.90 [0.88, 0.92]`."""
        return f"{self.mean:{form}} [{self.low:{form}}, {self.high:{form}}]"

    def named(self, name: str, digits: int = 4) -> dict[str, float]:
        """A part of a row of a picture: the mean under a name, and where it lies.

        >>> Interval(0.5, 0.25, 0.75).named("accuracy", 1)
        {'accuracy': 0.5, 'low': 0.2, 'high': 0.8}
        """
        mean, low, high = (round(v, digits) for v in self)
        return {name: mean, "low": low, "high": high}

    def power(self) -> "Interval":
        """Of what it is the logarithm of, base ten: a geometric mean.

        >>> Interval(1.0, 0.0, 2.0).power()
        Interval(mean=10.0, low=1.0, high=100.0)
        """
        return Interval(*(10**value for value in self))

    def above(self, bound: float) -> Verdict:
        """Whether it lies above `bound` as a whole."""
        return "confirmed" if self.low > bound else "refuted" if self.high < bound else "within noise"

    def below(self, bound: float) -> Verdict:
        """Whether it lies below `bound` as a whole."""
        return "confirmed" if self.high < bound else "refuted" if self.low > bound else "within noise"


def interval(values: Sequence[float] | np.ndarray) -> Interval:
    """The mean of the values of some seeds, and its interval by Student's t, which is right also for five of them.

    (The percentiles of the bootstrap never leave the range of the values. Of five values they hold the mean 84 times in
    100: a test counts.)

    For a difference of two settings give the differences of equal seeds, which are paired so.

    >>> interval([1.0, 1.0, 1.0])
    Interval(mean=1.0, low=1.0, high=1.0)
    """
    values = np.asarray(values, np.float64)
    mean, n = float(values.mean()), len(values)
    half = float(stdtrit(n - 1, (1 + LEVEL) / 2) * values.std(ddof=1) / np.sqrt(n)) if n > 1 else 0.0
    return Interval(mean, mean - half, mean + half)


def paired(evidence: Evidence, metric: str, better: Mapping[str, object], worse: Mapping[str, object]) -> Interval:
    """The interval of a difference between two settings, of the seeds that both have."""
    a, b = evidence.by_seed(metric, better), evidence.by_seed(metric, worse)
    return interval([a[seed] - b[seed] for seed in sorted(a.keys() & b.keys())])


def all_of(verdicts: Sequence[Verdict]) -> Verdict:
    """The verdict on a sentence with several parts: the worst of theirs.

    >>> all_of(["confirmed", "within noise"])
    'within noise'
    """
    order: tuple[Verdict, ...] = ("refuted", "not measured", "within noise", "confirmed")
    return min(verdicts, key=order.index)


class Claim(NamedTuple):
    """What a study says."""

    name: str
    sentence: str
    """With names of figures in braces, as `{batch:.2f}`."""
    figures: Callable[[Evidence], Mapping[str, Interval | float | str]]
    """What fills in the sentence. A `LookupError` says that it was not measured."""
    holds: Callable[[Mapping[str, Any]], Verdict]
    """Of the figures."""
    falsified_by: str
    """In words, what `holds` looks for."""
    paper: str = ""
    """What a paper found, and which."""
    about: str = ""
    """The setting that it is about, where that is not the study's `label`."""


class Judged(NamedTuple):
    """A claim, its sentence with the figures filled in, and the verdict."""

    claim: Claim
    said: str
    verdict: Verdict
    figures: Mapping[str, Interval | float | str]

    def __str__(self) -> str:
        """In Markdown: the verdict, and the sentence that it is about."""
        return f"**{self.verdict.capitalize()}:** {self.said}"


@functools.cache  # the same claims stand on several pages
def judge(claim: Claim, evidence: Evidence) -> Judged:
    """Scores a claim. What it needs and was not measured is said to be so."""
    try:
        figures = claim.figures(evidence)
    except LookupError as missing:
        return Judged(claim, f"{claim.name}. It needs {missing.args[0]}.", "not measured", {})
    return Judged(claim, claim.sentence.format(**figures), claim.holds(figures), figures)
