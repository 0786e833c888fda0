"""The comparison as a picture, and as one HTML page that needs nothing else."""

import io
import re
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import matplotlib as mpl

from experiments.config import Config
from experiments.configfile import to_json
from experiments.files import Record, write_text, write_whole
from experiments.plots import Line, Panel, figure
from experiments.summary import TARGET, Summary

Runs = Mapping[Any, Sequence[Sequence[Record]]]  # by norm, of every seed

_INK = "#010203"  # stands in the drawing for the colour of the page's text, whatever that is
_COLOURS = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")


def _panels(runs: Runs) -> list[Panel]:
    error = [Line(norm, r, lambda record: 100 * (1 - record["eval/accuracy"])) for norm, r in runs.items()]
    loss = [Line(norm, r, lambda record: record["train/loss"]) for norm, r in runs.items()]
    return [
        Panel(f"Error on held-out examples, % (line: {TARGET:.0%} right)", error, log=True, target=100 * (1 - TARGET)),
        Panel("Training loss", loss, log=True),
    ]


def save_picture(path: Path, runs: Runs) -> None:
    """The curves of all norms, one panel for the error and one for the loss, as a PNG."""
    write_whole(path, lambda temporary: figure(_panels(runs)).savefig(temporary, dpi=150))


def _drawing(runs: Runs) -> str:
    """The same as SVG, in the colours of the page."""
    style: dict[Any, Any] = {"svg.fonttype": "none", "svg.hashsalt": "compare", **dict.fromkeys(_COLOURS, _INK)}
    text = io.StringIO()
    with mpl.rc_context(style):
        figure(_panels(runs)).savefig(
            text, format="svg", transparent=True, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type"))
        )
    svg = text.getvalue()[text.getvalue().index("<svg") :].replace(_INK, "currentColor")
    label = "Curves over the training steps: error on held-out examples, training loss. The table has the figures."
    return re.sub(r' width="\S+" height="\S+"', f' role="img" aria-label="{label}"', svg, count=1)


def save_page(path: Path, runs: Runs, summaries: Sequence[Summary], seeds: Sequence[int], config: Config) -> None:
    """The page: the curves, the figures, and the config."""
    norms = ", ".join(runs)
    body = _PAGE.format(
        title=f"Norms compared: {escape(norms)}",
        lead=f"The article's network ({config.model.api}) on {escape(config.data.name)}, {len(seeds)} seeds each. "
        "A thick line is the mean over the seeds, a thin line one seed; both scales are logarithmic.",
        drawing=_drawing(runs),
        target=f"{TARGET:.0%}",
        rows="\n".join(_row((s.norm, s.accuracy, s.steps_to_target)) for s in summaries),
        runs="\n".join(_row(values) for s in summaries for values in _single(s, seeds)),
        config=escape(to_json(config)),
    )
    write_text(path, body)


def _single(summary: Summary, seeds: Sequence[int]) -> list[tuple[str, ...]]:
    return [
        (summary.norm, str(seed), f"{100 * accuracy:.2f}", "never" if steps is None else f"{steps:.0f}")
        for seed, accuracy, steps in zip(seeds, summary.accuracies, summary.steps, strict=True)
    ]


def _row(values: Sequence[str]) -> str:
    head, *rest = map(escape, values)
    return f'<tr><th scope="row">{head}</th>' + "".join(f"<td>{v}</td>" for v in rest) + "</tr>"


_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>
  :root {{ color-scheme: light dark; }}
  body {{ font: 1rem/1.5 system-ui, sans-serif; max-width: 64rem; margin: 2rem auto; padding: 0 1rem; }}
  h1 {{ font-size: 1.5rem; }}
  h2 {{ font-size: 1.15rem; margin-top: 2rem; }}
  figure {{ margin: 1.5rem 0; overflow-x: auto; }}
  svg {{ width: 100%; min-width: 44rem; height: auto; }}
  table {{ border-collapse: collapse; font-variant-numeric: tabular-nums; }}
  caption {{ text-align: left; padding-bottom: .5rem; }}
  th, td {{ padding: .3rem 1.2rem .3rem 0; text-align: right; border-bottom: 1px solid #8888; }}
  th:first-child {{ text-align: left; }}
  summary {{ cursor: pointer; margin: 1rem 0; }}
  pre {{ overflow-x: auto; }}
</style>
</head>
<body>
<main>
<h1>{title}</h1>
<p>{lead}</p>
<figure tabindex="0">
{drawing}
</figure>
<table>
<caption>Mean ± standard deviation over the seeds</caption>
<thead><tr><th scope="col">norm</th><th scope="col">held-out accuracy, %</th>
<th scope="col">steps to {target}</th></tr></thead>
<tbody>
{rows}
</tbody>
</table>
<details><summary>Every run</summary>
<table>
<thead><tr><th scope="col">norm</th><th scope="col">seed</th><th scope="col">held-out accuracy, %</th>
<th scope="col">steps to {target}</th></tr></thead>
<tbody>
{runs}
</tbody>
</table>
</details>
<details><summary>The config, apart from norm and seed</summary>
<pre>{config}</pre>
</details>
</main>
</body>
</html>
"""
