"""Where the tables stand in the documents, and the facts that they are made of beside them."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.results.files import write_text
from experiments.results.markers import Markers, write_between

RESULTS = Path(__file__).resolve().parents[2] / "docs" / "results"
PAGES = {
    "summary": "performance.md",
    "op": "times.md", "step": "times.md", "import": "times.md",
    "model": "compiled.md", "compiled": "compiled.md",
}  # fmt: skip


def page(name: str) -> Path:
    """The document that holds the tables of a part."""
    return RESULTS / PAGES[name]


def facts(part: str) -> Path:
    """The records of a part. A run measures some of them; the tables show all of them."""
    return RESULTS / "facts" / f"{part}.json"


def keep(part: str, records: Sequence[dict[str, Any]]) -> None:
    """Writes the records of a part, one a line, so that a change of one is a change of a line."""
    facts(part).parent.mkdir(exist_ok=True)
    write_text(facts(part), "[\n" + ",\n".join(json.dumps(r, ensure_ascii=False) for r in records) + "\n]\n")


def markers(name: str) -> Markers:
    """Around the tables of a part."""
    return Markers(f"<!-- bench: {name} -->\n", "<!-- bench: end -->")


def put(text: str, name: str, block: str) -> str:
    r"""`text` with `block` between the markers of `name`.

    >>> put("<!-- bench: op -->\nold\n<!-- bench: end -->", "op", "new")
    '<!-- bench: op -->\nnew\n<!-- bench: end -->'
    """
    return markers(name).put(text, f"{block}\n")


def write(blocks: dict[str, str]) -> None:
    """Writes every block between its markers."""
    for document in {page(name) for name in blocks}:
        write_between(document, {markers(n): f"{block}\n" for n, block in blocks.items() if page(n) == document})
