"""The README: its blocks of commands, its Python; and the table of numerics."""

import re
import tomllib
from pathlib import Path

import pytest

from experiments import numerics

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
FENCES = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PYTHON = [code for language, code in FENCES if language == "python"]


def test_two_bash_blocks_come_first():
    """The training run, then the tests: `.ci/run` runs them as they stand."""
    languages = [language for language, _ in FENCES]
    assert languages[:2] == ["bash", "bash"]
    assert "bash" not in languages[2:]
    assert "" not in languages
    train, test = (code for _, code in FENCES[:2])
    assert "-m experiments.train --config=configs/digits_cnn.py" in train
    assert "-m pytest" in test


@pytest.mark.parametrize("number", range(len(PYTHON)))
def test_python_runs(number):
    """Each block by itself."""
    exec(compile(PYTHON[number], f"README.md, Python block {number}", "exec"), {"__name__": "readme"})


def test_the_core_s_snippet_says_the_truth():
    """Merged, two measurements are one: the README says exactly."""
    names = {}
    exec(next(code for code in PYTHON if "bnjax.merge" in code), names)
    wanted = names["bnjax"].moments(names["x"], axis=0)
    assert names["whole"].count == wanted.count
    assert abs(names["whole"].mean - wanted.mean).max() < 1e-6
    assert abs(names["whole"].var - wanted.var).max() < 1e-5


def test_the_table_is_the_script_s():
    """Its rows and columns; `python -m experiments.numerics --check` compares the numbers too."""
    written = numerics.split(numerics.PAGE.read_text())[1].splitlines()
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in written]
    assert tuple(lines[0]) == numerics.HEADER
    assert [float(line[0]) for line in lines[2:]] == list(numerics.MEANS)
    assert all(len(line) == len(numerics.HEADER) for line in lines)


def test_the_check_compares_numbers(monkeypatch):
    """The row of mean 1000, computed here, is the one that is written; another number in it is found."""
    monkeypatch.setattr(numerics, "MEANS", (1e3,))
    computed = numerics.table()
    lines = numerics.split(numerics.PAGE.read_text())[1].splitlines()
    header, row = lines[:2], next(line for line in lines if line.startswith("| 1000 |"))
    assert numerics.differences("\n".join([*header, row]), computed) == []
    cells = row.split(" | ")
    wrong = " | ".join([cells[0], "3e-06", *cells[2:]])
    assert len(numerics.differences("\n".join([*header, wrong]), computed)) == 1
    assert numerics.differences("\n".join(header), computed) == ["its shape"]


def test_versions_agree():
    """The package, the citation and the changelog; the authors, too."""
    from bnjax import __version__

    citation = (ROOT / "CITATION.cff").read_text()
    (author,) = PROJECT["project"]["authors"]
    assert f'- name: "{author["name"]}"\n' in citation
    assert f"version: {__version__}\n" in citation
    assert f"## [{__version__}]" in (ROOT / "CHANGELOG.md").read_text()


def test_a_package_index_shows_no_links_into_the_repository():
    """There is nothing beside the README there: its text stays, and the names of what it points to."""
    text = README
    for change in PROJECT["tool"]["hatch"]["metadata"]["hooks"]["fancy-pypi-readme"]["substitutions"]:
        text = re.sub(change["pattern"], change["replacement"], text)
    assert "](docs/" in README
    assert not re.findall(r"\]\((?!https?:)", text)
    assert "- `All norms`: what each measures and keeps" in text
    without_targets = re.sub(r"\]\((?!https?:)[^)]*\)", "]", README)
    assert re.findall(r"\w+", text) == re.findall(r"\w+", without_targets)
