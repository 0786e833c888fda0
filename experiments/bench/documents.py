"""The tables in the document, between markers; all else in it is left as it is."""

import re
from pathlib import Path

from experiments.cli.errors import UserError
from experiments.results.files import write_text

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "results" / "performance.md"


def put(text: str, name: str, block: str) -> str:
    r"""`text` with `block` between the markers of `name`.

    >>> put("<!-- bench: op -->old<!-- bench: end -->", "op", "new")
    '<!-- bench: op -->\nnew\n<!-- bench: end -->'
    """
    begin, end = f"<!-- bench: {name} -->", "<!-- bench: end -->"
    pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
    if len(pattern.findall(text)) != 1:
        raise UserError(f"The document must hold `{begin}` once, and `{end}` after it; `--write` writes between.")
    return pattern.sub(lambda _: f"{begin}\n{block}\n{end}", text)


def write(blocks: dict[str, str]) -> None:
    """Writes every block between its markers."""
    document = DOCUMENT
    if not document.exists():
        raise UserError(f"`--write` writes into {document}, which is not there.")
    text = document.read_text(encoding="utf-8")
    for name, block in blocks.items():
        text = put(text, name, block)
    write_text(document, text)
