"""The pages of the site: their Python runs, each block by itself, and they are all in the table of contents."""

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parents[1] / "docs"
ELSEWHERE = {"guide/devices.md", "guide/accumulation.md"}  # test_docs_devices.py runs theirs, in their order
BLOCKS = {
    f"{page.relative_to(DOCS)}, block {number}": code
    for page in sorted(DOCS.rglob("*.md"))
    if str(page.relative_to(DOCS)) not in ELSEWHERE
    for number, code in enumerate(re.findall(r"^```python\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL))
}


@pytest.mark.parametrize("block", BLOCKS)
def test_python_runs(block):
    exec(compile(BLOCKS[block], f"docs/{block}", "exec"), {"__name__": "page"})


def test_every_page_is_in_the_table_of_contents():
    index = (DOCS / "index.md").read_text()
    listed = {line for line in index.splitlines() if re.fullmatch(r"[\w/]+", line)}
    pages = {str(page.relative_to(DOCS).with_suffix("")) for page in DOCS.rglob("*.md")} - {"index"}
    assert listed == pages
