"""One self-contained HTML page about searches and comparisons; figures also as files."""

from __future__ import annotations

import base64
import importlib.metadata
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from matplotlib.figure import Figure

from masksearch.analysis.pareto import pareto
from masksearch.contracts import Objective, Record, Shape
from masksearch.errors import MaskSearchError
from masksearch.masks.core import Mask
from masksearch.report.dam import CARDS, DamRuns, Picture, RunSection, dam_pictures, section_of
from masksearch.report.figures.front import plot_frontier, plot_hypervolume
from masksearch.report.figures.masks import plot_masks
from masksearch.report.figures.proxy import plot_proxy
from masksearch.report.figures.style import save
from masksearch.report.tables import (
    TextTable,
    budgets_table,
    comparison_table,
    findings_table,
    format_seconds,
    front_table,
    runs_table,
)

if TYPE_CHECKING:
    from masksearch.analysis.compare import ComparedMasks
    from masksearch.analysis.proxy_card import ProxyAgreement

PICTURES = 16  # masks that are drawn at most
FAILURES = 20  # failed trials that are printed in full at most
PACKAGES = ("masksearch", "torch", "numpy", "scipy", "optuna", "transformers", "ray")


def write_report(
    path: Path | str,
    *,
    title: str,
    studies: Mapping[str, list[Record]],
    objectives: Sequence[Objective],
    comparison: ComparedMasks | None = None,
    facts: Mapping[str, str] = {},
    shape: Shape | None = None,
    verdicts: Sequence[str] = (),
    dam: DamRuns | None = None,
    proxy: ProxyAgreement | None = None,
) -> Path:
    """Writes the page, and its figures as PNG and PDF into `figures/` beside it.

    The page needs no network, no script and no other file. Parts that are missing (no
    comparison, no DAM, no finished trial) are left out or said to be missing.

    Args:
        path: Of the page; folders are made.
        title: Headline.
        studies: Strategy name -> its records, baselines included.
        objectives: The first one is the score.
        comparison: Masks judged over several seeds; its verdict heads the page.
        facts: What a reader must know (protocol, data, steps, machine). `command` is printed
            under "To reproduce".
        shape: What the masks were lowered to; without it no mask is drawn.
        verdicts: Further lines for the head of the page.
        dam: Health cards of the DAM runs among the records, and what they say together.
        proxy: How far to trust the short runs among the records.

    Returns:
        The path of the page.

    Raises:
        KeyError: If a finished record lacks an objective.
        ValueError: If a study mixes protocols, or an objective's `worst` is not finite.
    """
    path = Path(path)
    records = [record for study in studies.values() for record in study]
    everything = records + (list(comparison.records) if comparison is not None else [])
    command = facts.get("command", "")
    dam = dam or DamRuns()
    drawn = list(dam_pictures(dam, records))
    folder = path.parent / "figures"
    figures, masks_note = draw(
        folder, studies, objectives, comparison, shape, [picture for _, picture in drawn], proxy
    )
    failed = [record for record in everything if record.status == "failed"]
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined
    )
    page = environment.get_template("report.html.j2").render(
        title=title,
        verdicts=headline(records, objectives, comparison, verdicts),
        facts=known_facts(facts, objectives, shape, everything, comparison),
        runs=runs_table(studies, objectives),
        front=front_table(studies, objectives),
        cautions=cautions(records),
        comparison=comparison_table(comparison) if comparison is not None else TextTable(),
        findings=findings_table(comparison) if comparison is not None else TextTable(),
        masks_note=masks_note,
        dam=[
            section_of(card, [picture for owner, picture in drawn if owner == index])
            for index, card in enumerate(dam.cards[:CARDS])
        ],
        dam_together=together(dam, [picture for owner, picture in drawn if owner is None]),
        dam_missing=dam.missing,
        proxy=proxy.verdict().splitlines() if proxy is not None else [],
        proxy_rows=budgets_table(proxy) if proxy is not None else TextTable(),
        failures=[describe_failure(record) for record in failed[:FAILURES]],
        failed=len(failed),
        total=len(everything),
        command=command,
        versions=package_versions(),
        figures=figures,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")
    return path


def write_comparison(comparison: ComparedMasks, path: Path | str) -> Path:
    """Writes the page of a comparison alone; see `write_report`."""
    return write_report(
        path,
        title="Masks compared",
        studies={},
        objectives=comparison.objectives,
        comparison=comparison,
        facts=comparison.notes,
        shape=comparison.shape,
    )


def headline(
    records: Sequence[Record],
    objectives: Sequence[Objective],
    comparison: ComparedMasks | None,
    verdicts: Sequence[str],
) -> list[str]:
    """The lines at the head of the page; never empty."""
    lines = list(verdicts)
    if comparison is not None:
        lines += comparison.verdict().splitlines()
    if not records:
        return lines or ["Nothing was run."]
    scored = [record for record in records if record.scored]
    if not scored:
        return [*lines, "No trial has finished, so nothing can be said."]
    if comparison is None:
        front = pareto(records, objectives)
        lines.append(
            f"{len(scored)} finished trials, {len(front)} of them on the front. No comparison "
            "over seeds is included, so this page does not show that a searched mask is better "
            "than a hand-designed one."
        )
    return lines


def known_facts(
    facts: Mapping[str, str],
    objectives: Sequence[Objective],
    shape: Shape | None,
    records: Sequence[Record],
    comparison: ComparedMasks | None,
) -> list[tuple[str, str]]:
    """The given facts, then those that the records tell."""
    rows = [(name, str(value)) for name, value in facts.items() if name != "command"]
    if shape is not None:
        rows.append(
            ("shape", f"{shape.length} positions, {shape.layers} layers, {shape.heads} heads")
        )
    rows.append(
        (
            "objectives",
            "; ".join(f"{o.name} ({o.goal}, counted from {o.worst:g})" for o in objectives),
        )
    )
    protocols = sorted({record.protocol for record in records if record.protocol})
    if protocols and "protocol" not in facts:
        rows.append(("protocol", ", ".join(protocols)))
    seeds = sorted({record.seed for record in records})
    if seeds and "seeds" not in facts:
        rows.append(("evaluation seeds", ", ".join(map(str, seeds))))
    if comparison is not None and comparison.run is not None:
        rows.append(("runs of the comparison", str(comparison.run)))
    rows.append(("compute in all", format_seconds(sum(record.seconds for record in records))))
    return rows


def cautions(records: Sequence[Record]) -> list[str]:
    """What the reader of a front must keep in mind."""
    if not any(record.scored for record in records):
        return []
    lines = [
        "The front holds full-fidelity results only; early-stopped and failed trials are left "
        "out. Its points were selected on the runs that are shown, which flatters them: judge "
        "a chosen mask again with fresh seeds before believing its score."
    ]
    seeds = {record.seed for record in records if record.scored}
    if len(seeds) == 1:
        lines.append("Every score on the front is from one seed and therefore has no interval.")
    return lines


def draw(
    folder: Path,
    studies: Mapping[str, list[Record]],
    objectives: Sequence[Objective],
    comparison: ComparedMasks | None,
    shape: Shape | None,
    dam: Sequence[Picture],
    proxy: ProxyAgreement | None,
) -> tuple[dict[str, dict[str, str]], str]:
    """Makes and saves every figure; returns them for the page, and a note on the masks."""
    records = [record for study in studies.values() for record in study]
    figures: dict[str, dict[str, str]] = {}

    def add(key: str, figure: Figure, alt: str, caption: str) -> None:
        png, _ = save(figure, folder, key)
        data = base64.b64encode(png.read_bytes()).decode("ascii")
        figures[key] = {"data": data, "alt": alt, "caption": caption}

    score = objectives[0].name
    scored = any(record.scored for record in records)
    if scored or comparison is not None:
        together = comparison if same_protocol(records, comparison) else None
        add(
            "front",
            plot_frontier(records if scored else [], objectives, together),
            f"Sparsity against {score} with one front per strategy",
            "Every finished trial. Each line is a strategy's front: nothing that it found lies "
            "beyond, sparser and better.",
        )
        if comparison is not None and together is None:
            add(
                "compared",
                plot_frontier([], objectives, comparison),
                f"Sparsity against {score} of the masks compared",
                "The masks compared, under another protocol than the search: the two figures' "
                "scores cannot be set against each other.",
            )
    if scored:
        add(
            "hypervolume",
            plot_hypervolume(studies, objectives),
            "Hypervolume over trials and over compute for each strategy",
            "Hypervolume of each strategy's own trials, baselines left out; one search each, "
            "so the difference between two strategies has no interval.",
        )
    for made in dam:
        add(made.key, made.figure, made.alt, made.caption)
    if proxy is not None:
        add(
            "proxy",
            plot_proxy(proxy),
            f"Rank agreement of {proxy.proxy} with {proxy.target} over the budget of the proxy",
            "Left: Kendall's tau-b of the masks' ranking at each budget with the reference, and "
            "the noise ceiling (two seeds of the reference). Middle: every mask over the budget; "
            "where lines cross, a shorter run ranks otherwise. Right: each mask by both.",
        )
    named = masks_to_draw(studies, objectives, comparison)
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


def together(dam: DamRuns, pictures: Sequence[Picture]) -> RunSection:
    """What several DAM runs say together, and the curves of runs without a card."""
    left = len(dam.cards) - CARDS
    notes = [f"{CARDS} of {len(dam.cards)} runs are shown in full."] if left > 0 else []
    return RunSection(
        "Several runs together" if dam.agreements or dam.sweeps else "",
        notes=notes,
        figures=[picture.key for picture in pictures],
    )


def same_protocol(records: Sequence[Record], comparison: ComparedMasks | None) -> bool:
    """Whether a search's scores and a comparison's may stand in one figure."""
    also = comparison.records if comparison is not None else ()
    return len({record.protocol for record in (*records, *also) if record.scored}) <= 1


def masks_to_draw(
    studies: Mapping[str, list[Record]],
    objectives: Sequence[Objective],
    comparison: ComparedMasks | None,
) -> dict[str, Mask]:
    """Masks to draw, each set of bits once: those compared, then those on the fronts."""
    named: dict[str, Mask] = {}
    seen: set[str] = set()
    candidates: list[tuple[str, Record]] = []
    if comparison is not None:
        candidates += [(str(record.params["mask"]), record) for record in comparison.records]
    owners = {id(record): name for name, study in studies.items() for record in study}
    for record in pareto([record for study in studies.values() for record in study], objectives):
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


def package_versions() -> list[tuple[str, str]]:
    """Versions of what computed the page's machine: Python, packages, platform."""
    rows = [("python", platform.python_version())]
    for name in PACKAGES:
        try:
            rows.append((name, importlib.metadata.version(name)))
        except importlib.metadata.PackageNotFoundError:
            continue
    rows.append(("platform", f"{platform.platform()}, {os.cpu_count()} logical CPUs"))
    return rows
