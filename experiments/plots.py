"""Pictures of runs."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from experiments.files import Record, write_whole

# Colours that keep a contrast of 3 to white and to near-black, told apart by the colour-blind; and a dash for each.
STYLES = (
    ("#0f7fc4", "-"),
    ("#d45a00", "--"),
    ("#008f6b", "-."),
    ("#b85c9e", ":"),
    ("#8a7a00", (0, (5, 1, 1, 1, 1, 1))),
)


class Line(NamedTuple):
    """A curve: one run, or the mean of several with each of them thinly behind it."""

    label: str
    runs: Sequence[Sequence[Record]]
    value: Callable[[Record], float]


class Panel(NamedTuple):
    """Lines over the training steps, and perhaps a height to reach."""

    title: str
    lines: Sequence[Line]
    log: bool = False
    target: float | None = None


Errors = Mapping[str, Mapping[int, Sequence[float]]]  # in percent: by norm, by batch size, of every seed


def save_errors(path: Path, errors: Errors) -> None:
    """Error against batch size, a line for every norm: the mean of the seeds, and a bar over all of them."""
    picture = Figure(figsize=(6.4, 4.4), layout="constrained")
    ax = picture.subplots()
    markers = "osD^vPX*"
    for i, (norm, of_size) in enumerate(errors.items()):
        colour, dash = STYLES[i % len(STYLES)]
        means = [np.mean(values) for values in of_size.values()]
        spread = [[m - min(v), max(v) - m] for m, v in zip(means, of_size.values(), strict=True)]
        ax.errorbar(
            list(of_size), means, np.transpose(spread), color=colour, linestyle=dash, marker=markers[i % len(markers)],
            markersize=5, capsize=2, linewidth=1.6, label=norm,
        )  # fmt: skip
    ax.set_title("Error on held-out examples, %", loc="left", fontsize="medium")
    ax.set_xlabel("batch size")
    ax.set_xscale("log", base=2)
    ax.set_yscale("log")
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.yaxis.set_major_formatter("{x:g}")
    ax.yaxis.set_minor_formatter(NullFormatter())
    sizes = list(next(iter(errors.values())))
    ax.set_xticks(sizes, [str(size) for size in sizes])
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.grid(color="#888888", alpha=0.3, linewidth=0.6)
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False, ncols=2)
    write_whole(path, lambda temporary: picture.savefig(temporary, dpi=150))


def figure(panels: Sequence[Panel]) -> Figure:
    """One panel beside the other."""
    picture = Figure(figsize=(5.2 * len(panels), 3.9), layout="constrained")
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
        ax.set_yscale("log")
        ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.yaxis.set_major_formatter("{x:g}")
        ax.yaxis.set_minor_formatter(NullFormatter())
    ax.legend(frameon=False)


def _draw_line(ax: Axes, line: Line, color: str, dashes: Any) -> None:
    steps = [record["step"] for record in line.runs[0]]
    values = np.array([[line.value(record) for record in run] for run in line.runs])
    if len(values) > 1:
        ax.plot(steps, values.T, color=color, linewidth=0.8, alpha=0.45)
    ax.plot(steps, values.mean(0), color=color, linestyle=dashes, linewidth=2, label=line.label)


def save_curves(path: Path, records: Sequence[Record]) -> None:
    """The curves of one run as a picture."""
    panels = [
        Panel(
            name.capitalize(),
            [
                Line("training", [records], lambda r, name=name: r[f"train/{name}"]),  # type: ignore[misc]
                Line("held out", [records], lambda r, name=name: r[f"eval/{name}"]),  # type: ignore[misc]
            ],
            log=name == "loss",
        )
        for name in ("accuracy", "loss")
    ]
    write_whole(path, lambda temporary: figure(panels).savefig(temporary, dpi=150))
