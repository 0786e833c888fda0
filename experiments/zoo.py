"""The architectures of the experiments in their published sizes: parameters, products, norms, beside what is published.

    python -m experiments.zoo [--json] [--write]

Nothing is computed: each model is traced. `--write` puts the table into docs/results/zoo.md.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from experiments.cli.errors import UserError
from experiments.cli.flags import parse_flags
from experiments.cli.program import run_main
from experiments.measure.zoo import ROWS, facts
from experiments.results.markers import Markers, write_between
from experiments.results.tables import Table

DOCUMENT = Path(__file__).resolve().parents[1] / "docs" / "results" / "zoo.md"
WIDE = 180  # characters that a line of the table needs: cut off, numbers would say nothing
MARKERS = Markers("<!-- zoo -->\n", "<!-- /zoo -->\n")
HEAD = (
    "architecture", "norm", "parameters", "published", "norms", "10⁹ products", "published", "multiply-adds by XLA",
    "small variant", "source",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Count the parameters, the products and the norms of every architecture."""

    names: tuple[str, ...] = ()
    """Only those whose names begin so."""
    json: bool = False
    """Print JSON, one object for each architecture."""
    write: bool = False
    """Put the table into docs/results/zoo.md."""


def cells(row: Mapping[str, Any]) -> list[str]:
    """What the table says of an architecture."""
    return [
        row["name"],
        row["norm"],
        f"{row['parameters']:,}",
        row["published"],
        str(row["norm_sites"]),
        billions(row["products"]),
        row["published_products"],
        billions(row["multiply_adds"]),
        f"{row['small_parameters']:,}",
        row["source"],
    ]


def billions(number: int) -> str:
    """In units of 10⁹, to three digits behind the point; of less than 10⁷ to three digits.

    >>> billions(4089184256), billions(54321)
    ('4.089', '5.43e-05')
    """
    return f"{number / 1e9:.3f}" if number >= 1e7 else f"{number / 1e9:.3g}"


def table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Of all rows."""
    return Table("One example, evaluated", HEAD, [cells(row) for row in rows])


def main(argv: Sequence[str]) -> None:
    arguments = parse_flags(Arguments, argv, "python -m experiments.zoo", __doc__)
    if arguments.write and arguments.names:
        raise UserError("`--write` writes the table of all architectures; leave out `--names`.")
    chosen = [row for row in ROWS if row.name.startswith(arguments.names or "")]
    if not chosen:
        raise UserError(f"`--names` must begin one of {', '.join(f'`{row.name}`' for row in ROWS)}.")
    found = [facts(row) for row in chosen]
    if arguments.json:
        print(json.dumps(found, indent=1, ensure_ascii=False))
    else:
        Console(width=max(Console().width, WIDE)).print(table(found).rich())
    if arguments.write:
        write_between(DOCUMENT, {MARKERS: f"{table(found).markdown()}\n"})


if __name__ == "__main__":
    run_main(main)
