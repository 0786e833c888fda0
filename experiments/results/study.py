"""What a study is: a question, settings to measure, claims about what was measured, and pictures of it."""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from experiments.results.claims import Claim
from experiments.results.evidence import Evidence, Measured
from experiments.results.tables import Table

Settings = Mapping[str, Any]  # of a cell; plain numbers and words


class Chart(NamedTuple):
    """A picture: a Vega-Lite specification with its data, and the words beside it."""

    title: str
    text: str
    spec: Mapping[str, Any]
    table: Table | None = None
    """The figures of the picture."""


class Study(NamedTuple):
    """One question, answered by measurements."""

    name: str
    title: str
    question: str
    """The article's question, in a sentence."""
    protocol: str
    """What was done, in plain words; with the papers."""
    cells: Callable[[bool], list[Settings]]
    """`cells(quick)`: the settings to measure; a few of them if `quick`."""
    run: Callable[[Settings, Sequence[int]], Iterable[Measured]]
    """`run(settings, seeds)`: trains one cell, all of its seeds."""
    seeds: int
    """How many are needed for the claims."""
    constants: Settings
    """What all cells have in common. Other constants make other digests."""
    claims: tuple[Claim, ...]
    charts: Callable[[Evidence], list[Chart]]
    label: str = "norm"
    """The setting that claims are about: no claim may stay confirmed however its names are mixed up (a test)."""

    def digest(self, settings: Settings) -> str:
        """A short name of all that a cell is computed with."""
        said = json.dumps([self.name, dict(self.constants), dict(settings)], sort_keys=True)
        return hashlib.blake2b(said.encode(), digest_size=6).hexdigest()

    def digest_of_seeds(self, settings: Settings, seeds: Sequence[int]) -> str:
        """That of a cell with these seeds."""
        return self.digest({**settings, "seeds": list(seeds)})
