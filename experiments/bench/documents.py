"""Where the tables stand in the document."""

from pathlib import Path

from experiments.results.markers import Markers, write_between

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "results" / "performance.md"


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
    write_between(DOCUMENT, {markers(name): f"{block}\n" for name, block in blocks.items()})
