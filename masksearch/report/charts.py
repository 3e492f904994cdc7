"""The interactive charts of a page, as Vega-Lite: their data is that of `result.json`.

A specification names its data (`points`, `lines`, ..); the page's script puts the result's in.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt

HEIGHT = 360  # pixels
ROW = 26  # of a paired difference
SHAPES = {  # matplotlib's markers, as Vega names them; others are circles
    **{"s": "square", "D": "diamond", "^": "triangle-up", "v": "triangle-down", "P": "cross"},
    **{"X": "cross", "<": "triangle-left", ">": "triangle-right", "h": "square"},
}


def chart_spec(chart: Mapping[str, Any]) -> dict[str, Any]:
    """The Vega-Lite specification of one of the result's charts, without its data."""
    kinds = {"front": front_spec, "hypervolume": volume_spec, "differences": difference_spec}
    return kinds[chart["kind"]](chart)


def front_spec(chart: Mapping[str, Any]) -> dict[str, Any]:
    """Sparsity against score: marks, the front of each group with its band, and level lines.

    Its parameters are set by the page: `cost` and `budget` dim what is dearer, `here` names the
    point in focus.
    """
    groups = chart["groups"]
    names = [group["name"] for group in groups]
    colour = alt.Color(
        "group:N",
        scale=alt.Scale(domain=names, range=[group["colour"] for group in groups]),
        legend=None,
    )
    shape = alt.Shape(
        "group:N",
        scale=alt.Scale(
            domain=names, range=[SHAPES.get(group["shape"], "circle") for group in groups]
        ),
        legend=None,
    )
    x = alt.X(
        "saved:Q",
        title=chart["axis"],
        scale=alt.Scale(zero=False, padding=14),
    )
    title = f"{chart['score']['title']}, {chart['score']['goal']} is better"
    y = alt.Y("score:Q", title=title, scale=alt.Scale(zero=False, padding=10))
    affordable = "datum.costs[cost] == null || datum.costs[cost] <= budget"
    lines = alt.Chart(alt.NamedData("lines")).encode(x, y, colour)
    band = (
        alt.Chart(alt.NamedData("lines"))
        .mark_area(interpolate="step-before", opacity=0.14)
        .encode(x, alt.Y("low:Q", title=title), alt.Y2("high:Q"), colour)
        .transform_filter("isValid(datum.low)")
    )
    level = alt.Chart(alt.NamedData("levels"))
    points = alt.Chart(alt.NamedData("points"))
    dimmed = alt.when(affordable).then(alt.value(0.85)).otherwise(alt.value(0.12))
    layers = [
        level.mark_rect(opacity=0.08).encode(alt.Y("low:Q", title=title), alt.Y2("high:Q")),
        level.mark_rule(strokeDash=[2, 3]).encode(y),
        level.mark_text(align="right", dy=-6, fontSize=11).encode(
            y, text="label:N", x=alt.value("width")
        ),
        band,
        lines.mark_line(interpolate="step-before", strokeWidth=1.6).encode(
            strokeDash=alt.when("datum.arm == 'hand-designed'")
            .then(alt.value([6, 4]))
            .otherwise(alt.value([1, 0])),
            detail="group:N",
        ),
        points.mark_rule(strokeWidth=1.2)
        .encode(x, alt.Y("low:Q", title=title), alt.Y2("high:Q"), colour)
        .transform_filter("isValid(datum.low) && datum.saved > 0"),
        points.mark_point(filled=True, size=60, strokeWidth=2, tooltip=alt.TooltipContent("data"))
        .encode(
            *(x, y, colour, shape),
            opacity=dimmed,
            size=alt.when("datum.id == here").then(alt.value(190)).otherwise(alt.value(60)),
        )
        .transform_filter("!datum.nothing && datum.saved > 0"),
        points.mark_point(shape="cross", angle=45, size=45, tooltip=alt.TooltipContent("data"))
        .encode(x, y, opacity=alt.value(0.5), color=alt.value("#777777"))
        .transform_filter("datum.nothing && datum.saved > 0"),
    ]
    return finish(
        alt.layer(*layers).add_params(
            alt.param("cost", value="density"),
            alt.param("budget", value=1e9),
            alt.param("here", value=""),
        )
    )


def volume_spec(chart: Mapping[str, Any]) -> dict[str, Any]:
    """Hypervolume over compute: a line for each strategy, its band where it has several seeds."""
    groups = chart["groups"]
    base = alt.Chart(alt.NamedData("lines")).encode(
        alt.X("compute:Q", title=chart["compute"], scale=alt.Scale(nice=False)),
        alt.Color(
            "group:N",
            scale=alt.Scale(
                domain=[group["name"] for group in groups],
                range=[group["colour"] for group in groups],
            ),
            legend=None,
        ),
    )
    title = "hypervolume dominated"
    return finish(
        alt.layer(
            base.mark_area(interpolate="step-after", opacity=0.15)
            .encode(alt.Y("low:Q", title=title), alt.Y2("high:Q"))
            .transform_filter("isValid(datum.low)"),
            base.mark_line(interpolate="step-after", strokeWidth=1.8).encode(
                alt.Y("mean:Q", title=title)
            ),
            base.mark_point(filled=True, opacity=0, size=80).encode(
                alt.Y("mean:Q", title=title),
                tooltip=["group:N", "compute:Q", alt.Tooltip("mean:Q", format=".5g")],
            ),
        ),
        height=260,
    )


def difference_spec(chart: Mapping[str, Any]) -> dict[str, Any]:
    """Paired differences with their intervals, one a row, beside the line of no difference."""
    rows: Sequence[Mapping[str, Any]] = chart["lines"]
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
                domain=["better", "worse", "not distinguishable", "too few seeds"],
                range=["#009E73", "#D55E00", "#777777", "#777777"],
            ),
            legend=None,
        ),
    )
    return finish(
        alt.layer(
            alt.Chart(alt.InlineData([{"zero": 0}]))
            .mark_rule(strokeDash=[4, 3])
            .encode(alt.X("zero:Q", title=chart["title"])),
            base.mark_rule(strokeWidth=2)
            .encode(alt.X("low:Q", title=chart["title"]), alt.X2("high:Q"))
            .transform_filter("isValid(datum.low)"),
            base.mark_point(filled=True, size=70).encode(
                alt.X("mean:Q", title=chart["title"]),
                tooltip=[
                    *("mask:N", "against:N", "outcome:N"),
                    *(alt.Tooltip(f"{name}:Q", format="+.4f") for name in ("mean", "low", "high")),
                ],
            ),
        ),
        height=ROW * max(2, len(rows)),
    )


def finish(chart: alt.LayerChart | alt.FacetChart, height: int = HEIGHT) -> dict[str, Any]:
    """As wide as its place on the page, in the page's font."""
    assert isinstance(chart, alt.LayerChart)  # layers of charts without facets
    found: dict[str, Any] = (
        chart.properties(width="container", height=height)
        .configure(font="system-ui, sans-serif", background="transparent")
        .configure_view(stroke=None)
        .to_dict()
    )
    return found
