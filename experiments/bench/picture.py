"""The timed norms as bars against the floor."""

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.bench.tables import grouped
from experiments.bench.work import shape_name
from experiments.results.files import write_whole

# Ours in blue, the peers on JAX from orange to brown, PyTorch in green: the family first, then who it is.
FAMILIES = {
    "bnjax": ("#08306b", "#2171b5", "#6baed6", "#b8d5ea"),
    "torch": ("#00441b", "#41ab5d", "#a1d99b"),
    "peers": ("#fdae6b", "#f16913", "#a63603", "#d9a8c5", "#8c6bb1"),
}
WIDTH = 0.86  # of all bars of a shape
FLOOR = (
    "Floor: the memory traffic of the passes that a norm must make, at the speed of a copy. A program comes out below "
    "it where it needs fewer fresh arrays than its passes suggest, or finds part of its data in a cache."
)


def family(name: str) -> str:
    return "bnjax" if name.startswith("bnjax") else "torch" if "orch" in name else "peers"


def colours(names: Sequence[str]) -> dict[str, str]:
    """A colour for every contender."""
    left = {name: list(shades) for name, shades in FAMILIES.items()}
    return {name: left[family(name)].pop(0) if left[family(name)] else "#777777" for name in names}


def save_bars(path: Path, records: Sequence[dict[str, Any]], footnote: str) -> None:
    """One row of panels for every work, one panel a dtype: groups of bars, one group a shape, one bar a contender.

    All panels have one scale. Where a bar passes below the floor, the picture says how that can be.
    """
    works, dtypes = (list(dict.fromkeys(r[key] for r in records)) for key in ("work", "dtype"))
    names = list(dict.fromkeys(name for r in records for name in r["contenders"]))
    shade = colours(names)
    most = max(len(group) for _, group in grouped(records, "work", "dtype"))
    width = max(5.0, 1.15 * most + 1) * len(dtypes)
    figure = Figure(figsize=(max(width, 8.0), 2.8 * len(works) + 1.6), layout="constrained")
    axes = figure.subplots(len(works), len(dtypes), squeeze=False, sharey=True)
    panels = {(work, dtype): axes[i][j] for i, work in enumerate(works) for j, dtype in enumerate(dtypes)}
    groups = {key: [r for r in records if (r["work"], r["dtype"]) == key] for key in panels}
    for (work, dtype), ax in panels.items():
        _panel(ax, f"{work}, {dtype}", groups[work, dtype], names, shade)
        ax.set_xlim(-0.6, most - 0.4)  # bars of one width in all panels
    if any(c["over_floor"] < 1 for r in records for c in r["contenders"].values()):
        footnote = f"{FLOOR} {footnote}"
    labelled = (zip(*reversed(ax.get_legend_handles_labels()), strict=True) for ax in panels.values())
    legend = dict(pair for pairs in labelled for pair in pairs)
    order = sorted(legend, key=lambda label: names.index(label) if label in names else -1)
    figure.legend(
        [legend[n] for n in order], order, loc="outside upper left", ncols=4 if width < 14 else 6, frameon=False
    )
    figure.supxlabel(
        "\n".join(textwrap.wrap(footnote, int(12 * max(width, 8.0)))), fontsize="x-small", x=0.01, ha="left"
    )
    write_whole(path, lambda file: figure.savefig(file, dpi=110, format="png"))


def _panel(ax: Axes, title: str, group: Sequence[dict[str, Any]], names: Sequence[str], shade: dict[str, str]) -> None:
    names = [name for name in names if any(name in r["contenders"] for r in group)]
    width = WIDTH / max(len(names), 1)
    for i, name in enumerate(names):
        there = [(at, r["contenders"][name]["over_floor"]) for at, r in enumerate(group) if name in r["contenders"]]
        left = [at - WIDTH / 2 + (i + 0.5) * width for at, _ in there]
        ax.bar(left, [height for _, height in there], width * 0.92, color=shade[name], label=name)
    ax.axhline(1, color="black", linewidth=1, linestyle="--", label="floor")
    ax.set_title(title, loc="left", fontsize="medium")
    ax.set_ylabel("time over the floor")
    ax.set_xticks(range(len(group)), [shape_name(tuple(r["shape"])) for r in group])
    ax.tick_params(axis="x", length=0)
    ax.grid(axis="y", alpha=0.35, linewidth=0.6)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)
