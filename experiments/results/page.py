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
from experiments.config.own import short_name
from experiments.results.curves import Line, Panel, Score
from experiments.results.files import write_text, write_whole
from experiments.results.plots import Scores, figure, scores_figure
from experiments.results.records import Record
from experiments.results.summary import Summary, other_splits, shown
from experiments.results.tables import Table
from experiments.results.versions import in_words, versions

Runs = Mapping[Any, Sequence[Sequence[Record]]]  # by norm, of every seed

_INK = "#010203"  # stands in the drawing for the colour of the page's text, whatever that is
_COLOURS = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")


def _panels(runs: Runs, score: Score) -> list[Panel]:
    def lines(split: str) -> list[Line]:
        name = "" if split == "eval" else f", {split}"
        return [Line(f"{norm}{name}", r, lambda record: score.value(record, split)) for norm, r in runs.items()]

    scores = lines("eval")
    for split in other_splits(next(iter(runs.values()))[0][-1]):
        scores += lines(split)
    losses = [Line(norm, r, lambda record: record["train/loss"]) for norm, r in runs.items()]
    title = f"{score.on('held-out examples')}{score.goal and f' (line: {score.goal})'}"
    return [
        Panel(title, scores, log=score.log and _can_be_log(scores), target=score.target),
        Panel("Training loss", losses, log=_can_be_log(losses)),
    ]


def _can_be_log(lines: Sequence[Line]) -> bool:
    """Whether no number is below zero. On a logarithmic scale one that is zero is left out."""
    return not any(line.value(record) < 0 for line in lines for run in line.runs for record in run)


def save_picture(path: Path, runs: Runs, score: Score) -> None:
    """The curves of all norms, one panel for the score and one for the loss, as a PNG."""
    write_whole(path, lambda file: figure(_panels(runs, score)).savefig(file, dpi=150, format="png"))


def drawing(picture: Figure, label: str, prefix: str) -> str:
    """A figure as SVG in the colours of the page. `prefix` keeps its names apart from those of other drawings."""
    text = io.StringIO()
    picture.savefig(text, format="svg", transparent=True, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    svg = text.getvalue()[text.getvalue().index("<svg") :].replace(_INK, "currentColor")
    svg = re.sub(r'(\bid="|"#|url\(#)', rf"\g<1>{prefix}-", svg)
    return re.sub(r' width="\S+" height="\S+"', f' role="img" aria-label="{escape(label)}"', svg, count=1)


def _style() -> dict[Any, Any]:
    return {"svg.fonttype": "none", "svg.hashsalt": "compare", **dict.fromkeys(_COLOURS, _INK)}


def _drawings(panels: Sequence[Panel]) -> str:
    """A drawing for each panel: beside each other where there is room, else one above the other."""
    with mpl.rc_context(_style()):
        return "\n".join(
            drawing(
                figure([panel]), f"Curves over the training steps: {panel.title}. The table has the figures.", f"p{i}"
            )
            for i, panel in enumerate(panels)
        )


def save_page(path: Path, runs: Runs, summaries: Sequence[Summary], seeds: Sequence[int], config: Config) -> None:
    """The page: the curves, the figures, and the config."""
    heads, panels = tuple(summaries[0].figures), _panels(runs, summaries[0].score)
    means = [(s.norm, *s.figures.values()) for s in summaries]
    singles = [(s.norm, str(seed), *s.single(i).figures.values()) for s in summaries for i, seed in enumerate(seeds)]
    logs = " Both scales are logarithmic." if all(panel.log for panel in panels) else ""
    _save(
        path,
        config,
        norms=runs,
        lead=f"{_seeds(seeds)}. A thick line is the mean over the seeds, a thin line one seed.{logs}",
        drawings=_drawings(panels),
        table=Table("Mean ± standard deviation over the seeds", ("norm", *heads), means),
        every=Table("", ("norm", "seed", *heads), singles),
        links=[f"{norm}-seed{seed}/metrics.jsonl" for norm, seed, *_ in singles],
    )


def size_table(scores: Scores, score: Score) -> Table:
    """A row for each norm, a column for each batch size."""
    head = ["norm", *(f"batch {size}" for size in next(iter(scores.values())))]
    rows = [[norm, *(shown(score, values) for values in of_size.values())] for norm, of_size in scores.items()]
    return Table(f"{score.on('held-out examples')}: mean ± standard deviation over the seeds", head, rows)


def save_sizes_page(path: Path, scores: Scores, score: Score, seeds: Sequence[int], config: Config) -> None:
    """The page of a comparison over batch sizes: score against batch size, the figures, and the config."""
    singles = [
        (norm, str(size), str(seed), shown(score, [value]))
        for norm, of_size in scores.items()
        for size, values in of_size.items()
        for seed, value in zip(seeds, values, strict=True)
    ]
    with mpl.rc_context(_style()):
        label = f"{score.on('held-out examples')} against batch size. The table has the figures."
        picture = drawing(scores_figure(scores, score), label, "p")
    _save(
        path,
        config,
        norms=scores,
        lead=f"{_seeds(seeds)}, the learning rate in proportion to the batch size.",
        drawings=picture,
        table=size_table(scores, score),
        every=Table("", ("norm", "batch size", "seed", f"{score.name}{score.unit}"), singles),
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
        lead=f"{escape(_described(config))}; {lead}",
        drawings=drawings,
        tables=f"{table.html()}\n<details><summary>Every run</summary>\n{every.html(links)}\n</details>",
        config=escape(to_json(config)),
        made=f"{datetime.date.today()}; {in_words(versions(('jax', 'flax', 'optax', 'numpy')))}",
    )
    write_text(path, body)


def _described(config: Config) -> str:
    """What was trained on what."""
    task, model, data = map(short_name, (config.task, config.model.name, config.data.name))
    return f"Task {task}, model {model} ({config.model.api}), data {data}"


def _seeds(seeds: Sequence[int]) -> str:
    return "1 seed each" if len(seeds) == 1 else f"{len(seeds)} seeds each"


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
