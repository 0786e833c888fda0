"""Pictures of runs."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

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
    """A curve: one run, or several whose mean is drawn over them."""

    label: str
    runs: Sequence[Sequence[Record]]
    key: str


def figure(panels: Sequence[tuple[str, Sequence[Line]]]) -> Figure:
    """One panel beside the other: its title and its lines. Losses have a logarithmic scale."""
    picture = Figure(figsize=(5.2 * len(panels), 3.9), layout="constrained")
    for ax, (title, lines) in zip(np.atleast_1d(picture.subplots(1, len(panels))), panels, strict=True):
        ax.set_title(title, loc="left", fontsize="medium")
        ax.set_xlabel("training step")
        ax.grid(alpha=0.35, linewidth=0.6)
        ax.spines[["top", "right"]].set_visible(False)
        if all(line.key.endswith("loss") for line in lines):
            ax.set_yscale("log")
        for line, style in zip(lines, STYLES * len(lines), strict=False):
            _draw(ax, line, *style)
        ax.legend(frameon=False)
    return picture


def _draw(ax: Axes, line: Line, color: str, dashes: Any) -> None:
    steps = [record["step"] for record in line.runs[0]]
    values = np.array([[record[line.key] for record in run] for run in line.runs])
    if len(values) > 1:
        ax.plot(steps, values.T, color=color, linewidth=0.8, alpha=0.45)
    ax.plot(steps, values.mean(0), color=color, linestyle=dashes, linewidth=2, label=line.label)


def save_curves(path: Path, records: Sequence[Record]) -> None:
    """The curves of one run as a picture."""
    pairs = (("train", "training"), ("eval", "held out"))
    panels = [
        (name.capitalize(), [Line(label, [records], f"{part}/{name}") for part, label in pairs])
        for name in ("accuracy", "loss")
    ]
    write_whole(path, lambda temporary: figure(panels).savefig(temporary, dpi=150))
