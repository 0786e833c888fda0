"""Claims in documents: what a page cites is what the study says, and beside it no page has figures of ours."""

import re
from pathlib import Path

import pytest

from experiments.cli.errors import UserError
from experiments.docs import pages_that_cite
from experiments.results.cited import PLACE, put_claims
from experiments.results.claims import Claim, interval
from experiments.results.evidence import Evidence, Row
from experiments.results.study import Study

ROOT = Path(__file__).parents[2]
CLAIM = Claim(
    "good", "It reaches {a:.2f}.", lambda e: {"a": interval(e.values("x", {}))}, lambda f: f["a"].above(0.5), ""
)
STUDY = Study("tried", "Tried", "Q?", "P", lambda quick: [], lambda s, n: [], 1, {}, (CLAIM,), lambda e: [])
STUDIES = {"tried": (STUDY, Evidence([Row("tried", "norm=batch", 0, "x", 1, 0.75, "d", "c", "v")]))}


def test_a_page_gets_the_claims_that_it_names():
    page = "Before.\n\n<!-- claim: tried / good -->\nold\n<!-- /claim -->\n\nAfter.\n"
    made = put_claims(page, STUDIES, "../results/")
    assert made == (
        "Before.\n\n<!-- claim: tried / good -->\n- **Confirmed:** It reaches 0.75 [0.75, 0.75]. "
        '(<a href="../results/studies/tried.html">Tried</a>)\n<!-- /claim -->\n\nAfter.\n'
    )
    assert put_claims(made, STUDIES, "../results/") == made


@pytest.mark.parametrize(("place", "words"), [("tires / good", "`tried`"), ("tried / god", "`good`")])
def test_a_claim_that_there_is_not_is_an_error(place, words):
    with pytest.raises(UserError, match=f"which there is not. Did you mean {words}"):
        put_claims(f"<!-- claim: {place} -->\n<!-- /claim -->\n", STUDIES, "")


@pytest.mark.parametrize(
    "page",
    [
        "<!-- claim: tried / good -->\nold\n\nText.\n\n{place}",
        "{place}<!-- claim: tried / good -->\n",
        "<!-- /claim -->\n{place}",
        "<!-- claim: tried/good -->\nold\n<!-- /claim -->\n",
    ],
)
def test_a_place_without_its_end_is_an_error(page):
    """The text between two places stays, and no claim gets old unseen."""
    with pytest.raises(UserError, match=r"each in a line of its own, but it has `<!-- /?claim"):
        put_claims(page.format(place="<!-- claim: tried / good -->\n<!-- /claim -->\n"), STUDIES, "")


@pytest.mark.parametrize("path", pages_that_cite())
def test_a_page_that_cites_has_no_figures_of_its_own(path):
    """Decimal numbers and percentages stand in claims, in code, or beside the paper that they are from."""
    text = PLACE.sub("", (ROOT / path).read_text())
    text = re.sub(r"^```.*?^```$|<!-- (\w+) -->.*?<!-- /\1 -->|`[^`]*`", "", text, flags=re.DOTALL | re.MULTILINE)
    own = [part for part in re.split(r"\n\n|\n(?=[|-])", text) if "arXiv" not in part]
    assert [part for part in own if re.search(r"\d\.\d|\d ?%|\d points", part)] == []
