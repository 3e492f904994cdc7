"""One HTML page about searches and comparisons, with its figures and tables beside it."""

from __future__ import annotations

import base64
import contextlib
import functools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import vl_convert
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from masksearch.analysis.pareto import pareto, sparsity_of
from masksearch.contracts import Record
from masksearch.errors import MaskSearchError
from masksearch.files import write_text_in_one_move
from masksearch.masks.core import Mask
from masksearch.masks.lower import under_causality
from masksearch.masks.text import short_text
from masksearch.report.chart_rows import Chart
from masksearch.report.charts import chart_spec, write_chart
from masksearch.report.dam import Picture, dam_pictures
from masksearch.report.layout import TextTable, write_tables
from masksearch.report.pictures import plot_masks, plot_proxy
from masksearch.report.result import plain_data, result_of
from masksearch.report.section import Section
from masksearch.report.style import save
from masksearch.report.tables import front_table

RESULT, FIGURES = "result.json", "figures"  # beside the page
PICTURES = 16  # masks of the printed figure at most
ZOOM = 1.5 * 96  # pixels of the page for an inch of a figure


def write_report(path: Path | str, sections: Sequence[Section], **head: Any) -> Path:
    """Writes the page, and beside it `result.json`, `figures/` and `tables/`; beside one that is
    not called `report.html` these are named after it, as `both_figures/` beside `both.html`.

    The page is rendered from `result.json` alone; figures are PNG, PDF and SVG, tables CSV and
    LaTeX. It needs no network and no other file. Parts that are missing (no comparison, no DAM,
    no finished trial) are left out or said to be missing.

    Args:
        path: Of the page; folders are made.
        sections: One for each protocol; scores of two protocols never share a figure.
        **head: What else stands on top, as in `result_of`.

    Returns:
        The path of the page.

    Raises:
        KeyError: If a finished record lacks an objective.
        ValueError: If a study mixes protocols, or an objective's `worst` is not finite.
    """
    path, sections = Path(path), _with_keys_of_their_own(sections)
    before = "" if path.stem == "report" else f"{path.stem}_"  # several pages share a folder
    figures, tables = (path.with_name(before + name) for name in (FIGURES, "tables"))
    for each in (file for folder in (figures, tables) for file in (folder, *folder.glob("*"))):
        if each.is_symlink():
            raise ValueError(f"{each} is a link, which no page follows; delete it, or take --out")
    data = result_of(sections, **head)
    result: dict[str, Any] = plain_data(data)
    for chart in _charts_of(result):
        write_chart(chart, figures)
    for index, section in enumerate(sections):
        write_tables(tables, section.key, _paper_tables(data["sections"][index], section))
        result["sections"][index]["figures"] = draw(figures, section)
    write_text_in_one_move(
        path.with_name(before + RESULT), json.dumps(result, ensure_ascii=False, allow_nan=False)
    )
    write_text_in_one_move(path, render_page(result, figures))
    return path


def _with_keys_of_their_own(sections: Sequence[Section]) -> list[Section]:
    """The sections; where titles differ in what no key holds, such as signs, the later one has
    its number in the title."""
    made: dict[str, Section] = {}
    for number, section in enumerate(sections, 1):
        if section.key in made:
            section = replace(section, title=f"{section.title} ({number})")
        made[section.key] = section
    return [*made.values()]


def _paper_tables(data: Mapping[str, Any], section: Section) -> dict[str, TextTable]:
    """Name -> table, of those that lie beside the page for papers; `data` is the section's."""
    tables = {name: data[name] for name in ("front", "importance", "searches")}
    if len(section.studies) > 1:
        for name, study in section.studies.items():
            front = front_table({name: study}, section.objectives)
            key = f"front_{re.sub(r'[^0-9A-Za-z.-]+', '_', name)}"
            tables[f"{key}_{len(tables)}" if key in tables else key] = front
    for index, comparison in enumerate(section.comparisons.values()):
        end, shown = f"_{index}" if index else "", data["comparisons"][index]
        runs = comparison.frame(per="seed").to_dict("records")
        tables[f"compared{end}"] = shown["table"]
        tables[f"compared_seeds{end}"] = TextTable(data=runs)
        tables[f"findings{end}"] = shown["findings"]
    return tables


def render_page(result: Mapping[str, Any], figures: Path) -> str:
    """The page that tells a result: HTML that needs no network and no other file.

    Args:
        result: What `result.json` holds.
        figures: The folder of the figures that it names.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined
    )
    environment.filters |= {
        "png": lambda name: png_text(figures / name),
        # JSON that may stand in a script element
        "data": lambda value: json.dumps(value, ensure_ascii=False).replace("<", "\\u003c"),
        "json": json.dumps,
        "short": short_text,
    }
    folder = Path(__file__).parent
    charts = {chart["id"]: chart_spec(chart) for chart in _charts_of(result)}
    return environment.get_template("page.html.j2").render(
        **result,
        result=result,
        before=figures.name.removesuffix(FIGURES),
        specs=charts,
        names_of=names_of,
        vega=_vega_script() if charts else "",
        style=(folder / "page.css").read_text(encoding="utf-8"),
        script=(folder / "page.js").read_text(encoding="utf-8"),
    )


@functools.cache
def _vega_script() -> str:
    """Vega, as a page needs it: a megabyte, bundled in two seconds."""
    return vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")


def _charts_of(result: Mapping[str, Any]) -> Iterator[Chart]:
    """Every chart of a result."""
    for section in result["sections"]:
        compared = section["comparisons"]
        charts = [section["chart"], *section["volumes"]]
        charts += [chart for each in compared for chart in (each["chart"], each["differences"])]
        yield from filter(None, charts)


def names_of(section: Mapping[str, Any]) -> set[str]:
    """Names of the masks that a section compares."""
    charts = [each["chart"] for each in section["comparisons"] if each["chart"]]
    return {point["name"] for chart in charts for point in chart["points"]}


def png_text(path: Path) -> str:
    """A PNG file in base64."""
    return base64.b64encode(path.read_bytes()).decode("ascii")


def draw(folder: Path, section: Section) -> dict[str, dict[str, Any]]:
    """Saves the masks' figure for print; saves and returns what the page shows as it is."""
    named, shape = dict(list(_masks_to_draw(section).items())[:PICTURES]), section.shape
    if named and shape is not None:
        with contextlib.suppress(MaskSearchError):  # tables of another length, say
            drawn = {name: under_causality(mask, shape) for name, (mask, _) in named.items()}
            shares = {name: sparsity for name, (_, sparsity) in named.items()}
            figure = plot_masks(drawn, shape.length, shape.layers, shape.heads, shares)
            save(figure, folder, f"{section.key}masks")
    shown = list(dam_pictures(section.dam, section.searched))
    if (proxy := section.proxy) is not None:
        title = f"Rank agreement of {proxy.proxy} with {proxy.target} over the budget of the proxy"
        legend = (
            "Left: Kendall's tau-b of the masks' ranking at each budget with the reference, and "
            "the noise ceiling (two seeds of the reference). Right: every mask over the budget; "
            "where lines cross, a shorter run ranks otherwise."
        )
        shown.append(Picture("proxy", plot_proxy(proxy), title, legend))
    return {
        made.key: {
            "file": save(made.figure, folder, f"{section.key}{made.key}")[0].name,
            "alt": made.alt,
            "caption": made.caption,
            "width": round(made.figure.get_figwidth() * ZOOM),
            "card": made.card,
        }
        for made in shown
    }


def _masks_to_draw(section: Section) -> dict[str, tuple[Mask, float]]:
    """Masks to draw with their sparsities, each set of bits once: those compared, those on the
    fronts, then one of the controls whose keys are drawn."""
    named: dict[str, tuple[Mask, float]] = {}
    seen: set[str] = set()
    candidates: list[tuple[str, Record]] = []
    scrambled: list[tuple[str, Record]] = []
    for comparison in section.comparisons.values():
        for record in comparison.records:
            entry = comparison.entries[record.name]
            last = entry.at_random and entry.kind == "control"
            (scrambled if last else candidates).append((record.name, record))
    owners = {id(record): name for name, study in section.studies.items() for record in study}
    for record in pareto(section.searched, section.objectives):
        hand = record.role == "baseline"
        name = record.name if hand else f"{owners[id(record)]} {record.number}"
        candidates.append((name, record))
    for name, record in [*candidates, *scrambled[:1]]:
        key = record.fingerprint or name
        if record.mask is not None and name not in named and key not in seen:
            seen.add(key)
            named[name] = (record.mask, sparsity_of(record))
    return named
