"""The pages of the site: their Python runs, each block by itself, and they are all in the table of contents."""

import inspect
import re
from pathlib import Path

import pytest

from bnjax import NORMS
from experiments.results import library_pages

DOCS = Path(__file__).resolve().parents[2] / "docs"
# Other tests run theirs, in their order: test_devices.py and test_lifecycle.py.
ELSEWHERE = {
    f"guide/{page}.md"
    for page in ("accumulation", "averaged_weights", "devices", "fine_tuning", "other_models", "two_apis")
}
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
    norms = {f"norms/{name}" for name in NORMS}  # in the table of contents of norms/index
    assert listed | norms == pages


@pytest.mark.parametrize("module", library_pages.MODULES, ids=lambda module: module.__name__)
def test_every_public_name_is_in_the_reference(module):
    """Found in another way than the page was made: what `from module import *` gives, and what is of this library."""
    page = (DOCS / "reference" / f"{module.__name__.rpartition('.')[2]}.md").read_text()
    entries = set(re.findall(r"^\.\. auto(?:class|function):: (\S+)$", page, re.MULTILINE))
    entries |= {f"{module.__name__}.{name}" for name in re.findall(r"^\.\. py:data:: (\S+)$", page, re.MULTILINE)}
    names = {}
    exec(f"from {module.__name__} import *", names)
    if module.__name__ in ("bnjax.linen", "bnjax.nnx"):  # some names are imported when they are asked for
        exec(f"from {module.__name__}.lifecycle import *", names)
        del names["Row"], names["NormRow"], names["Finding"]  # the rows of what is there
    public = {name for name, value in names.items() if name != "__builtins__" and not inspect.ismodule(value)}
    assert public
    assert entries == {f"{module.__name__}.{name}" for name in public}


@pytest.mark.parametrize("name", ["renorm", "ghost", "spectral"])
def test_a_norm_s_page_says_what_the_registry_says(name):
    page = (DOCS / "norms" / f"{name}.md").read_text()
    norm = NORMS[name]
    number = re.search(r"arXiv (\d{4}\.\d{5})", norm.paper)[1]
    assert page.startswith(f"# `{name}`: {norm.module}\n")
    assert f"(https://arxiv.org/abs/{number})" in page
    for said in (norm.use, f"bnjax.linen.{norm.module}", f"bnjax.nnx.{norm.module}", str(norm.gradient), ">>> "):
        assert said in page
    assert "::\n" not in page
