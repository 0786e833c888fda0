"""What goes wrong by the user's hand, said in a sentence."""

import difflib
import reprlib
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

T = TypeVar("T")

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 200
_SHORT.maxlong = 40


class UserError(ValueError):
    """Something the user can put right: shown as one sentence without a traceback, exit status 2."""


def shown(text: str) -> str:
    """`text` on one line, its middle left out where it is long.

    >>> shown("a" * 1000) == "a" * 98 + "..." + "a" * 99
    True
    """
    line = " ".join(text.split())
    return line if len(line) <= 200 else f"{line[:98]}...{line[-99:]}"


def short(value: Any) -> str:
    """`repr(value)`, of large or deeply nested values not all.

    >>> short(10**400)
    '100000000000000000...0000000000000000000'
    """
    try:
        return _SHORT.repr(value)
    except ValueError:  # an integer of so many digits that Python does not print it
        return f"a {type(value).__name__}"


def chosen(known: Mapping[str, T], name: str, option: str, more: str = "") -> T:
    """What is known by a name that `option` gave.

    Raises:
      UserError: nothing is; it lists the names, and what `more` there is.

    >>> chosen({"digits": 1797}, "digits", "config.data.name")
    1797
    """
    if name not in known:
        names = ", ".join([f"`{n}`" for n in known] + ([more] if more else []))
        raise UserError(f"`{option}` must be one of {names}, but it is {short(name)}.")
    return known[name]


def nearest(word: str, known: Iterable[str]) -> str:
    """A sentence that offers the nearest of `known`, or lists all of them where none is near.

    >>> nearest("optimiser", ["optimizer", "model"])
    'Did you mean `optimizer`?'
    """
    known = list(known)
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"Did you mean `{near[0]}`?" if near else "It can be: " + ", ".join(f"`{k}`" for k in known) + "."
