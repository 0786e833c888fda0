"""Pictures of runs."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, LogLocator, NullFormatter, NullLocator

from experiments.results.curves import Line, Panel, Score
from experiments.results.files import write_whole

# Eight colours with a contrast of 3 to white and to near-black, and a dash for each: lines differ in print, too.
STYLES = (
    ("#0f7fc4", "-"),
    ("#d45a00", "--"),
    ("#008f6b", "-."),
    ("#b85c9e", ":"),
    ("#8a7a00", (0, (5, 1, 1, 1, 1, 1))),
    ("#7d5fe0", (0, (7, 2))),
    ("#d0304c", (0, (3, 1, 1, 1))),
    ("#777777", (0, (1, 1))),
)
MARKERS = "osD^vPX*"
SMALL_ERRORS = 4.0  # percent: up to here the scale of errors is linear, so that 1 and 3 % are far apart


Scores = Mapping[str, Mapping[int, Sequence[float]]]  # by norm, by batch size, of every seed


def save_scores(path: Path, scores: Scores, score: Score) -> None:
    """Score against batch size, a line for every norm, as a PNG."""
    write_whole(path, lambda file: scores_figure(scores, score).savefig(file, dpi=150, format="png"))


def scores_figure(scores: Scores, score: Score) -> Figure:
    """Score against batch size, a line for every norm: the mean of the seeds, and a bar over all of them.

    Points of one batch size lie beside each other, so that none covers another, and each line has its name at its end.
    """
    picture = Figure(figsize=(7.2, 5.0), layout="constrained")
    ax = picture.subplots()
    ends: list[tuple[str, str, float, float]] = []
    for i, (norm, of_size) in enumerate(scores.items()):
        colour, dash = STYLES[i % len(STYLES)]
        beside = 2 ** (0.12 * (i - (len(scores) - 1) / 2))
        sizes = [size * beside for size in of_size]
        means = [float(np.mean(v)) if np.isfinite(v).all() else np.nan for v in of_size.values()]
        spread = [np.abs([m - min(v), max(v) - m]) for m, v in zip(means, of_size.values(), strict=True)]  # not -1e-16
        ax.errorbar(
            sizes, means, np.transpose(spread), color=colour, linestyle=dash, marker=MARKERS[i % len(MARKERS)],
            markersize=5, capsize=2, linewidth=1.6, elinewidth=1, label=norm,
        )  # fmt: skip
        ends.append((norm, colour, sizes[-1], means[-1]))
    _size_axis(ax, list(next(iter(scores.values()))))
    ax.set_title(f"{score.on('held-out examples')}: mean and range of the seeds", loc="left", fontsize="medium")
    ax.grid(color="#888888", alpha=0.3, linewidth=0.6)
    ax.spines[["top", "right"]].set_visible(False)
    finite = [v for e in scores.values() for values in e.values() for v in values if np.isfinite(v)]
    if score.percent:
        _percent_axis(ax, highest=max(finite, default=100.0))
    elif min(finite, default=0.0) > 0:
        _log_axis(ax)
    _label_ends(picture, ax, ends)
    return picture


def _size_axis(ax: Axes, sizes: Sequence[int]) -> None:
    ax.set_xlabel("batch size")
    ax.set_xscale("log", base=2)
    ax.set_xticks(sizes, [str(size) for size in sizes])
    ax.xaxis.set_minor_locator(NullLocator())


def _percent_axis(ax: Axes, highest: float) -> None:
    """Linear up to small errors, so that 1 and 3 % are far apart, and logarithmic above."""
    ax.set_yscale("symlog", linthresh=SMALL_ERRORS, linscale=2.5)
    ax.set_ylim(0, max(1.15 * highest, SMALL_ERRORS))
    ax.yaxis.set_major_locator(FixedLocator([0, 1, 2, 3, 4, 6, 10, 20, 40, 100]))
    ax.yaxis.set_minor_locator(FixedLocator(list(np.arange(0, SMALL_ERRORS, 0.5))))
    ax.yaxis.set_major_formatter("{x:g}")
    ax.axhline(SMALL_ERRORS, color="#888888", linewidth=0.8, linestyle=":")
    ax.annotate(
        "logarithmic from here", (0.45, SMALL_ERRORS), (0, 3), xycoords=("axes fraction", "data"),
        textcoords="offset points", fontsize="x-small", color="#666666",
    )  # fmt: skip


def _log_axis(ax: Axes) -> None:
    ax.set_yscale("log")
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.yaxis.set_major_formatter("{x:g}")
    ax.yaxis.set_minor_formatter(NullFormatter())


def _label_ends(picture: Figure, ax: Axes, ends: Sequence[tuple[str, str, float, float]]) -> None:
    """The name of each line to the right of its last point, moved up where another name is in the way.

    A line that ends in no number has its name at the top.
    """
    ax.set_xlim(right=max(x for *_, x, _ in ends) * 1.1)
    picture.draw_without_rendering()
    line_height = 11 * picture.dpi / 72
    lowest = -np.inf
    top = ax.get_ylim()[1]
    ends = [(name, colour, x, y if np.isfinite(y) else top) for name, colour, x, y in ends]
    for name, colour, _, y in sorted(ends, key=lambda end: end[-1]):
        height = max(ax.transData.transform((1, y))[1], lowest + line_height)
        lowest = height
        ax.annotate(
            name, (1, ax.transAxes.inverted().transform((0, height))[1]), (6, 0), xycoords="axes fraction",
            textcoords="offset points", color=colour, va="center", fontsize="small", fontweight="bold",
        )  # fmt: skip


def figure(panels: Sequence[Panel], title: str = "") -> Figure:
    """One panel beside the other."""
    picture = Figure(figsize=(5.2 * len(panels), 3.9), layout="constrained")
    if title:
        picture.suptitle(title, fontsize="medium", fontweight="bold", x=0.01, ha="left")
    for ax, panel in zip(np.atleast_1d(picture.subplots(1, len(panels))), panels, strict=True):
        _draw_panel(ax, panel)
    return picture


def _draw_panel(ax: Axes, panel: Panel) -> None:
    ax.set_title(panel.title, loc="left", fontsize="medium")
    ax.set_xlabel("training step")
    ax.grid(color="#888888", alpha=0.3, linewidth=0.6)
    ax.spines[["top", "right"]].set_visible(False)
    for line, style in zip(panel.lines, STYLES * len(panel.lines), strict=False):
        _draw_line(ax, line, *style)
    if panel.target is not None:
        ax.axhline(panel.target, color="#888888", linewidth=1.2, zorder=1)
    if panel.log:
        _log_axis(ax)
    ax.legend(frameon=False)


def _draw_line(ax: Axes, line: Line, color: str, dashes: Any) -> None:
    steps = [record["step"] for record in line.runs[0]]
    values = np.array([[line.value(record) for record in run] for run in line.runs])
    if len(values) > 1:
        ax.plot(steps, values.T, color=color, linewidth=0.8, alpha=0.45)
    ax.plot(steps, values.mean(0), color=color, linestyle=dashes, linewidth=2, label=line.label)


def save_panels(path: Path, panels: Sequence[Panel], title: str) -> None:
    """One panel beside the other, as a PNG."""
    write_whole(path, lambda file: figure(panels, title).savefig(file, dpi=150, format="png"))
