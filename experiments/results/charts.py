"""Interactive charts by Altair: data as rows of plain numbers in, Vega-Lite specifications out."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.results.tables import Table

Rows = Sequence[Mapping[str, Any]]
HEIGHT = 260  # pixels; the width is the page's
# Told apart by people who see colours differently, on white and on black (Okabe and Ito).
PLACES = 16  # that an axis has room to name
FACETS = 5  # side by side; a narrow page shows two
COLOURS = {
    "none": "#888888", "batch": "#0072b2", "layer": "#e69f00", "rms": "#009e73", "group": "#d55e00", "dyt": "#cc79a7",
    "instance": "#56b4e9", "ghost": "#a08f00", "renorm": "#cc79a7", "derf": "#8c564b", "zero": "#117733",
    "fixup": "#56b4e9", "scaled_ws": "#d55e00",
}  # fmt: skip


def lines(
    rows: Rows,
    *,
    x: str,
    y: str,
    colour: str,
    order: Sequence[str],
    log_x: bool = False,
    log_y: bool = False,
    facet: str | None = None,
) -> dict[str, Any]:
    """A line for each value of `colour`, with its interval (`low` to `high` in the rows, if they are there).

    A click on the legend fades the others. Points show what they are of. With `facet` they are small multiples, one for
    each of its values.
    """
    import altair as alt

    chosen = alt.selection_point(name="chosen", fields=[colour], bind="legend")
    places = sorted({row[x] for row in rows})
    marked = places if len(places) <= PLACES else alt.Undefined
    scale_x = alt.Scale(type="log" if log_x else "linear", nice=False)
    xs = alt.X(x, type="quantitative", scale=scale_x, axis=alt.Axis(values=marked, grid=False))
    scale = alt.Scale(type="log" if log_y else "linear", zero=False)
    faded = alt.condition(chosen, alt.value(1.0), alt.value(0.12))
    named = alt.Scale(domain=list(order), range=_colours(order))
    legend = alt.Legend(orient="bottom", columns=3)
    colours = alt.Color(colour, type="nominal", scale=named, sort=list(order), legend=legend)
    base = alt.Chart(alt.InlineData(values=[dict(row) for row in rows])).encode(x=xs, color=colours, opacity=faded)
    ys = alt.Y(y, type="quantitative", scale=scale)
    shown = [alt.Tooltip(name, type=_kind(rows, name)) for name in rows[0]]
    parts = [base.mark_line(point=True).encode(y=ys, tooltip=shown).add_params(chosen)]
    if rows and "low" in rows[0]:
        bars = alt.Y("low", type="quantitative", scale=scale, title=y)
        # After the lines, or the legend would be that of the intervals, which takes no clicks.
        parts.append(base.mark_rule(strokeWidth=2).encode(y=bars, y2="high:Q"))
    layered = alt.layer(*parts)
    return _small_multiples(layered, rows, facet) if facet else _finished(layered)


def table(rows: Rows, *, x: str, y: str, line: str, title: str) -> Table:
    """The figures of `lines`: a row for each line, a column for each `x`, the mean with its interval."""
    columns = sorted({row[x] for row in rows})
    found = {(row[line], row[x]): f"{row[y]:.3g} [{row['low']:.3g}, {row['high']:.3g}]" for row in rows}
    names = dict.fromkeys(row[line] for row in rows)
    cells = [[name, *(found.get((name, column), "") for column in columns)] for name in names]
    return Table(title, ["", *(f"{column} {x}" for column in columns)], cells)


def bars(rows: Rows, *, x: str, y: str, facet: str, order: Sequence[str]) -> dict[str, Any]:
    """Small multiples of points with their intervals, one for each value of `facet`: bars from zero would hide both."""
    import altair as alt

    base = alt.Chart(alt.InlineData(values=[dict(row) for row in rows])).encode(
        x=alt.X(x, type="nominal", sort=list(order), title=None, axis=alt.Axis(labelAngle=-30))
    )
    scale = alt.Scale(zero=False)
    shown = [alt.Tooltip(name, type=_kind(rows, name)) for name in rows[0]]
    points = base.mark_point(filled=True, size=90, color=COLOURS["batch"]).encode(
        y=alt.Y(y, type="quantitative", scale=scale), tooltip=shown
    )
    spans = base.mark_rule(strokeWidth=2, color=COLOURS["batch"]).encode(
        y=alt.Y("low", type="quantitative", scale=scale, title=y), y2="high:Q"
    )
    return _small_multiples(alt.layer(spans, points), rows, facet)


def heat(
    rows: Rows,
    *,
    x: str,
    y: str,
    value: str,
    facet: str,
    order: Sequence[str],
    slider: str | None = None,
    height: int = HEIGHT,
) -> dict[str, Any]:
    """Small multiples of squares, one for each value of `facet`; a slider chooses the value of `slider`.

    The values of `slider` are integers in equal steps from the least one.
    """
    import altair as alt

    squares = (
        alt.Chart(alt.InlineData(values=[dict(row) for row in rows]))
        .mark_rect()
        .encode(
            x=alt.X(x, type="ordinal", axis=alt.Axis(labelAngle=0)),
            y=alt.Y(y, type="ordinal", sort="descending", axis=alt.Axis(labelOverlap=True)),
            color=alt.Color(
                value, type="quantitative", scale=alt.Scale(scheme="viridis"), legend=alt.Legend(orient="bottom")
            ),
            tooltip=[alt.Tooltip(name, type=_kind(rows, name)) for name in rows[0]],
        )
        .properties(width=110, height=height)
    )
    if slider:
        steps = sorted({row[slider] for row in rows})
        every = steps[1] - steps[0] if len(steps) > 1 else 1
        bound = alt.binding_range(min=steps[0], max=steps[-1], step=every, name=f"{slider} ")
        moved = alt.param(name="shown", value=steps[0], bind=bound)
        squares = squares.transform_filter(f"datum['{slider}'] == shown").add_params(moved)
    multiples = squares.facet(facet=alt.Facet(facet, type="nominal", sort=list(order), title=None), columns=FACETS)
    return _finished(multiples, width=False)


def _colours(names: Sequence[str]) -> list[str]:
    """Those of the norms; other names get the same colours in turn."""
    return [COLOURS.get(name, other) for name, other in zip(names, itertools.cycle(COLOURS.values()))]


def _small_multiples(chart: Any, rows: Rows, facet: str) -> dict[str, Any]:
    """The chart once for each value of `facet`, in the order of the rows; fewer are wider."""
    import altair as alt

    names = list(dict.fromkeys(row[facet] for row in rows))
    columns = min(len(names), FACETS)
    sized = chart.properties(width=860 // columns, height=HEIGHT)
    return _finished(
        sized.facet(facet=alt.Facet(facet, type="nominal", sort=names, title=None), columns=columns), width=False
    )


def _kind(rows: Rows, name: str) -> Any:
    return "quantitative" if isinstance(rows[0][name], int | float) else "nominal"


def _finished(chart: Any, width: bool = True) -> dict[str, Any]:
    if width:
        chart = chart.properties(width="container", height=HEIGHT)
    made: dict[str, Any] = chart.configure(background="transparent").configure_view(strokeOpacity=0).to_dict()
    return made
