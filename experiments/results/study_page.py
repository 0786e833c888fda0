"""The page of a study, and the index of all: one HTML file each that needs nothing else, also without a network."""

import functools
import json
import re
from collections.abc import Sequence
from html import escape
from pathlib import Path

from experiments.results.charts import FACETS
from experiments.results.claims import Judged, judge
from experiments.results.evidence import Evidence
from experiments.results.files import write_text
from experiments.results.study import Chart, Study

SIGNS = {"confirmed": "✓", "refuted": "✗", "within noise": "≈", "not measured": "?"}

VERDICTS = (
    "**Confirmed** means that the numbers support the sentence. **Refuted** means that they speak against it, or\n"
    "against a part of it: what was found stands behind it. **Within noise** means that other random seeds could\n"
    "decide otherwise, at least for a part. In brackets is the interval that holds the mean over many seeds 95 times\n"
    "in 100 (Student's t). The held-out examples are the same for all seeds: the chance in them is not counted."
)

STYLE = """
:root { color-scheme: light dark; --line: #8886; --soft: #8882; }
body { font: 16px/1.55 system-ui, sans-serif; max-width: 62rem; margin: 0 auto; padding: 1rem 1rem 4rem; }
h1 { line-height: 1.2; } h2 { margin-top: 2.2rem; border-bottom: 1px solid var(--line); }
.question { font-size: 1.15rem; font-style: italic; }
.warning { font-weight: 700; }
.claims { list-style: none; padding: 0; }
.claims > li { border: 1px solid var(--line); border-left-width: 6px; border-radius: 4px;
  padding: .6rem .9rem; margin: .7rem 0; }
.claims > .confirmed { border-left-color: #009e73; } .claims > .refuted { border-left-color: #d55e00; }
.claims > .within-noise { border-left-color: #e69f00; }
.verdict { font-weight: 700; } .more { display: block; font-size: .9rem; opacity: .85; }
.chart, .wide { overflow-x: auto; } .chart svg { max-width: 100%; height: auto; }
.vega-embed { width: 100%; } .vega-bindings { font-size: .95rem; padding: .3rem 0; } .vega-bind input { width: 60%; }
table { border-collapse: collapse; font-size: .85rem; }
caption { text-align: left; } th, td { border: 1px solid var(--line); padding: .2rem .5rem; }
td { text-align: right; font-variant-numeric: tabular-nums; } th { text-align: left; background: var(--soft); }
pre { background: var(--soft); padding: .6rem; overflow-x: auto; }
@media (max-width: 30rem) { body { padding: .6rem; font-size: 15px; } }
"""

DRAW = """
const dark = matchMedia("(prefers-color-scheme: dark)").matches;
for (const place of document.querySelectorAll(".chart[data-spec]")) {
  const spec = JSON.parse(document.getElementById(place.dataset.spec).textContent);
  if (spec.columns) spec.columns = Math.max(1, Math.min(spec.columns, Math.floor(innerWidth / (spec.spec.width + 40))));
  place.textContent = "";
  vegaEmbed(place, spec, {actions: false, renderer: "svg", theme: dark ? "dark" : undefined,
                          config: {background: "transparent"}});
}
"""


def study_page(study: Study, evidence: Evidence, index: bool = True) -> str:
    """The page: the answer first, then the evidence, how to repeat it, and what would falsify it.

    Args:
      index: whether it stands beside `index_page`.
    """
    judged = [judge(claim, evidence) for claim in study.claims]
    charts = study.charts(evidence) if evidence.rows else []
    body = [
        *(['<p><a href="index.html">All studies</a></p>'] if index else []),
        f"<h1>{escape(study.title)}</h1>",
        f'<p class="question">{escape(study.question)}</p>',
        "<h2>The answer</h2>",
        *(f'<p class="warning">{part}</p>' for part in [missing(study, evidence)] if part),
        _claims(judged),
        "<h2>The evidence</h2>",
        *(_chart(i, chart) for i, chart in enumerate(charts)),
        "<h2>What was done</h2>",
        *(f"<p>{_text(part)}</p>" for part in study.protocol.split("\n\n")),
        "<h2>Repeat it</h2>",
        f"<pre>python -m experiments.study {study.name}\npython -m experiments.study {study.name} --quick</pre>",
        f"<p>{escape(_origin(evidence))}</p>",
    ]
    return _page(study.title, body, _scripts() if charts else "")


def index_page(studies: Sequence[tuple[Study, Evidence]], not_yet: Sequence[str] = ()) -> str:
    """The index: each question with what was found, and at the end what was not measured."""
    body = ["<h1>Studies</h1>", "<p>Questions about normalization, answered by runs that anyone can repeat.</p>"]
    for study, evidence in studies:
        judged = [judge(claim, evidence) for claim in study.claims]
        body += [
            f'<h2><a href="{study.name}.html">{escape(study.title)}</a></h2>',
            f'<p class="question">{escape(study.question)}</p>',
            _claims(judged, short=True),
        ]
    if not_yet:
        body += ["<h2>Not measured yet</h2>", f"<ul>{''.join(f'<li>{escape(one)}</li>' for one in not_yet)}</ul>"]
    return _page("Studies", body, "")


def save_all(folder: Path, studies: Sequence[tuple[Study, Evidence]], not_yet: Sequence[str] = ()) -> None:
    """Writes a page for each study, its first picture as NAME.svg, and `index.html`."""
    folder.mkdir(parents=True, exist_ok=True)
    for study, evidence in studies:
        write_text(folder / f"{study.name}.html", study_page(study, evidence))
        if charts := study.charts(evidence) if evidence.rows else []:
            on_white = {**charts[0].spec, "background": "white"}  # it stands in pages of any colour
            write_text(folder / f"{study.name}.svg", _svg(json.dumps(on_white)))
    write_text(folder / "index.html", index_page(studies, not_yet))


def markdown_of(studies: Sequence[tuple[Study, Evidence]], not_yet: Sequence[str] = ()) -> str:
    """The studies as a page of the documents, with links to their own pages in the folder `studies`."""
    parts = ["# Studies\n"]
    parts.append(
        "Questions about normalization, answered by runs that anyone can repeat. Each sentence is a claim in code,\n"
        f"judged by the numbers in `docs/results/studies`. {VERDICTS}\n"
    )
    for study, evidence in studies:
        parts.append(f"## {study.title}\n\n*{study.question}*\n")
        parts += [f"- {one}" for one in (judge(c, evidence) for c in study.claims)]
        parts.append(
            f'\nPictures, what was done and what would falsify it: <a href="studies/{study.name}.html">the page of '
            f"this study</a>. To repeat it: `python -m experiments.study {study.name}`.\n"
        )
    if not_yet:
        parts += ["## Not measured yet\n", *(f"- {one}" for one in not_yet), ""]
    return "\n".join(parts)


def _text(text: str) -> str:
    """As HTML; what is between backticks is code."""
    return re.sub("`([^`]*)`", r"<code>\1</code>", escape(text))


def _claims(judged: Sequence[Judged], short: bool = False) -> str:
    return f'<ul class="claims">{"".join(_claim(one, short) for one in judged)}</ul>'


def _claim(one: Judged, short: bool) -> str:
    kind = one.verdict.replace(" ", "-")
    verdict = f'<span class="verdict">{SIGNS[one.verdict]} {one.verdict.capitalize()}:</span>'
    more = "" if short else f'<span class="more">It would be refuted if {escape(one.claim.falsified_by)}.</span>'
    if one.claim.paper and not short:
        more += f'<span class="more">The paper: {escape(one.claim.paper)}</span>'
    return f'<li class="{kind}">{verdict} {_text(one.said)}{more}</li>'


def _chart(i: int, chart: Chart) -> str:
    """A chart, and in its place a picture where there is no JavaScript."""
    name = f"spec{i}"
    spec = json.dumps(chart.spec).replace("</", "<\\/")
    table = f'<div class="wide">{chart.table.html()}</div>' if chart.table else ""
    return (
        f"<h3>{escape(chart.title)}</h3>\n<p>{escape(chart.text)}</p>\n"
        f'<div class="chart" data-spec="{name}">{_svg(json.dumps(chart.spec))}</div>\n'
        f'<script type="application/json" id="{name}">{spec}</script>\n{table}'
    )


@functools.cache
def _svg(spec: str) -> str:
    import vl_convert

    fixed = json.loads(spec)
    if fixed.get("width") == "container":
        fixed["width"] = 640
    if "columns" in fixed:
        fixed["columns"] = FACETS
    return vl_convert.vegalite_to_svg(json.dumps(fixed))


@functools.cache
def _scripts() -> str:
    """Vega, Vega-Lite and Vega-Embed, as one script that is in the page."""
    import vl_convert

    bundle = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;").replace("</script", "<\\/script")
    return f'<script type="module">{bundle}</script>\n<script type="module">{DRAW}</script>'


def missing(study: Study, evidence: Evidence) -> str:
    """What of a study was not measured, in a sentence; nothing where all was."""
    seeds, cells = len({row.seed for row in evidence.rows}), study.cells(False)
    measured = sum(bool(evidence.select(settings)) for settings in cells)
    if seeds >= study.seeds and measured == len(cells):
        return ""
    return (
        f"This is a part of the study: {seeds} of {study.seeds} seeds, {measured} of {len(cells)} cells. It shows that "
        "the study runs; what is found may be different in the whole."
    )


def _origin(evidence: Evidence) -> str:
    if not evidence.rows:
        return "Nothing was measured yet."
    seeds = len({row.seed for row in evidence.rows})
    commits = ", ".join(sorted({row.commit for row in evidence.rows}))
    versions = "; ".join(sorted({row.versions for row in evidence.rows}))
    return f"Measured with {seeds} seed{'s' * (seeds > 1)}, at commit {commits}, with {versions}."


def _page(title: str, body: Sequence[str], scripts: str) -> str:
    lines = "\n".join(body)
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{escape(title)}</title>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<style>{STYLE}</style>\n</head>\n<body>\n<main>\n{lines}\n</main>\n{scripts}\n</body>\n</html>\n"
    )
