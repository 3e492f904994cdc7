"""The charts of a result, drawn once for page and print, as Vega-Lite.

On the page they are interactive: a specification names its data (`points`, `lines`, ..), and the
page's script puts the result's in. For print the same specification gets its data, the sizes of a
paper, a legend, and the names of its points above the axes.
"""

from __future__ import annotations

import functools
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import altair as alt
import matplotlib
import numpy as np
import vl_convert
from PIL import Image

from masksearch.files import write_in_one_move
from masksearch.masks.families import SCRAMBLED
from masksearch.report.chart_rows import Chart, DifferenceChart, FrontChart, VolumeChart
from masksearch.report.style import COLOURS, COLUMN, DPI, GREY, INK, LABEL, PAGE, SMALL

PRINTED = ("pdf", "svg", "png")
DATA = ("points", "lines", "levels")  # of a chart, as its specification names them
MARGIN = 0.04  # of the axis of sparsity, beyond its points
POINTS = 72  # of print, in an inch
NAMED = 18  # names that stand side by side over a column; more take the width of a page
MOST = 44  # names over the width of a page; of more points those on a front have one
LONGEST = 26  # letters of a name
SHAPES = {  # matplotlib's markers, as Vega names them; others are circles
    **{"s": "square", "D": "diamond", "^": "triangle-up", "v": "triangle-down", "P": "cross"},
    **{"X": "cross", "<": "triangle-left", ">": "triangle-right", "h": "square"},
}


@dataclass(frozen=True)
class Medium:
    """Sizes of what a chart is drawn on, in pixels of the page or points of print.

    Args:
        height: Of a front's axes.
        row: Height of a paired difference.
        mark: Area of a point.
        line: Width of a front's line.
        text: Size of labels in the chart.
        legend: Of colours and shapes; the page has its own.
    """

    height: int
    row: int
    mark: int
    line: float
    text: int
    legend: alt.Legend | None = None


SCREEN = Medium(360, 26, 60, 1.6, 11)
PAPER = Medium(
    *(150, 14, 20, 1.1, SMALL),
    alt.Legend(
        title=None,
        orient="bottom",
        columns=3,
        columnPadding=8,
        offset=6,
        symbolSize=30,
        symbolOpacity=1,
    ),
)


def chart_spec(chart: Chart, medium: Medium = SCREEN) -> dict[str, Any]:
    """The Vega-Lite specification of one of the result's charts, without its data."""
    if chart["kind"] == "front":
        return _front_spec(chart, medium)
    if chart["kind"] == "hypervolume":
        return _volume_spec(chart, medium)
    return _difference_spec(chart, medium)


def _front_spec(chart: FrontChart, medium: Medium) -> dict[str, Any]:
    """Sparsity against score: marks, the front of each group with its band, and level lines.

    Its parameters are set by the page: `cost` and `budget` dim what is dearer, `here` names the
    point in focus.
    """
    groups = chart["groups"]
    names = [group["name"] for group in groups]
    colours = alt.Scale(domain=names, range=[group["colour"] for group in groups])
    shapes = [SHAPES.get(group["shape"], "circle") for group in groups]
    legend = medium.legend if names else None  # an empty one has no size that prints
    colour = alt.Color("group:N", scale=colours, legend=legend)
    shape = alt.Shape("group:N", scale=alt.Scale(domain=names, range=shapes), legend=legend)
    low, high = _sparsity_axis(chart)
    x = alt.X(
        "saved:Q", title=chart["axis"], scale=alt.Scale(domain=[low, high], nice=False, zero=False)
    )
    title = f"{chart['score']['title']}, {chart['score']['goal']} is better"
    y = alt.Y("score:Q", title=title, scale=_score_scale(chart))
    lines = alt.Chart(alt.NamedData("lines")).encode(x, y, colour)
    band = (
        alt.Chart(alt.NamedData("lines"))
        .mark_area(interpolate="step-before", opacity=0.14)
        .encode(x, alt.Y("low:Q", title=title), alt.Y2("high:Q"), colour)
        .transform_filter("isValid(datum.low)")
    )
    level = alt.Chart(alt.NamedData("levels"))
    layers = [
        level.mark_rect(opacity=0.08).encode(alt.Y("low:Q", title=title), alt.Y2("high:Q")),
        level.mark_rule(strokeDash=[2, 3]).encode(y),
        level.mark_text(align="right", dy=-6).encode(y, text="label:N", x=alt.value("width")),
        band,
        lines.mark_line(interpolate="step-before", strokeWidth=medium.line).encode(
            strokeDash=alt.when("datum.arm == 'hand-designed'")
            .then(alt.value([6, 4]))
            .otherwise(alt.value([1, 0])),
            detail="group:N",
        ),
        *_point_marks(x, y, colour, shape, title, medium),
    ]
    return finish(
        alt.layer(*layers).add_params(
            alt.param("cost", value="density"),
            alt.param("budget", value=1e9),
            alt.param("here", value=""),
        ),
        medium,
        medium.height,
    )


def _point_marks(
    x: alt.X, y: alt.Y, colour: alt.Color, shape: alt.Shape, title: str, medium: Medium
) -> list[alt.Chart]:
    """A mask's interval, what its search promised, its point, and a cross where nothing was
    learned."""
    affordable = "datum.costs[cost] == null || datum.costs[cost] <= budget"
    points = alt.Chart(alt.NamedData("points"))
    return [
        points.mark_rule(strokeWidth=0.75 * medium.line)
        .encode(x, alt.Y("low:Q", title=title), alt.Y2("high:Q"), colour)
        .transform_filter("isValid(datum.low) && datum.saved > 0"),
        points.mark_point(shape="stroke", size=2 * medium.mark, strokeWidth=medium.line)
        .encode(x, alt.Y("promised:Q", title=title), colour)
        .transform_filter("isValid(datum.promised) && datum.saved > 0"),
        points.mark_point(filled=True, strokeWidth=2, tooltip=alt.TooltipContent("data"))
        .encode(
            *(x, y, colour, shape),
            opacity=alt.when(affordable).then(alt.value(0.85)).otherwise(alt.value(0.12)),
            size=alt.when("datum.id == here")
            .then(alt.value(3 * medium.mark))
            .otherwise(alt.value(medium.mark)),
        )
        .transform_filter("!datum.nothing && datum.saved > 0"),
        points.mark_point(
            shape="cross",
            angle=45,
            size=0.75 * medium.mark,
            strokeWidth=0.7 * medium.line,
            tooltip=alt.TooltipContent("data"),
        )
        .encode(x, y, opacity=alt.value(0.5), color=alt.value(GREY))
        .transform_filter("datum.nothing && datum.saved > 0"),
        points.mark_text(dy=-10, fontSize=medium.text)
        .encode(x, y, text="name:N", opacity=alt.value(float(medium.legend is None)))
        .transform_filter("datum.lead && datum.saved > 0"),
    ]


def _sparsity_axis(chart: FrontChart) -> tuple[float, float]:
    """Both ends of the axis of a front: its sparse points and lines, and a little more."""
    shown = [each["saved"] for each in (*chart["points"], *chart["lines"])]
    xs = [x for x in shown if x > 0] or [0.0, 100.0]
    room = MARGIN * (max(xs) - min(xs)) or 1.0
    return min(xs) - room, max(xs) + room


def _score_scale(chart: FrontChart) -> alt.Scale:
    """Of a front: its masks with their intervals, and a little more, within the metric's range (0
    to 1, or from 0) where all masks are."""
    scores = [each["score"] for each in (*chart["points"], *chart["lines"])]
    ends = [point[name] for point in chart["points"] for name in ("low", "high", "promised")]
    ys = [*scores, *(end for end in ends if end is not None)]
    room = 2 * MARGIN * (max(ys) - min(ys)) or 0.05 * abs(ys[0]) or 1.0
    low, high = min(ys) - room, max(ys) + room
    share = chart["score"]["goal"] == "higher" and max(scores) <= 1
    domain = [max(low, 0.0) if min(scores) >= 0 else low, min(high, 1.0) if share else high]
    return alt.Scale(domain=domain, zero=False, nice=False, clamp=True)


def _volume_spec(chart: VolumeChart, medium: Medium) -> dict[str, Any]:
    """Hypervolume over compute: a line for each strategy, its band where it has several seeds."""
    groups = chart["groups"]
    base = alt.Chart(alt.NamedData("lines")).encode(
        alt.X("compute:Q", title=chart["compute"], scale=alt.Scale(nice=False, zero=True)),
        alt.Color(
            "group:N",
            scale=alt.Scale(
                domain=[group["name"] for group in groups],
                range=[group["colour"] for group in groups],
            ),
            legend=medium.legend,
        ),
    )
    title = "hypervolume dominated"
    return finish(
        alt.layer(
            base.mark_area(interpolate="step-after", opacity=0.15)
            .encode(alt.Y("low:Q", title=title), alt.Y2("high:Q"))
            .transform_filter("isValid(datum.low)"),
            base.mark_line(interpolate="step-after", strokeWidth=medium.line).encode(
                alt.Y("mean:Q", title=title)
            ),
            base.mark_point(filled=True, opacity=0, size=80).encode(
                alt.Y("mean:Q", title=title),
                tooltip=["group:N", "compute:Q", alt.Tooltip("mean:Q", format=".5g")],
            ),
        ),
        medium,
        round(0.72 * medium.height),
    )


WINS, LOSSES = ("better", "gains more than", "loses at most"), ("worse", "loses more than")


def _difference_spec(chart: DifferenceChart, medium: Medium) -> dict[str, Any]:
    """Paired differences with their intervals, one a row, beside the line of no difference; a
    tick shows the margin that may be lost."""
    rows = chart["lines"]
    base = alt.Chart(alt.NamedData("lines")).encode(
        alt.Y(
            "label:N",
            title=None,
            sort=[row["label"] for row in rows],
            axis=alt.Axis(labelLimit=300, grid=True),
        ),
        alt.Color(
            "outcome:N",
            scale=alt.Scale(
                domain=[*WINS, *LOSSES, "not distinguishable", "undecided", "too few seeds"],
                range=["#009E73"] * len(WINS) + ["#D55E00"] * len(LOSSES) + [GREY] * 3,
            ),
            legend=None,
        ),
    )
    return finish(
        alt.layer(
            alt.Chart(alt.InlineData([{"zero": 0}]))
            .mark_rule(strokeDash=[4, 3])
            .encode(alt.X("zero:Q", title=chart["title"])),
            base.mark_tick(thickness=1.2 * medium.line)
            .encode(alt.X("margin:Q", title=chart["title"]))
            .transform_filter("isValid(datum.margin)"),
            base.mark_rule(strokeWidth=1.2 * medium.line)
            .encode(alt.X("low:Q", title=chart["title"]), alt.X2("high:Q"))
            .transform_filter("isValid(datum.low)"),
            base.mark_point(filled=True, size=1.2 * medium.mark).encode(
                alt.X("mean:Q", title=chart["title"]),
                tooltip=[
                    *("mask:N", "against:N", "outcome:N"),
                    *(alt.Tooltip(f"{name}:Q", format="+.4f") for name in ("mean", "low", "high")),
                ],
            ),
        ),
        medium,
        medium.row * max(2, len(rows)),
    )


def finish(
    chart: alt.LayerChart | alt.FacetChart, medium: Medium, height: float
) -> dict[str, Any]:
    """As wide as its place on the page, in the page's font."""
    assert isinstance(chart, alt.LayerChart)  # layers of charts without facets
    done: dict[str, Any] = (
        chart.properties(width="container", height=height)
        .configure(font="system-ui, sans-serif", background="transparent")
        .configure_view(stroke=None)
        .configure_text(fontSize=medium.text)
        .to_dict()
    )
    return done


# -- print ---------------------------------------------------------------------------------------
def write_chart(chart: Chart, folder: Path) -> list[Path]:
    """Writes a chart as `ID.pdf`, `ID.svg` (text as text) and `ID.png` (300 dots an inch)."""
    spec, paths = paper_spec(chart), [folder / f"{chart['id']}.{end}" for end in PRINTED]
    _load_fonts()
    svg = vl_convert.vegalite_to_svg(spec).encode()
    contents = vl_convert.vegalite_to_pdf(spec), svg, chart_png(spec)
    for path, content in zip(paths, contents, strict=True):
        with write_in_one_move(path) as beside:
            beside.write_bytes(content)
    return paths


def chart_png(spec: Mapping[str, Any], dpi: int = DPI) -> bytes:
    """A specification with its data as a PNG of few colours, a third of the size."""
    _load_fonts()
    drawn = Image.open(io.BytesIO(vl_convert.vegalite_to_png(dict(spec), ppi=dpi)))
    file = io.BytesIO()
    drawn.convert("RGB").quantize(COLOURS).save(file, "PNG", optimize=True)
    return file.getvalue()


@functools.cache
def _load_fonts() -> None:
    """Makes the fonts known that come with matplotlib, so that print is the same everywhere."""
    vl_convert.register_font_directory(f"{matplotlib.get_data_path()}/fonts/ttf")


def paper_spec(chart: Chart) -> dict[str, Any]:
    """A chart's specification for print, with its data: one column wide, two for many names."""
    spec, marks = chart_spec(chart, PAPER), _marks_to_name(chart)
    spec["layer"] = [each for each in spec["layer"] if each["mark"]["type"] != "text"]
    wide = chart["kind"] == "differences" or len(marks) > NAMED
    if chart["kind"] == "front" and marks:
        spec["layer"] = [*_name_layers(chart, marks, PAGE if wide else COLUMN), *spec["layer"]]
    if notes := _notes_of(chart):
        text = {"fontSize": SMALL, "fontWeight": "normal", "color": "#555555"}
        spec["title"] = {"text": notes, "orient": "bottom", "anchor": "start", **text, "offset": 6}
    axis = {"labelFontSize": SMALL, "titleFontSize": LABEL, "titleFontWeight": "normal"}
    axis |= dict.fromkeys(("domainWidth", "tickWidth", "gridWidth"), 0.6) | {"tickSize": 3}
    colours = dict.fromkeys(("labelColor", "titleColor", "domainColor", "tickColor"), INK)
    return spec | {
        "width": POINTS * (PAGE if wide else COLUMN),
        "autosize": {"type": "fit-x", "contains": "padding"},
        "padding": 4,
        "background": "white",
        "datasets": {name: chart.get(name, []) for name in DATA},
        "config": {
            **spec["config"],
            "background": "white",
            "font": "DejaVu Sans",
            "axis": {**axis, **colours, "gridColor": "#E4E4E4", "labelOverlap": True},
            "legend": {"labelFontSize": SMALL, "labelColor": INK},
            "rule": {"color": GREY},
            "text": {"fontSize": SMALL, "color": INK},
        },
    }


def _notes_of(chart: Chart) -> list[str]:
    """The meanings of a printed chart's marks, in a line each."""
    if chart["kind"] != "front":
        lows = [each["low"] for each in chart["lines"]]
        marks = "Bars" if chart["kind"] == "differences" else "Bands"
        return [f"{marks}: 95% intervals."] * any(low is not None for low in lows)
    points = [point for point in chart["points"] if point["saved"] > 0]
    levels = next((level["label"] for level in chart["levels"] if level["label"]), "")
    meanings = {
        f"Dotted: {levels}.": bool(levels),
        "Bars and bands: 95% intervals.": any(point["low"] is not None for point in points),
        "Short bars: scored so by the search.": any(p["promised"] is not None for p in points),
        "Crosses: no better than a constant answer.": any(p["nothing"] for p in points),
    }
    return [line for line, there in meanings.items() if there]


def _marks_to_name(chart: Chart) -> list[dict[str, Any]]:
    """The points that print names, densest first: none of a search's own trials, no scrambled
    ones, and where they are very many those on a front."""
    if chart["kind"] != "front":
        return []
    marks = [
        {**point, "label": shorten(point["name"])}
        for point in chart["points"]
        if point["saved"] > 0 and not point["search"] and point["group"] != SCRAMBLED
    ]
    if len(marks) > MOST:
        best = {line["id"] for line in chart["lines"]}
        marks = [mark for mark in marks if mark["id"] in best]
    marks = [*{(mark["label"], mark["saved"], mark["score"]): mark for mark in marks}.values()]
    return sorted(marks, key=lambda mark: (mark["saved"], mark["score"]))[:MOST]


def shorten(name: str) -> str:
    """A name that is not longer than `LONGEST`, cut between words where it has some.

    >>> shorten("more heads each way, every n-th layer within 0.12")
    'more heads each way,…'
    """
    kept = name[: LONGEST - 1]
    return name if len(name) <= LONGEST else f"{kept.rpartition(' ')[0] or kept}…"


def _name_layers(
    chart: FrontChart, marks: Sequence[Mapping[str, Any]], width: float
) -> list[dict[str, Any]]:
    """The names of points side by side above the axes, each with a line down to its mark.

    There no name can lie on a mark or on another name.
    """
    low, high = _sparsity_axis(chart)
    colours = {group["name"]: group["colour"] for group in chart["groups"]}
    asked = [(mark["saved"] - low) / (high - low) for mark in marks]
    least = 1.35 * SMALL / POINTS / (width - 0.75)  # of the axes' width, about
    lefts = _separate_labels(asked, least)
    names = [
        {
            "saved": mark["saved"],
            "score": mark["score"],
            "label": mark["label"],
            "ink": GREY if mark["nothing"] else colours.get(mark["group"], INK),
            "at": low + left * (high - low),
        }
        for mark, left in zip(marks, lefts, strict=True)
    ]
    x, y = {"field": "saved", "type": "quantitative"}, {"field": "score", "type": "quantitative"}
    at, line = {"field": "at", "type": "quantitative"}, {"color": "#C8C8C8", "strokeWidth": 0.5}
    text = {"type": "text", "angle": 270, "align": "left", "baseline": "middle"}
    ink = {"field": "ink", "type": "nominal", "scale": None}
    encodings: list[tuple[dict[str, Any], dict[str, Any]]] = [
        ({"type": "rule", **line}, {"x": x, "y": y, "y2": {"value": 0}}),
        (
            {"type": "rule", **line},
            {"x": x, "x2": {"field": "at"}, "y": {"value": 0}, "y2": {"value": -6}},
        ),
        (text, {"x": at, "y": {"value": -8}, "text": {"field": "label"}, "color": ink}),
    ]
    return [
        {"data": {"values": names}, "mark": mark, "encoding": encoding}
        for mark, encoding in encodings
    ]


def _separate_labels(ideal: Sequence[float], gap: float) -> list[float]:
    """Places in [0, 1], in order, at least `gap` apart and near the wanted ones.

    >>> _separate_labels([0.5, 0.5, 0.9], 0.2)
    [0.4, 0.6, 0.9]
    """
    gap = min(gap, 1 / max(1, len(ideal) - 1))
    steps = gap * np.arange(len(ideal))
    free = np.asarray(ideal) - steps  # of which places at least `gap` apart never fall
    right, left = np.maximum.accumulate(free), np.minimum.accumulate(free[::-1])[::-1]
    xs = np.clip((left + right) / 2, 0, 1 - steps[-1]) + steps
    return [round(float(x), 6) for x in xs]
