"""What contexts and verbs ask of the norms of a model, and what all of it together means for one norm.

The entries are what the caches of `jit` are keyed by, so they are hashable, and equal where they ask for the same.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from bnjax import _checks as checks
from bnjax._lifecycle.population import Law

Options = tuple[tuple[str, Any], ...]  # sorted by name


@dataclasses.dataclass(frozen=True)
class Upgrade:
    """Batch norms run through bnjax, with these attributes of its `BatchNorm`."""

    match: str
    options: Options


@dataclasses.dataclass(frozen=True)
class Swap:
    """Norms become another norm, with these attributes of its module."""

    match: str
    name: str
    kind: str | None
    options: Options


@dataclasses.dataclass(frozen=True)
class Freeze:
    """Norms normalize by their running state (`use`), which steps (`update`); no gradient reaches (`parameters`)."""

    match: str
    use: bool
    update: bool
    parameters: bool

    @classmethod
    def checked(cls, match: str, use: Any, update: Any, parameters: Any) -> Freeze:
        """The entry.

        Raises:
          ValueError: an argument that does not fit, or nothing that is held.
        """
        check_match(match)
        for name, value in (("use", use), ("update", update), ("parameters", parameters)):
            checks.flag(value, name)
        if not use and update and not parameters:
            raise ValueError(
                "`freeze(use=False, update=True)` holds nothing; leave out one of the two, or write `parameters=True`."
            )
        return cls(match, bool(use), bool(update), bool(parameters))


@dataclasses.dataclass(frozen=True)
class Flow:
    """All batch norms normalize by this, whatever is asked; their state stays as it is, and batches may be measured."""

    by: Literal["batch", "running"]
    law: Law | None = None  # by which batches are measured, if they are
    trace: int = 0  # another one for each trace, because a mask that is traced is handed around `jit`
    match: str = ".*"


Entry = Upgrade | Swap | Freeze | Flow


class Plan(NamedTuple):
    """What all entries together mean for one norm.

    Attributes:
      options: attributes of our `BatchNorm` in the place of the module's.
      swap: the norm that it becomes.
      freeze: what is held.
      flow: what it normalizes by.
    """

    options: Mapping[str, Any]
    swap: Swap | None
    freeze: Freeze | None
    flow: Flow | None

    @property
    def asks(self) -> bool:
        """Whether the norm does anything else than its own."""
        return bool(self.options or self.swap or self.freeze or self.flow)


def selects(match: str, path: str) -> bool:
    """Whether the regular expression is found in the path."""
    return re.search(match, path) is not None


def check_match(match: Any) -> None:
    """Raises unless `match` is a regular expression."""
    try:
        re.compile(match)
    except (re.error, TypeError) as error:
        raise ValueError(
            f"`match` must be a regular expression that is found in the path of a norm, but it is {match!r} ({error})."
        ) from error


def hashable_options(options: Mapping[str, Any], of: str, known: Collection[str]) -> Options:
    """Options as part of an entry.

    Raises:
      ValueError: an option that `of` does not have, or that cannot be hashed.
    """
    checks.known_arguments(of, options, sorted(known))
    for name, value in options.items():
        try:
            hash(value)
        except TypeError:
            raise ValueError(
                f"`{name}` must be hashable, because `jit` keeps a program for each value, but it is {value!r:.80}; "
                "write a tuple for a list, a Python number for an array."
            ) from None
    return tuple(sorted(options.items()))


def plan_for(entries: Sequence[Entry], path: str, kind: str) -> Plan:
    """What the entries mean for the norm of this kind at this path; their order does not matter.

    Raises:
      ValueError: entries that contradict each other.
    """
    chosen = [entry for entry in entries if refusal(entry, path, kind) is None]
    swaps = {entry for entry in chosen if isinstance(entry, Swap)}
    if len({(s.name, s.options) for s in swaps}) > 1:
        raise ValueError(
            f"`swap` was asked twice for the norm at {path!r}: for {' and for '.join(sorted(s.name for s in swaps))}; "
            "give them a `match` each, so that a norm is swapped once."
        )
    return Plan(
        _merged((e.options for e in chosen if isinstance(e, Upgrade)), path),
        next(iter(swaps), None),
        _frozen([e for e in chosen if isinstance(e, Freeze)]),
        next((e for e in chosen if isinstance(e, Flow)), None),
    )


def refusal(entry: Entry, path: str, kind: str) -> str | None:
    """Why an entry is not for a norm, as far as its path and its kind tell; or nothing."""
    if not selects(entry.match, path):
        return "`match` does not select it"
    if isinstance(entry, Upgrade | Flow) and kind != "batch":
        return f"a norm of kind {kind!r}, not a batch norm"
    if isinstance(entry, Swap) and entry.kind not in (None, kind):
        return f"a norm of kind {kind!r}, not {entry.kind!r}"
    return None


def _merged(upgrades: Iterable[Options], path: str) -> dict[str, Any]:
    merged: dict[str, Any] = {}
    for options in upgrades:
        for name, value in options:
            if merged.setdefault(name, value) != value:
                raise ValueError(
                    f"`{name}` was given twice for the norm at {path!r}, as {merged[name]!r} and as {value!r}; leave "
                    "out one, or give the contexts a `match` each."
                )
    return merged


def _frozen(freezes: Sequence[Freeze]) -> Freeze | None:
    """What is held by one of them is held."""
    if not freezes:
        return None
    return Freeze(".*", any(f.use for f in freezes), all(f.update for f in freezes), any(f.parameters for f in freezes))
