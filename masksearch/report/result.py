"""The page as plain data: `result.json`, from which the page is rendered.

docs/schemas/result.schema.json describes it. Numbers have every digit; texts are those of the
page.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from masksearch.analysis.pareto import (
    has_rival,
    nothing_learned,
    pareto,
    search_cautions,
    sparsity_of,
)
from masksearch.analysis.recommendation import UNRIVALLED
from masksearch.analysis.search_curves import compare_searches, curves_of, describe_searches
from masksearch.analysis.verdict import count, verdict_text
from masksearch.contracts import Objective, Record, Shape
from masksearch.errors import without_controls
from masksearch.masks.core import Mask
from masksearch.masks.leaves import Full
from masksearch.masks.measure import unread_note
from masksearch.masks.text import short_text
from masksearch.models.encoders import READ_OUT
from masksearch.report.curves import kept_shares
from masksearch.report.dam import health_data, sentence
from masksearch.report.fronts import (
    Point,
    axis_title,
    compared_points,
    leading,
    trial_points,
)
from masksearch.report.layout import Cell, TextTable
from masksearch.report.pictures import mask_png, masks_to_draw
from masksearch.report.section import Section
from masksearch.report.tables import (
    budgets_table,
    comparison_table,
    findings_table,
    front_table,
    importance_table,
    runs_table,
    searches_table,
    tasks_table,
)
from masksearch.study.records import machine_name, package_versions
from masksearch.study.status import in_words

FORMAT, VERSION = "masksearch result", 1
Drawn = Mapping[str, tuple[Mask | None, str]]  # title -> mask, and what is said of it
FAILURES = 20  # failed trials that are told in full at most


def result_of(
    sections: Sequence[Section],
    *,
    title: str,
    about: Sequence[str] = (),
    verdicts: Sequence[str] = (),
    unread: Sequence[str] = (),
    command: str = "",
) -> dict[str, Any]:
    """All that a page says.

    Args:
        sections: One for each protocol.
        title: Headline.
        about: What it is about, a paragraph each.
        verdicts: Lines for its head.
        unread: Lines on folders that could not be read.
        command: Writes the page again.

    Returns:
        Mappings and sequences of numbers, texts and tables; `plain_data` makes JSON of them.
    """
    everything = [record for section in sections for record in section.records]
    failed = [record for record in everything if record.status == "failed"]
    compared = any(section.comparisons for section in sections)
    return {
        "format": FORMAT,
        "version": VERSION,
        "title": title,
        "about": list(about),
        "verdicts": list(verdicts),
        "unread": list(unread),
        "sections": [_section_data(section, compared) for section in sections],
        "trials": len(everything),
        "failed": len(failed),
        "failures": [describe_failure(record) for record in failed[:FAILURES]],
        "recipes": [vars(recipe) for section in sections for recipe in section.recipes],
        "command": command,
        "versions": [*package_versions().items(), ("machine", machine_name())],
    }


def _section_data(section: Section, compared: bool) -> dict[str, Any]:
    """A protocol's part of the page; `compared`: whether the page holds a comparison."""
    records, proxy = section.searched, section.proxy
    trials = trial_points(section)
    compared_points_of = [compared_points(each) for each in section.comparisons.values()]
    first = next(filter(None, (*compared_points_of, trials)), [])
    kept, notes = kept_shares(section, trials or first)
    shown = {
        name: (mask, f"{100 * sparsity:.1f}% sparse")
        for name, (mask, sparsity) in masks_to_draw(section).items()
    }
    comparisons = [
        {
            "name": name,
            "key": f"compared_{index}" if index else "compared",
            "judged_again": comparison.fronts is not None,
            "seedless": comparison.seedless,
            "margin": comparison.margin,
            "margins": any(f.margin is not None for f in comparison.findings_to_show()),
            "points": list(map(_point_data, compared_points_of[index])),
            "table": comparison_table(comparison),
            "tasks": tasks_table(comparison),
            "findings": findings_table(comparison),
        }
        for index, (name, comparison) in enumerate(section.comparisons.items())
    ]
    return {
        "key": section.key,
        "title": section.title,
        "verdicts": headline(section, compared),
        "facts": _known_facts(section),
        "objectives": [
            {"name": o.name, "goal": o.goal, "worst": o.worst} for o in section.objectives
        ],
        "shape": None if section.shape is None else section.shape.to_dict(),
        "runs": runs_table(section.studies, section.objectives),
        "finished": any(record.scored for record in section.records),
        "comparisons": comparisons,
        "points": list(map(_point_data, trials)),
        "front": front_table(section.studies, section.objectives),
        "importance": importance_table(section.studies, section.objectives),
        "cautions": cautions(records, section.objectives),
        "searches": searches_table(section.searches, section.objectives),
        "allocation": {
            "masks": [{"name": name, "kept": each.tolist()} for name, each in kept.items()],
            "notes": notes,
        },
        "lead": _pictures(_lead(section, first), section.shape),
        "gallery": _pictures(shown, section.shape),
        "dam": health_data(section.dam),
        "proxy": None
        if proxy is None
        else {
            "verdict": proxy.verdict().splitlines(),
            "table": budgets_table(proxy),
            "card": proxy.to_dict(),
        },
        "figures": {},
    }


def _point_data(point: Point) -> dict[str, Any]:
    """A point of a front's figure, as plain data."""
    record = point.record
    about = {"sparsity": 100 * sparsity_of(record), "fingerprint": record.fingerprint}
    score = {"score": point.score.value, "low": point.score.low, "high": point.score.high}
    told = {"expression": str(record.mask or ""), "seeds": point.score.n, **score, **about}
    return {name: v for name, v in vars(point).items() if name not in ("record", "alone")} | told


def _lead(section: Section, points: Sequence[Point]) -> Drawn:
    """The masks that a page begins with, by what they stand for, and their scores."""
    score = section.objectives[0]
    title = axis_title(score, [point.record for point in points]).rpartition(",")[0]
    return {
        words: (
            point.record.mask,
            f"{title} {point.score.text()}, {100 * sparsity_of(point.record):.1f}% sparse",
        )
        for words, point in leading(points, score.goal).items()
    }


def _pictures(masks: Drawn, shape: Shape | None) -> list[dict[str, str]]:
    """The masks that can be drawn, with what is said of them; none where that is full attention
    alone."""
    found = [
        {"title": title, "text": text, "mask": short_text(mask), "png": png}
        for title, (mask, text) in masks.items()
        if shape is not None and mask is not None and (png := mask_png(mask, shape))
    ]
    return found if any(each["mask"] != str(Full()) for each in found) else []


# -- sentences -----------------------------------------------------------------------------------
def headline(section: Section, compared: bool) -> list[str]:
    """The lines at the head of a section, never empty; see `_section_data`."""
    lines: list[str] = []
    for name, comparison in section.comparisons.items():
        if len(section.comparisons) > 1:
            lines.append(f"Comparison {name}")
        shown = comparison.findings_to_show()
        text = verdict_text(comparison, comparison.fronts, shown, "dense")
        lines += text.splitlines()
    lines += describe_searches(compare_searches(curves_of(section.searches, section.objectives)))
    if names := ", ".join(section.unfinished):
        lines.append(f"Unfinished, so left out of the hypervolume at equal compute: {names}.")
    records = section.searched
    if not records:
        return lines or ["Nothing was run."]
    scored = [record for record in records if record.scored]
    if not scored:
        return [*lines, "No trial has finished, so nothing can be said."]
    front = pareto(records, section.objectives)
    if not front and (nothing := nothing_learned(records)):
        lines.append(sentence(nothing))
    elif not section.comparisons:
        lines.append(f"{len(scored)} finished trials, {len(front)} of them on the front.")
        alone = [each for each in front if not has_rival(each, records, section.objectives)]
        if alone := [each for each in alone if each.role == "trial"]:
            lines[-1] += f" Of {len(alone)} of these {UNRIVALLED}."
        if not compared:
            lines[-1] += (
                " No comparison over seeds is included, so this page does not show that a "
                "searched mask is better than a hand-designed one."
            )
    return lines


def _known_facts(section: Section) -> list[tuple[str, str]]:
    """The given facts, then those that the records tell."""
    rows = [(name, str(value)) for name, value in section.facts.items()]
    shape, records = section.shape, section.records
    if shape is not None:
        sizes = [(shape.length, "position"), (shape.layers, "layer"), (shape.heads, "head")]
        rows.append(("shape", ", ".join(count(*size) for size in sizes)))
        rows += [("sparsity", note)] if (note := unread_note(shape)) else []
    objectives = (f"{o.name} ({o.goal}, counted from {o.worst:g})" for o in section.objectives)
    rows.append(("objectives", "; ".join(objectives)))
    protocols = sorted({record.protocol for record in records if record.protocol})
    if protocols and "protocol" not in section.facts:
        rows.append(("protocol", ", ".join(protocols)))
    read_outs = {str(each.settings.get("read_out", READ_OUT)) for each in section.recipes}
    rows += [("read-out", each) for each in sorted(read_outs - {READ_OUT})]
    seeds = sorted({record.seed for record in records})
    if seeds and "seeds" not in section.facts:
        rows.append(("evaluation seeds", ", ".join(map(str, seeds))))
    folders = [str(each.run) for each in section.comparisons.values() if each.run is not None]
    if folders:
        rows.append(("runs of the comparison", ", ".join(folders)))
    rows.append(("compute in all", in_words(sum(record.seconds for record in records))))
    return rows


def cautions(records: Sequence[Record], objectives: Sequence[Objective]) -> list[str]:
    """Cautions for the reader of a front."""
    texts = [sentence(text) for text in search_cautions(records)]
    nothing = nothing_learned(records)
    if nothing and not any(text.startswith(sentence(nothing)[:-1]) for text in texts):
        texts.insert(0, sentence(nothing))
    if not pareto(records, objectives):
        return texts
    lines = [
        "The front holds full-fidelity results only; early-stopped and failed trials are left "
        "out. Its points were selected on the runs that are shown, which flatters them: judge "
        "a chosen mask again with fresh seeds before believing its score."
    ]
    if len({record.seed for record in records if record.scored}) == 1:
        lines.append("Every score on the front is from one seed and therefore has no interval.")
    return lines + texts


def describe_failure(record: Record) -> dict[str, str]:
    """A failed trial's title, its reason in a line, and the full text."""
    name = record.name or record.origin
    return {
        "title": f"{record.number} ({name}, seed {record.seed})" if name else f"{record.number}",
        "reason": record.reason[:200] or "no reason was recorded",
        "error": record.error or "no reason was recorded",
    }


# -- plain data ----------------------------------------------------------------------------------
def _table_data(table: TextTable) -> dict[str, Any]:
    """A table as plain data; what is at its default in a cell is left out."""

    def cell_data(cell: Cell) -> dict[str, Any]:
        facts = {name: value for name, value in asdict(cell).items() if value not in ("", False)}
        return {"text": cell.text, **facts}

    return {
        "head": [cell_data(cell) for cell in table.head],
        "rows": [[cell_data(cell) for cell in row] for row in table.rows],
    }


def plain_data(value: Any) -> Any:
    """The same with lists for tuples, None for NaN and infinities, and Python's own numbers."""
    if isinstance(value, TextTable):
        return _table_data(value)
    if isinstance(value, Mapping):
        return {without_controls(str(name)): plain_data(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain_data(each) for each in value]
    if isinstance(value, str):
        return without_controls(value)
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, int | float) else str(value)
