"""The picture of a diagnosis: running statistics against those of the batches, norm by norm."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bnjax._lifecycle.doctor import limits
from bnjax._lifecycle.doctor.facts import Norm
from bnjax._lifecycle.doctor.finding import SEVERITIES, Finding

ENDINGS = (".png", ".svg", ".pdf")
# Each severity has a shape, too, for who does not tell the colours apart.
COLOURS = {"error": "#c2213d", "warning": "#c85f00", "note": "#5f6b76", "": "#0f6fae"}
SHAPES = {"error": "X", "warning": "^", "note": "o", "": "o"}
ROW, LONGEST = 0.24, 44  # inches of a norm; characters of a path
WORDS = 56  # in a line of findings


def save(norms: Sequence[Norm], findings: Sequence[Finding], path: str | os.PathLike[str]) -> None:
    """Draws a picture into a file, whole or not at all."""
    file = Path(path)
    if file.suffix not in ENDINGS:
        raise ValueError(f"`path` must end with {', '.join(ENDINGS)}, but it is {str(file)!r}.")
    measured = [norm for norm in norms if norm.measured]
    if not measured:
        raise ValueError("There is nothing to draw: no norm with a running state was measured, or none is finite.")
    drawn = figure(measured, findings)
    handle, temporary = tempfile.mkstemp(prefix=".", suffix=file.suffix, dir=file.parent)
    os.close(handle)
    try:
        drawn.savefig(temporary, dpi=150)
        os.chmod(temporary, 0o644)
        os.replace(temporary, file)
    finally:
        Path(temporary).unlink(missing_ok=True)


def figure(norms: Sequence[Norm], findings: Sequence[Finding]) -> Any:
    """A row for each norm, the first that is called on top: the mean, the variance, and what was found."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("`plot` needs matplotlib: `pip install 'bnjax[experiments]'`.") from error
    paths = {norm.path for norm in norms}
    others = "; ".join(f"{f.path or 'the model'}: {f.code}" for f in findings if f.path not in paths)
    picture = Figure(figsize=(11.0, 1.6 + ROW * max(len(norms), 4)), layout="constrained")
    mean, var, said = picture.subplots(1, 3, sharey=True, width_ratios=(3, 3, 3.2))
    picture.suptitle(
        "Running statistics against those of the batches" + (f"\n{_cut(others, 110)}" if others else ""),
        x=0.01, ha="left", fontsize="medium", fontweight="bold",
    )  # fmt: skip
    of = {norm.path: [f for f in findings if f.path == norm.path] for norm in norms}
    _draw(mean, [norm.mean_off for norm in norms], of)
    _draw(var, [np.exp(norm.log_ratio) for norm in norms], of)
    _mean_axis(mean, norms)
    _var_axis(var)
    _write(said, of)
    for ax in (mean, var, said):
        for row in range(0, len(norms), 2):
            ax.axhspan(row - 0.5, row + 0.5, color="#8a97a3", alpha=0.1, linewidth=0, zorder=0)
    return picture


def _worst(findings: Sequence[Finding]) -> str:
    """The severity that a norm is drawn in; notes do not count for a point."""
    return min((f.severity for f in findings), key=SEVERITIES.index, default="")


def _draw(ax: Any, values: Sequence[Any], of: Mapping[str, Sequence[Finding]]) -> None:
    """Of the features of each norm: the middle, the half around it, and all but a tenth."""
    for row, (value, findings) in enumerate(zip(values, of.values(), strict=True)):
        value = value[~np.isnan(value)]
        if not value.size:
            continue
        worst = _worst([f for f in findings if f.severity != "note"])
        low, left, middle, right, high = np.quantile(value, (0.05, 0.25, 0.5, 0.75, 0.95))
        ax.plot((low, high), (row, row), color=COLOURS[worst], linewidth=1, solid_capstyle="butt")
        ax.plot((left, right), (row, row), color=COLOURS[worst], linewidth=4, alpha=0.55, solid_capstyle="butt")
        ax.plot(middle, row, SHAPES[worst], color=COLOURS[worst], markersize=6 if worst else 4)


def _mean_axis(ax: Any, norms: Sequence[Norm]) -> None:
    ax.set_yticks(range(len(norms)), [_cut(norm.path or "(root)", LONGEST) for norm in norms], fontsize="small")
    ax.set_ylim(len(norms) - 0.4, -0.6)
    ax.tick_params(axis="y", length=0)
    ax.set_xscale("symlog", linthresh=1)
    tens = int(np.ceil(np.log10(max(1.0, *map(abs, ax.get_xlim())))))
    ax.set_xlim(-(10**tens) * 1.1, 10**tens * 1.1)
    shown = [10.0**n for n in range(tens, -1, -(1 + tens // 3))]
    ax.set_xticks([*(-t for t in shown), 0, *reversed(shown)])
    ax.axvspan(-limits.MEAN_OFF, limits.MEAN_OFF, color="#8a97a3", alpha=0.25, linewidth=0)
    ax.xaxis.set_major_formatter("{x:g}")
    _plain(ax, "mean: running minus batch,\nin standard deviations")


def _var_axis(ax: Any) -> None:
    from matplotlib.ticker import NullLocator

    ax.set_xscale("log", base=2)
    low, high = ax.get_xlim()
    twos = int(np.ceil(np.log2(max(4.0, 1 / low, high))))
    ax.set_xlim(2.0**-twos / 1.1, 2.0**twos * 1.1)
    step = 1 + (twos - 1) // 3
    ax.set_xticks([2.0 ** (n * step) for n in range(-(twos // step), twos // step + 1)])
    ax.xaxis.set_minor_locator(NullLocator())
    ax.tick_params(axis="y", length=0)
    ax.axvspan(1 / limits.VAR_FACTOR, limits.VAR_FACTOR, color="#8a97a3", alpha=0.25, linewidth=0)
    ax.xaxis.set_major_formatter(lambda x, _: f"{x:g}" if x >= 1 else f"1/{1 / x:g}")
    _plain(ax, "variance: running over batch")


def _plain(ax: Any, label: str) -> None:
    ax.set_title(label, loc="left", fontsize="small")
    ax.grid(axis="x", color="#888888", alpha=0.3, linewidth=0.6)
    ax.tick_params(axis="x", labelsize="small")
    ax.spines[["top", "right", "left"]].set_visible(False)


def _write(ax: Any, of: Mapping[str, Sequence[Finding]]) -> None:
    """What was found of each norm, in the colour of the worst."""
    ax.set_axis_off()
    ax.set_xlim(0, 1)
    ax.set_title("findings", loc="left", fontsize="small")
    for row, findings in enumerate(of.values()):
        if findings:
            worst = _worst(findings)
            ax.plot(0.02, row, SHAPES[worst], color=COLOURS[worst], markersize=5)
            words = _cut(", ".join(f.code for f in findings), WORDS)
            ax.text(0.06, row, words, color=COLOURS[worst], va="center", fontsize="small")


def _cut(text: str, most: int) -> str:
    """The text, without its middle where it is too long."""
    half = (most - 1) // 2
    return text if len(text) <= most else f"{text[:half]}…{text[-half:]}"
