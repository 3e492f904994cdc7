"""One HTML page about searches and comparisons, with its figures and tables beside it."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from matplotlib.figure import Figure

from masksearch.analysis.cautions import nothing_learned, search_cautions
from masksearch.analysis.compare import ComparedMasks
from masksearch.analysis.pareto import pareto
from masksearch.analysis.proxy_card import ProxyAgreement
from masksearch.analysis.search_curves import (
    Searches,
    compare_searches,
    curves_of,
    describe_searches,
    without_rte,
)
from masksearch.contracts import Objective, Record, Shape
from masksearch.errors import MaskSearchError
from masksearch.masks.core import Mask
from masksearch.masks.measure import unread_note
from masksearch.report.dam import CARDS, DamRuns, Picture, RunSection, dam_pictures, section_of
from masksearch.report.figures.front import plot_compared, plot_frontier, plot_hypervolume
from masksearch.report.figures.judged_front import plot_fronts
from masksearch.report.figures.masks import plot_masks
from masksearch.report.figures.proxy import plot_proxy
from masksearch.report.figures.style import save
from masksearch.report.paper import write_tables
from masksearch.report.reproduce import Recipe
from masksearch.report.tables import (
    TextTable,
    budgets_table,
    comparison_table,
    count,
    findings_table,
    format_seconds,
    front_table,
    runs_table,
    searches_table,
    tasks_table,
)
from masksearch.study.provenance import machine_name, package_versions

PICTURES = 16  # masks that are drawn at most
FAILURES = 20  # failed trials that are printed in full at most
ZOOM = 1.5 * 96  # pixels of the page for an inch of a figure


@dataclass(frozen=True)
class Section:
    """What a page says of one protocol: its searches, its comparisons, and their figures.

    Args:
        studies: Strategy name -> its records, baselines included.
        objectives: The first one is the score.
        comparisons: Name -> masks judged over several seeds; their verdicts head the section.
        title: What sets it apart from the page's other sections; empty where it is the only one.
        facts: What a reader must know (protocol, data, steps, machine).
        shape: What the masks were lowered to; without it no mask is drawn.
        dam: Health cards of the DAM runs among the records, and what they say together.
        proxy: How far to trust the short runs among the records.
        recipes: How each study was made.
        searches: Strategy -> search seed -> records, where strategies ran with several seeds.
    """

    studies: Mapping[str, list[Record]]
    objectives: Sequence[Objective]
    comparisons: Mapping[str, ComparedMasks] = field(default_factory=dict)
    title: str = ""
    facts: Mapping[str, str] = field(default_factory=dict)
    shape: Shape | None = None
    dam: DamRuns = field(default_factory=DamRuns)
    proxy: ProxyAgreement | None = None
    recipes: Sequence[Recipe] = ()
    searches: Searches = field(default_factory=dict)

    @property
    def searched(self) -> list[Record]:
        """The records of all searches."""
        return [record for study in self.studies.values() for record in study]

    @property
    def records(self) -> list[Record]:
        """The records of all searches and comparisons."""
        compared = [record for each in self.comparisons.values() for record in each.records]
        return self.searched + compared

    @property
    def key(self) -> str:
        """Begins the names of its figures, tables and headings."""
        words = re.sub(r"[^a-z0-9.]+", "-", self.title.lower()).strip("-")
        return f"{words}_" if words else ""


def write_report(
    path: Path | str,
    *,
    title: str,
    sections: Sequence[Section],
    verdicts: Sequence[str] = (),
    unread: Sequence[str] = (),
    command: str = "",
) -> Path:
    """Writes the page, its figures into `figures/` and its tables into `tables/` beside it.

    Figures are PNG, PDF and SVG, tables CSV and LaTeX. The page needs no network, no script and
    no other file. Parts that are missing (no comparison, no DAM, no finished trial) are left out
    or said to be missing.

    Args:
        path: Of the page; folders are made.
        title: Headline.
        sections: One for each protocol; scores of two protocols never share a figure.
        verdicts: Lines for the head of the page.
        unread: Lines on folders that could not be read.
        command: Writes this page again.

    Returns:
        The path of the page.

    Raises:
        KeyError: If a finished record lacks an objective.
        ValueError: If a study mixes protocols, or an objective's `worst` is not finite.
    """
    path = Path(path)
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined
    )
    parts = []
    for section in sections:
        parts.append(part_of_page(section, path.parent / "figures"))
        write_tables(
            path.parent / "tables",
            section.key,
            section.studies,
            section.objectives,
            section.comparisons,
            section.searches,
        )
    everything = [record for section in sections for record in section.records]
    failed = [record for record in everything if record.status == "failed"]
    page = environment.get_template("report.html.j2").render(
        title=title,
        verdicts=list(verdicts),
        unread=unread,
        sections=parts,
        failures=[describe_failure(record) for record in failed[:FAILURES]],
        failed=len(failed),
        total=len(everything),
        recipes=[recipe for section in sections for recipe in section.recipes],
        command=command,
        versions=[*package_versions().items(), ("machine", machine_name())],
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")
    return path


def part_of_page(section: Section, folder: Path) -> dict[str, Any]:
    """What the template shows of a section; its figures are written into the folder."""
    dam, records = section.dam, section.searched
    drawn = list(dam_pictures(dam, records))
    figures, masks_note = draw(folder, section, [picture for _, picture in drawn])
    proxy = section.proxy
    return {
        "key": section.key,
        "title": section.title,
        "verdicts": headline(section),
        "facts": known_facts(section),
        "runs": runs_table(section.studies, section.objectives),
        "front": front_table(section.studies, section.objectives),
        "searches": searches_table(section.searches, section.objectives),
        "nothing": not any(record.scored for record in section.records),
        "cautions": cautions(records, section.objectives),
        "comparisons": [
            {
                "name": name,
                "figure": f"compared_{place}" if place else "compared",
                "fronts": f"fronts_{place}" if place else "fronts",
                "table": comparison_table(comparison),
                "tasks": tasks_table(comparison),
                "findings": findings_table(comparison),
            }
            for place, (name, comparison) in enumerate(section.comparisons.items())
        ],
        "masks_note": masks_note,
        "dam": [
            section_of(card, [picture for owner, picture in drawn if owner == index])
            for index, card in enumerate(dam.cards[:CARDS])
        ],
        "dam_together": together(dam, [picture for owner, picture in drawn if owner is None]),
        "dam_missing": dam.missing,
        "proxy": proxy.verdict().splitlines() if proxy is not None else [],
        "proxy_rows": budgets_table(proxy) if proxy is not None else TextTable(),
        "figures": figures,
    }


def headline(section: Section) -> list[str]:
    """The lines at the head of a section; never empty."""
    lines: list[str] = []
    for name, comparison in section.comparisons.items():
        if len(section.comparisons) > 1:
            lines.append(f"Comparison {name}")
        lines += comparison.verdict().splitlines()
    lines += describe_searches(compare_searches(curves_of(section.searches, section.objectives)))
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
        lines.append(
            f"{len(scored)} finished trials, {len(front)} of them on the front. No comparison "
            "over seeds is included, so this page does not show that a searched mask is better "
            "than a hand-designed one."
        )
    return lines


def known_facts(section: Section) -> list[tuple[str, str]]:
    """The given facts, then those that the records tell."""
    rows = [(name, str(value)) for name, value in section.facts.items()]
    shape, records = section.shape, section.records
    if shape is not None:
        sizes = [(shape.length, "position"), (shape.layers, "layer"), (shape.heads, "head")]
        rows.append(("shape", ", ".join(count(*size) for size in sizes)))
        rows += [("sparsity", note)] if (note := unread_note(shape)) else []
    rows.append(
        (
            "objectives",
            "; ".join(
                f"{o.name} ({o.goal}, counted from {o.worst:g})" for o in section.objectives
            ),
        )
    )
    protocols = sorted({record.protocol for record in records if record.protocol})
    if protocols and "protocol" not in section.facts:
        rows.append(("protocol", ", ".join(protocols)))
    seeds = sorted({record.seed for record in records})
    if seeds and "seeds" not in section.facts:
        rows.append(("evaluation seeds", ", ".join(map(str, seeds))))
    folders = [str(each.run) for each in section.comparisons.values() if each.run is not None]
    if folders:
        rows.append(("runs of the comparison", ", ".join(folders)))
    rows.append(("compute in all", format_seconds(sum(record.seconds for record in records))))
    return rows


def sentence(text: str) -> str:
    """With a capital and a full stop."""
    return f"{text[0].upper()}{text[1:]}."


def cautions(records: Sequence[Record], objectives: Sequence[Objective]) -> list[str]:
    """What the reader of a front must keep in mind."""
    said = [sentence(text) for text in search_cautions(records)]
    nothing = nothing_learned(records)
    if nothing and not any(text.startswith(sentence(nothing)[:-1]) for text in said):
        said.insert(0, sentence(nothing))
    if not pareto(records, objectives):
        return said
    lines = [
        "The front holds full-fidelity results only; early-stopped and failed trials are left "
        "out. Its points were selected on the runs that are shown, which flatters them: judge "
        "a chosen mask again with fresh seeds before believing its score."
    ]
    seeds = {record.seed for record in records if record.scored}
    if len(seeds) == 1:
        lines.append("Every score on the front is from one seed and therefore has no interval.")
    return lines + said


def draw(
    folder: Path, section: Section, dam: Sequence[Picture]
) -> tuple[dict[str, dict[str, str]], str]:
    """Makes and saves every figure; returns them for the page, and a note on the masks."""
    figures: dict[str, dict[str, str]] = {}

    def add(key: str, figure: Figure, alt: str, caption: str) -> None:
        png, *_ = save(figure, folder, f"{section.key}{key}")
        data = base64.b64encode(png.read_bytes()).decode("ascii")
        width = f"{figure.get_figwidth() * ZOOM:.0f}"
        figures[key] = {"data": data, "alt": alt, "caption": caption, "width": width}

    score, records, proxy = section.objectives[0].name, section.searched, section.proxy
    for place, comparison in enumerate(section.comparisons.values()):
        if comparison.promised:
            add(
                f"fronts_{place}" if place else "fronts",
                plot_fronts(comparison),
                "Sparsity against score: the searched, the hand-designed and the random front",
                "The search's front judged again, beside hand-designed and random masks of its "
                "densities. A line is a front of means; its band is the 95% interval of the mask "
                "that makes the step. Numbers are trials of the search.",
            )
        add(
            f"compared_{place}" if place else "compared",
            plot_compared(comparison),
            f"Sparsity against mean {score} of every compared mask, with their front",
            f"Every compared mask: its sparsity, and its mean {score} over seeds with the 95% "
            "interval. The line joins the masks that no other one beats in both; where intervals "
            "overlap, more seeds may change it.",
        )
    if any(record.scored for record in records):
        add(
            "front",
            plot_frontier(by_study(section.studies), section.objectives),
            f"Sparsity against {score} with one front per strategy",
            "Every finished trial of the searches. A line joins the trials of one strategy that "
            "none of its other trials beats in both sparsity and score.",
        )
        several = section.searches
        said = (
            "mean over search seeds with its 95% interval, up to where the shortest search ends."
            if several
            else "one search each, so the difference between two strategies has no interval."
        )
        add(
            "hypervolume",
            plot_hypervolume(several or section.studies, section.objectives),
            "Hypervolume over trials and over compute for each strategy",
            f"Hypervolume of each strategy's own trials, baselines left out; {said}",
        )
        if several and (others := without_rte(several, section.objectives)) is not None:
            add(
                "hypervolume_without_rte",
                plot_hypervolume(several, others),
                "The same without RTE",
                "The same with the GLUE score that leaves RTE out.",
            )
    for made in dam:
        add(made.key, made.figure, made.alt, made.caption)
    if proxy is not None:
        add(
            "proxy",
            plot_proxy(proxy),
            f"Rank agreement of {proxy.proxy} with {proxy.target} over the budget of the proxy",
            "Above: Kendall's tau-b of the masks' ranking at each budget with the reference, and "
            "the noise ceiling (two seeds of the reference). Below left: every mask over the "
            "budget; where lines cross, a shorter run ranks otherwise. Below right: each mask by "
            "both.",
        )
    named, shape = masks_to_draw(section), section.shape
    if not named or shape is None:
        return figures, "The masks' shape is not known here, so none is drawn." if named else ""
    shown = dict(list(named.items())[:PICTURES])
    note = ""
    if len(shown) < len(named):
        note = f"{len(shown)} of {len(named)} masks are drawn."
    try:
        picture = plot_masks(shown, shape.length, shape.layers, shape.heads)
    except MaskSearchError as error:
        return figures, f"The masks could not be drawn: {error}"
    add(
        "masks",
        picture,
        "Attention masks as pictures: " + ", ".join(shown),
        "Queries down, keys across, dark = may attend. One panel: the same in every layer and "
        "head.",
    )
    return figures, note


def by_study(studies: Mapping[str, list[Record]]) -> list[Record]:
    """The records under the names that the page's tables give to the searches."""
    return [
        record if record.origin.startswith("baseline:") else replace(record, origin=name)
        for name, study in studies.items()
        for record in study
    ]


def together(dam: DamRuns, pictures: Sequence[Picture]) -> RunSection:
    """What several DAM runs say together, and the curves of runs without a card."""
    left = len(dam.cards) - CARDS
    notes = [f"{CARDS} of {len(dam.cards)} runs are shown in full."] if left > 0 else []
    return RunSection(
        "Several runs together" if dam.agreements or dam.sweeps else "",
        notes=notes,
        figures=[picture.key for picture in pictures],
    )


def masks_to_draw(section: Section) -> dict[str, Mask]:
    """Masks to draw, each set of bits once: those compared, then those on the fronts."""
    named: dict[str, Mask] = {}
    seen: set[str] = set()
    candidates = [
        (str(record.params["mask"]), record)
        for comparison in section.comparisons.values()
        for record in comparison.records
    ]
    owners = {id(record): name for name, study in section.studies.items() for record in study}
    for record in pareto(section.searched, section.objectives):
        known = record.origin.partition("baseline:")[2]
        candidates.append((known or f"{owners[id(record)]} {record.number}", record))
    for name, record in candidates:
        key = record.fingerprint or name
        if record.mask is not None and name not in named and key not in seen:
            seen.add(key)
            named[name] = record.mask
    return named


def describe_failure(record: Record) -> dict[str, str]:
    """A failed trial's title, its reason in a line, and the full text."""
    lines = [line for line in record.error.strip().splitlines() if line.strip()]
    name = record.params.get("mask", record.origin)
    return {
        "title": f"{record.number} ({name}, seed {record.seed})" if name else f"{record.number}",
        "reason": lines[-1].strip()[:200] if lines else "no reason was recorded",
        "error": record.error or "no reason was recorded",
    }
