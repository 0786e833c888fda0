"""Claims of studies in other documents: a page names them between markers, and gets them as they stand."""

import re
from collections.abc import Mapping

from experiments.cli.errors import UserError, nearest
from experiments.results.claims import judge
from experiments.results.evidence import Evidence
from experiments.results.study import Study

Studies = Mapping[str, tuple[Study, Evidence]]
PLACE = re.compile(r"(<!-- claim: (\w+) / ([^>]+) -->\n)(?:(?!<!-- claim).)*?(<!-- /claim -->\n)", re.DOTALL)


def put_claims(page: str, studies: Studies, results: str) -> str:
    """`page` with each claim that it names, in the form of an entry of a list.

    Args:
      page: with places `<!-- claim: STUDY / NAME -->` and `<!-- /claim -->`, each in a line of its own.
      studies: by name, with their numbers.
      results: where the pages of the results are, as seen from this page.

    Raises:
      UserError: there is no such study, or it has no such claim; or what should be a place is none.
    """
    if wrong := re.search(r"^<!-- /?claim.*", PLACE.sub("", page), re.MULTILINE):
        raise UserError(
            "A page cites a claim between `<!-- claim: STUDY / NAME -->` and `<!-- /claim -->`, each in a line of its "
            f"own, but it has `{wrong[0]}` without the other one."
        )
    return PLACE.sub(lambda place: f"{place[1]}{_said(place[2], place[3], studies, results)}{place[4]}", page)


def _said(study_name: str, claim_name: str, studies: Studies, results: str) -> str:
    if study_name not in studies:
        raise UserError(f"A page cites the study `{study_name}`, which there is not. {nearest(study_name, studies)}")
    study, evidence = studies[study_name]
    claims = {claim.name: claim for claim in study.claims}
    if claim_name not in claims:
        raise UserError(
            f"A page cites `{claim_name}` of the study `{study_name}`, which there is not. "
            f"{nearest(claim_name, claims)}"
        )
    judged = judge(claims[claim_name], evidence)
    link = f'<a href="{results}studies/{study_name}.html">{study.title}</a>'
    return f"- {judged} ({link})\n"
