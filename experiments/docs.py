"""All that is generated: what the library says of its norms, the claims of studies, and what the configs reach.

    python -m experiments.docs [--write | --check]

`--write` writes it; `--check`, and no flag, fail where something else stands there, and say where.
"""

import ast
import dataclasses
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import bnjax
from bnjax import NORMS
from experiments.cli.errors import UserError
from experiments.cli.flags import parse_flags
from experiments.cli.program import run_main
from experiments.results import config_page, evidence, library_pages
from experiments.results.cited import put_claims
from experiments.results.files import write_text
from experiments.results.markers import Markers
from experiments.results.study_page import markdown_of
from experiments.results.tables import markdown
from experiments.studies import NOT_YET, all_studies, averaged_weights, measured

ROOT = Path(__file__).resolve().parents[1]
TABLE = Markers("<!-- norms -->\n", "<!-- /norms -->\n")
COMMAND = "python -m experiments.docs --write"
HEADER = ("name", "when to use", "measures", "keeps", "module")  # all else is on the page of each norm


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Write or check what is generated."""

    write: bool = False
    """Write it."""
    check: bool = False
    """Fail if something else stands there."""


class Part(NamedTuple):
    """A file, or a part of one, that is generated.

    Attributes:
      path: from the root.
      made: the text of the file, given the text that it has.
    """

    path: str
    made: Callable[[str], str]


def table() -> str:
    """The table of all norms, in Markdown."""
    rows = [(f"[`{name}`]({name}.md)", n.use, str(n.axes), str(n.state), f"`{n.module}`") for name, n in NORMS.items()]
    return f"{markdown(HEADER, rows)}\n"


def names(_: str) -> str:
    """The module of the types of names."""
    aliases = dict.fromkeys(alias for n in NORMS.values() for alias in (n.module, n.function.__name__))
    return (
        f'"""The names of norms, for type checkers. Written by `{COMMAND}`."""\n\n'
        "from typing import Literal\n\n"
        f"# The keys of `NORMS`.\n{_literal('NormName', NORMS)}\n"
        f"# The classes and the functions, each a name of the first norm that has it.\n{_literal('NormAlias', aliases)}"
    )


def _literal(name: str, words: Iterable[str]) -> str:
    return f"{name} = Literal[\n" + "".join(f'    "{word}",\n' for word in words) + "]\n"


def exports(page: str, wanted: Mapping[str, str]) -> str:
    """`page`, a module that re-exports names, with those of the norms among them; the others stay.

    Args:
      page: with lines `from module import name as name`, and perhaps `__all__`, which lists these names.
      wanted: the modules of the names of the norms.
    """
    lines = list(re.finditer(r"^from (\S+) import (\S+) as \2\n", page, re.MULTILINE))
    found = {line[2]: line[1] for line in lines} | dict(wanted)
    imports = "".join(f"from {m} import {n} as {n}\n" for m, n in sorted((m, n) for n, m in found.items()))
    listed = "".join(f'    "{name}",\n' for name in sorted(found))
    after = re.sub(r"__all__ = \[.*?\]\n", f"__all__ = [\n{listed}]\n", page[lines[-1].end() :], flags=re.DOTALL)
    return page[: lines[0].start()] + imports + after


def functions() -> dict[str, str]:
    """The functions of the norms that are not of the everyday face, and their modules."""
    found = {n.function.__name__: n.function.__module__ for n in NORMS.values()}
    return {name: module for name, module in found.items() if name not in bnjax.__all__}


def classes(api: str) -> dict[str, str]:
    """The classes of the norms in `bnjax.linen` or `bnjax.nnx`, and their modules, found in the sources."""
    wanted = {n.module for n in NORMS.values()}
    return {
        node.name: f"bnjax.{api}.{file.stem}"
        for file in sorted((ROOT / "bnjax" / api).glob("_*.py"))
        for node in ast.parse(file.read_text(encoding="utf-8")).body
        if isinstance(node, ast.ClassDef) and node.name in wanted
    }


def cited(path: str) -> Callable[[str], str]:
    """Makes a page that cites claims of studies."""
    return lambda page: put_claims(page, {s.name: (s, found) for s, found in all_studies()}, results_from(path))


def results_from(path: str) -> str:
    """Where the results are, as seen from a page.

    >>> results_from("docs/index.md"), results_from("docs/guide/norms.md")
    ('results/', '../results/')
    """
    return "../" * (path.count("/") - 1) + "results/"


def pages_that_cite() -> list[str]:
    """The pages of the site that name a claim, from the root."""
    pages = (file for file in sorted((ROOT / "docs").rglob("*.md")) if "\n<!-- claim: " in file.read_text("utf-8"))
    return [str(file.relative_to(ROOT)) for file in pages]


def whole(text: str) -> Callable[[str], str]:
    """Makes a file that is generated from its first line to its last."""
    return lambda _: text


def config_parts() -> Iterator[Part]:
    """The page of the configs that have a mark, and the lines in each of them."""
    configs, found = config_page.marked(), evidence.load(config_page.FILE)
    yield Part("docs/results/configs.md", lambda _: config_page.page(configs, found))
    for name, config in configs.items():
        put = partial(config_page.put_lines, name=name, config=config, found=found)
        yield Part(f"configs/{name}.py", put)


PARTS = (
    Part("bnjax/_norms/names.py", names),
    Part("bnjax/family.py", lambda page: exports(page, functions())),
    Part("bnjax/linen/__init__.py", lambda page: exports(page, classes("linen"))),
    Part("bnjax/nnx/__init__.py", lambda page: exports(page, classes("nnx"))),
    Part("docs/norms/index.md", lambda page: TABLE.put(page, table())),
    Part(
        "docs/guide/averaged_weights.md", lambda page: averaged_weights.put_tables(page, measured("averaged_weights"))
    ),
    Part("docs/results/studies.md", lambda _: markdown_of(all_studies(), NOT_YET)),
    *config_parts(),
    *(Part(path, cited(path)) for path in pages_that_cite()),
    *(Part(path, whole(text)) for path, text in library_pages.pages().items()),
)


def main(argv: Sequence[str]) -> None:
    arguments = parse_flags(Arguments, argv, "python -m experiments.docs", __doc__)
    if arguments.write and arguments.check:
        raise UserError("`--write` and `--check` exclude each other: what was just written needs no comparison.")
    stale = []
    for part in PARTS:
        file = ROOT / part.path
        page = file.read_text(encoding="utf-8") if file.exists() else ""
        made = part.made(page)
        if made != page and arguments.write:
            write_text(file, made)
        elif made != page:
            stale.append(part.path)
    if stale:
        sys.exit(f"Not up to date: {', '.join(stale)}; run `{COMMAND}`.")


if __name__ == "__main__":
    run_main(main)
