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
from experiments.plots import Line, figure
from experiments.summary import TARGET, Summary

Runs = Mapping[str, Sequence[Sequence[Record]]]

_INK = "#010203"  # stands in the drawing for the colour of the page's text, whatever that is
_COLOURS = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color", "grid.color")


def _panels(runs: Runs) -> list[tuple[str, list[Line]]]:
    titles = {"eval/accuracy": "Accuracy on held-out examples", "train/loss": "Training loss"}
    return [(title, [Line(norm, r, key) for norm, r in runs.items()]) for key, title in titles.items()]


def save_picture(path: Path, runs: Runs) -> None:
    """The curves of all norms, one panel for accuracy and one for loss, as a PNG."""
    write_whole(path, lambda temporary: figure(_panels(runs)).savefig(temporary, dpi=150))


def _drawing(runs: Runs) -> str:
    """The same as SVG, in the colours of the page."""
    style: dict[Any, Any] = {"svg.fonttype": "none", "svg.hashsalt": "compare", **dict.fromkeys(_COLOURS, _INK)}
    text = io.StringIO()
    with mpl.rc_context(style):
        figure(_panels(runs)).savefig(text, format="svg", transparent=True, metadata={"Date": None})
    svg = text.getvalue()[text.getvalue().index("<svg") :].replace(_INK, "currentColor")
    label = "Curves over the training steps: accuracy on held-out examples, and training loss. Figures in the table."
    return re.sub(r'<svg width="\S+" height="\S+"', f'<svg role="img" aria-label="{label}"', svg, count=1)


def save_page(path: Path, runs: Runs, summaries: Sequence[Summary], seeds: Sequence[int], config: Config) -> None:
    """The page: the curves, the figures, and the config."""
    norms = ", ".join(runs)
    body = _PAGE.format(
        title=f"Norms compared: {escape(norms)}",
        lead=f"{len(seeds)} seed{'s' * (len(seeds) > 1)} each, held-out examples of {escape(config.data.name)}. "
        "A thick line is the mean over the seeds, a thin line one seed.",
        drawing=_drawing(runs),
        target=f"{TARGET:.0%}",
        rows="\n".join(_row("th", (s.norm, s.accuracy, s.steps_to_target)) for s in summaries),
        runs="\n".join(_row("th", values) for s in summaries for values in _single(s, seeds)),
        config=escape(to_json(config)),
    )
    write_text(path, body)


def _single(summary: Summary, seeds: Sequence[int]) -> list[tuple[str, ...]]:
    return [
        (summary.norm, str(seed), f"{100 * accuracy:.2f}", "never" if steps is None else f"{steps:.0f}")
        for seed, accuracy, steps in zip(seeds, summary.accuracies, summary.steps, strict=True)
    ]


def _row(first: str, values: Sequence[str]) -> str:
    head, *rest = map(escape, values)
    return f'<tr><{first} scope="row">{head}</{first}>' + "".join(f"<td>{v}</td>" for v in rest) + "</tr>"


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
  svg {{ width: 100%; min-width: 36rem; height: auto; }}
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
<figure>
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
