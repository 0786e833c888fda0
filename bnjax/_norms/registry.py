"""The norms by name. Each has its `Spec` in the file of its function; this is where they are found.

A norm is in if it is published and used (in a peer library, or cited a hundred times), if its formula can be checked
against a second source, and if it costs less than a hundred lines of its own.
"""

import difflib
from collections.abc import Iterable

from bnjax import _checks as checks
from bnjax._norms import (
    batch,
    batch_channel,
    domain,
    evonorm,
    example_weighted,
    group,
    layer,
    pointwise,
    renorm,
    response,
    scale,
    switchable,
    weights,
    whitening,
)
from bnjax._norms.names import NormAlias as NormAlias
from bnjax._norms.names import NormName as NormName
from bnjax._norms.spec import Spec

# In the order of the table.
FILES = (
    batch, renorm, layer, group, response, evonorm, scale, pointwise, example_weighted, domain, switchable,
    batch_channel, whitening, weights,
)  # fmt: skip

NORMS: dict[str, Spec] = {spec.name: spec for file in FILES for spec in file.SPECS}

ALIASES: dict[str, str] = {}
for _name, _norm in NORMS.items():
    ALIASES.setdefault(_norm.module, _name)
    ALIASES.setdefault(_norm.function.__name__, _name)


def norm_named(name: str) -> Spec:
    """The norm of that name, or that of the class or function of that name.

    Raises:
      ValueError: no such name; says the nearest.
    """
    name = ALIASES.get(name, name)
    if name not in NORMS:
        near = difflib.get_close_matches(str(name), [*NORMS, "none"], cutoff=0.4) or sorted(NORMS)
        raise ValueError(
            f"`name` must be that of a norm, but it is {name!r}; did you mean {' or '.join(map(repr, near))}?"
        )
    return NORMS[name]


def check_arguments(name: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Raises where a norm does not take an argument; says which it takes."""
    checks.known_arguments(repr(name), given, sorted(set(known)))
