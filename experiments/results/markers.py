"""Text between two markers in a document; all else in it is left as it is."""

from pathlib import Path
from typing import NamedTuple

from experiments.cli.errors import UserError
from experiments.results.files import write_text


class Markers(NamedTuple):
    """A place in a document: what stands before and behind the text that a program writes there."""

    begin: str
    end: str

    def split(self, text: str) -> tuple[str, str, str]:
        """What stands before, between and after the markers, which belong to the outer parts.

        Raises:
          UserError: the first one does not stand there once, with the second one behind it.

        >>> Markers("<a>", "</a>").split("1<a>2</a>3")
        ('1<a>', '2', '</a>3')
        """
        before, _, rest = text.partition(self.begin)
        between, end, after = rest.partition(self.end)
        if text.count(self.begin) != 1 or not end:
            raise UserError(
                f"The document must hold `{self.begin.strip()}` once, and `{self.end.strip()}` after it; "
                "`--write` writes between."
            )
        return before + self.begin, between, end + after

    def put(self, text: str, block: str) -> str:
        """`text` with `block` between the markers."""
        before, _, after = self.split(text)
        return before + block + after


def write_between(document: Path, blocks: dict[Markers, str]) -> None:
    """Writes every block between its markers in `document`.

    Raises:
      UserError: there is no such document, or a marker is missing.
    """
    if not document.exists():
        raise UserError(f"`--write` writes into {document}, which is not there.")
    text = document.read_text(encoding="utf-8")
    for markers, block in blocks.items():
        text = markers.put(text, block)
    write_text(document, text)
