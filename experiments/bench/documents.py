"""Where the tables stand in the documents."""

from pathlib import Path

from experiments.results.markers import Markers, write_between

RESULTS = Path(__file__).resolve().parents[2] / "docs" / "results"
DOCUMENT = RESULTS / "performance.md"
COMPILED = RESULTS / "compiled.md"


def page(name: str) -> Path:
    """The document that holds the tables of a part."""
    return COMPILED if name == "compiled" else DOCUMENT


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
