"""One HTML page about searches and comparisons, with its figures and tables beside it."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from matplotlib.figure import Figure

from masksearch.errors import MaskSearchError
from masksearch.files import write_text_in_one_move
from masksearch.masks.lower import under_causality
from masksearch.masks.text import short_text
from masksearch.report.curves import draw_differences, draw_kept, draw_volumes
from masksearch.report.dam import Picture, dam_pictures
from masksearch.report.fronts import compared_points, draw_front, trial_points
from masksearch.report.layout import TextTable, write_tables
from masksearch.report.pictures import masks_to_draw, plot_masks, plot_proxy
from masksearch.report.result import plain_data, result_of
from masksearch.report.section import Section
from masksearch.report.style import inline, save
from masksearch.report.tables import front_table

RESULT, FIGURES = "result.json", "figures"  # beside the page


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
    for index, section in enumerate(sections):
        write_tables(tables, section.key, _paper_tables(data["sections"][index], section))
        result["sections"][index]["figures"] = draw(figures, section, result["sections"][index])
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
        "svg": lambda figure: inline(
            (figures / figure["file"]).read_text("utf-8"), figure["alt"], figure["width"]
        ),
        "starting": lambda of, begin: [each for key, each in of.items() if key.startswith(begin)],
        "json": json.dumps,
        "short": short_text,
    }
    folder = Path(__file__).parent
    return environment.get_template("page.html.j2").render(
        **result,
        before=figures.name.removesuffix(FIGURES),
        style=(folder / "page.css").read_text(encoding="utf-8"),
        script=(folder / "page.js").read_text(encoding="utf-8"),
    )


def draw(folder: Path, section: Section, data: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Saves every figure of a section, and returns what the page says of those that it shows;
    `data` is the section's."""
    named, shape = masks_to_draw(section), section.shape
    if named and shape is not None:
        with contextlib.suppress(MaskSearchError):  # tables of another length, say
            drawn = {name: under_causality(mask, shape) for name, (mask, _) in named.items()}
            shares = {name: sparsity for name, (_, sparsity) in named.items()}
            figure = plot_masks(drawn, shape.length, shape.layers, shape.heads, shares)
            save(figure, folder, f"{section.key}masks")
    pictures = [*_charts(section, data), *dam_pictures(section.dam, section.searched)]
    return {
        made.key: {
            "file": save(made.figure, folder, f"{section.key}{made.key}")[2].name,
            "alt": made.alt,
            "caption": made.caption,
            "width": round(made.figure.get_figwidth(), 2),
            "card": made.card,
        }
        for made in pictures
    }


def _charts(section: Section, data: Mapping[str, Any]) -> Iterator[Picture]:
    """The figures of a section but for DAM's, as far as there is something to draw."""
    figures: dict[str, tuple[Figure | None, str]] = {
        "front": (
            draw_front(trial_points(section), section.objectives, section.truth),
            "Score of every trial over what its mask saves",
        )
    }
    for each, comparison in zip(data["comparisons"], section.comparisons.values(), strict=True):
        key, title = each["key"], comparison.title
        alt = f"{title} of every mask, with its interval, over what it saves"
        points = compared_points(comparison)
        figures[key] = draw_front(points, comparison.objectives, section.truth), alt
        key = key.replace("compared", "differences")
        figures[key] = draw_differences(comparison), f"Paired differences in {title}"
    for name, figure in draw_volumes(section):
        about = f"Hypervolume of {name} over trials and over seconds"
        figures[f"volume_{name.replace('/', '_')}"] = figure, about
    if kept := {each["name"]: np.array(each["kept"]) for each in data["allocation"]["masks"]}:
        figures["kept"] = draw_kept(kept), "Kept share of each layer and head"
    for key, (drawn, alt) in figures.items():
        if drawn is not None:
            yield Picture(key, drawn, alt, "")
    if (proxy := section.proxy) is not None:
        title = f"Rank agreement of {proxy.proxy} with {proxy.target} over the budget of the proxy"
        caption = (
            "Left: Kendall's tau-b of the masks' ranking at each budget with the reference, and "
            "the noise ceiling (two seeds of the reference). Right: every mask over the budget; "
            "where lines cross, a shorter run ranks otherwise."
        )
        yield Picture("proxy", plot_proxy(proxy), title, caption)
