"""The comparison as a picture, and as one HTML page that needs nothing else."""

import datetime
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from experiments.config import Config
from experiments.config.file import to_json
from experiments.results.curves import Line, Panel, error
from experiments.results.files import write_text, write_whole
from experiments.results.plots import Errors, errors_figure, figure
from experiments.results.records import RECALIBRATED, Record, has_recalibrated
from experiments.results.summary import TARGET, Summary, mean_and_deviation
from experiments.results.tables import Table
from experiments.results.versions import in_words, versions

Runs = Mapping[Any, Sequence[Sequence[Record]]]  # by norm, of every seed

_INK = "#010203"  # stands in the drawing for the colour of the page's text, whatever that is
_COLOURS = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")


def _panels(runs: Runs) -> list[Panel]:
    errors = [Line(norm, r, error("eval")) for norm, r in runs.items()]
    if all(has_recalibrated(record) for of_norm in runs.values() for record in of_norm[0]):
        errors += [Line(f"{norm}, {RECALIBRATED}", r, error(RECALIBRATED)) for norm, r in runs.items()]
    loss = [Line(norm, r, lambda record: record["train/loss"]) for norm, r in runs.items()]
    reached = 100 * (1 - TARGET)
    return [
        Panel(f"Error on held-out examples, % (line: {TARGET:.0%} right)", errors, log=True, target=reached),
        Panel("Training loss", loss, log=True),
    ]


def save_picture(path: Path, runs: Runs) -> None:
    """The curves of all norms, one panel for the error and one for the loss, as a PNG."""
    write_whole(path, lambda file: figure(_panels(runs)).savefig(file, dpi=150, format="png"))


def drawing(picture: Figure, label: str, prefix: str) -> str:
    """A figure as SVG in the colours of the page. `prefix` keeps its names apart from those of other drawings."""
    text = io.StringIO()
    picture.savefig(text, format="svg", transparent=True, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    svg = text.getvalue()[text.getvalue().index("<svg") :].replace(_INK, "currentColor")
    svg = re.sub(r'(\bid="|"#|url\(#)', rf"\g<1>{prefix}-", svg)
    return re.sub(r' width="\S+" height="\S+"', f' role="img" aria-label="{escape(label)}"', svg, count=1)


def _style() -> dict[Any, Any]:
    return {"svg.fonttype": "none", "svg.hashsalt": "compare", **dict.fromkeys(_COLOURS, _INK)}


def _drawings(runs: Runs) -> str:
    """A drawing for each panel: beside each other where there is room, else one above the other."""
    with mpl.rc_context(_style()):
        return "\n".join(
            drawing(
                figure([panel]), f"Curves over the training steps: {panel.title}. The table has the figures.", f"p{i}"
            )
            for i, panel in enumerate(_panels(runs))
        )


def save_page(path: Path, runs: Runs, summaries: Sequence[Summary], seeds: Sequence[int], config: Config) -> None:
    """The page: the curves, the figures, and the config."""
    heads = tuple(summaries[0].figures)
    means = [(s.norm, *s.figures.values()) for s in summaries]
    singles = [values for s in summaries for values in _single(s, seeds)]
    _save(
        path,
        config,
        norms=runs,
        lead=f"{len(seeds)} seeds each. "
        "A thick line is the mean over the seeds, a thin line one seed; both scales are logarithmic.",
        drawings=_drawings(runs),
        table=Table("Mean ± standard deviation over the seeds", ("norm", *heads), means),
        every=Table("", ("norm", "seed", *heads), singles),
        links=[f"{norm}-seed{seed}/metrics.jsonl" for norm, seed, *_ in singles],
    )


def save_sizes_page(path: Path, errors: Errors, seeds: Sequence[int], config: Config) -> None:
    """The page of a comparison over batch sizes: error against batch size, the figures, and the config."""
    sizes = [f"batch {size}" for size in next(iter(errors.values()))]
    means = [(n, *(mean_and_deviation(v, digits=2) for v in e.values())) for n, e in errors.items()]
    singles = [
        (norm, str(size), str(seed), f"{value:.2f}")
        for norm, of_size in errors.items()
        for size, values in of_size.items()
        for seed, value in zip(seeds, values, strict=True)
    ]
    with mpl.rc_context(_style()):
        picture = drawing(errors_figure(errors), "Error against batch size. The table has the figures.", "p")
    _save(
        path,
        config,
        norms=errors,
        lead=f"{len(seeds)} seeds each, the learning rate in proportion to the batch size.",
        drawings=picture,
        table=Table("Error on held-out examples, %: mean ± standard deviation over the seeds", ("norm", *sizes), means),
        every=Table("", ("norm", "batch size", "seed", "error, %"), singles),
        links=[f"{norm}-batch{size}-seed{seed}/metrics.jsonl" for norm, size, seed, _ in singles],
    )


def _save(
    path: Path,
    config: Config,
    norms: Iterable[str],
    lead: str,
    drawings: str,
    table: Table,
    every: Table,
    links: Sequence[str],
) -> None:
    """Saves the page. `every` has a row for every run, and `links` are their files, seen from the page."""
    body = _PAGE.format(
        title=f"Norms compared: {escape(', '.join(norms))}",
        lead=f"The article's network ({config.model.api}) on {escape(config.data.name)}, {lead}",
        drawings=drawings,
        tables=f"{table.html()}\n<details><summary>Every run</summary>\n{every.html(links)}\n</details>",
        config=escape(to_json(config)),
        made=f"{datetime.date.today()}; {in_words(versions(('jax', 'flax', 'optax', 'numpy')))}",
    )
    write_text(path, body)


def _single(summary: Summary, seeds: Sequence[int]) -> list[tuple[str, ...]]:
    runs = [
        Summary(summary.norm, [accuracy], [steps], summary.recalibrated[i : i + 1])
        for i, (accuracy, steps) in enumerate(zip(summary.accuracies, summary.steps, strict=True))
    ]
    return [(summary.norm, str(seed), *run.figures.values()) for seed, run in zip(seeds, runs, strict=True)]


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
  figure {{ margin: 1.5rem 0; display: grid; gap: 1rem; }}
  figure {{ grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); }}
  svg {{ width: 100%; height: auto; }}
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
{drawings}
</figure>
{tables}
<details><summary>The config, apart from norm and seed</summary>
<pre>{config}</pre>
</details>
<p>Made on {made}.</p>
</main>
</body>
</html>
"""
