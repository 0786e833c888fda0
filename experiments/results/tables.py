"""A table: on a terminal, in a document, on a page."""

from collections.abc import Sequence
from html import escape
from typing import NamedTuple

from rich import box
from rich.table import Table as RichTable


class Table(NamedTuple):
    """A title, what heads the columns, and rows; the first column says what a row is about."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]

    def rich(self) -> RichTable:
        """As a terminal shows it."""
        made = RichTable(title=self.title, title_justify="left", box=box.SIMPLE_HEAD)
        for i, name in enumerate(self.head):
            made.add_column(name, justify="right" if i else "left", no_wrap=not i)
        for row in self.rows:
            made.add_row(*row)
        return made

    def markdown(self) -> str:
        """With its title, numbers to the right."""
        return f"{self.title}:\n\n{markdown(self.head, self.rows, numbers=True)}"

    def html(self, links: Sequence[str] = ()) -> str:
        """An element of a page; `links` are where the heads of the rows lead to."""
        titled = f"<caption>{escape(self.title)}</caption>\n" if self.title else ""
        cells = "".join(f'<th scope="col">{escape(name)}</th>' for name in self.head)
        body = "\n".join(
            _html_row(row, link) for row, link in zip(self.rows, links or [""] * len(self.rows), strict=True)
        )
        return f"<table>\n{titled}<thead><tr>{cells}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table>"


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: bool = False) -> str:
    """The lines of a table; with `numbers` all columns but the first are set to the right.

    >>> print(markdown(["", "a"], [["x", "1"]], numbers=True))
    |  | a |
    | --- | ---: |
    | x | 1 |
    """
    ruled = ["---", *["---:" if numbers else "---"] * (len(head) - 1)]
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ruled, *rows))


def _html_row(row: Sequence[str], link: str) -> str:
    head, *rest = map(escape, row)
    linked = f'<a href="{escape(link)}">{head}</a>' if link else head
    return f'<tr><th scope="row">{linked}</th>' + "".join(f"<td>{v}</td>" for v in rest) + "</tr>"
