"""What goes wrong by the user's hand, said in a sentence."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Something the user can put right: shown as one sentence without a traceback, exit status 2."""


def nearest(word: str, known: Iterable[str]) -> str:
    """A sentence that offers the nearest of `known`, or lists all of them where none is near.

    >>> nearest("optimiser", ["optimizer", "model"])
    'Did you mean `optimizer`?'
    """
    known = list(known)
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"Did you mean `{near[0]}`?" if near else "It can be: " + ", ".join(f"`{k}`" for k in known) + "."
