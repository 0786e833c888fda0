"""The table of all norms in docs/norms/index.md, from the registry.

    python -m experiments.norms_table [--write | --check]

Prints it; `--write` puts it into the page, between its markers; `--check` fails where another stands there.
"""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

from bnjax import NORMS
from experiments.cli.errors import UserError
from experiments.cli.flags import parse_flags
from experiments.cli.program import run_main

PAGE = Path(__file__).resolve().parents[1] / "docs" / "norms" / "index.md"
BEGIN, END = "<!-- norms -->\n", "<!-- /norms -->\n"
HEADER = ("name", "function", "module", "measures", "keeps", "over devices", "mask", "gradient", "paper", "when to use")


@dataclasses.dataclass(frozen=True)
class Arguments:
    """The table of all norms."""

    write: bool = False
    """Put the table into docs/norms/index.md."""
    check: bool = False
    """Fail if another table stands there."""


def table() -> str:
    """The table, in Markdown."""
    rows = [
        (*(f"`{t}`" for t in (name, n.function.__name__, n.module)), *map(str, n[2:-1]))  # in the order of the registry
        for name, n in NORMS.items()
    ]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in (HEADER, ("---",) * len(HEADER), *rows))


def put(page: str, block: str) -> str:
    """`page` with `block` between the markers."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        sys.exit(f"docs/norms/index.md must have the lines {BEGIN.strip()} and {END.strip()}.")
    return before + begin + block + end + after


def main(argv: Sequence[str]) -> None:
    arguments = parse_flags(Arguments, argv, "python -m experiments.norms_table", __doc__)
    if arguments.write and arguments.check:
        raise UserError("`--write` and `--check` exclude each other: what was just written needs no comparison.")
    page, block = PAGE.read_text(encoding="utf-8"), table()
    if arguments.write:
        PAGE.write_text(put(page, block), encoding="utf-8")
    elif arguments.check:
        if put(page, block) != page:
            sys.exit("docs/norms/index.md has another table; run `python -m experiments.norms_table --write`.")
    else:
        print(block, end="")


if __name__ == "__main__":
    run_main(main)
