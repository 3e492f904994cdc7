"""The looks of a study and a comparison at a Python prompt and in a notebook."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Sequence
from html import escape
from pathlib import Path

from matplotlib.figure import Figure

from masksearch.analysis.compare import ComparedMasks
from masksearch.analysis.pareto import learned_nothing
from masksearch.analysis.verdict import mirrored, outcome_words
from masksearch.contracts import Objective, Record
from masksearch.masks.text import short_text
from masksearch.report.fronts import compared_points, draw_front, trial_points
from masksearch.report.layout import TextTable
from masksearch.report.section import Section
from masksearch.report.style import file_of, inline
from masksearch.report.tables import by_origin, comparison_table, front_table
from masksearch.study.status import LONGEST, counted, with_mask

ROWS = 8  # lines below the first one


# -- studies -------------------------------------------------------------------------------------
def study_text(run: Path, records: Sequence[Record], objectives: Sequence[Objective]) -> str:
    """A study in at most ten lines: what was run, and its front."""
    front = front_table(by_origin(records), objectives).without("block density", "seed")
    lines = [f"Study {_short_path(run)}: {_count_trials(records)}; {_front_words(front, records)}"]
    for origin, trial, *cells, mask in front.rows[:ROWS]:
        named = zip(front.head[2:-1], cells, strict=True)
        figures = (f"{name.text} {cell.text}" for name, cell in named)
        begin = "  ".join([f"  trial {trial.text:>3}", *figures, origin.text, ""])
        lines.append(with_mask(begin, mask.text))
    if len(front.rows) > ROWS:
        lines.append(f"  and {len(front.rows) - ROWS} more: study.frontier()")
    return "\n".join(lines)


def study_html(run: Path, records: Sequence[Record], objectives: Sequence[Objective]) -> str:
    """The same with a picture of the front, for notebooks."""
    front = front_table(by_origin(records), objectives).without("block density", "seed")
    points = trial_points(Section(by_origin(records), objectives))
    picture = _figure_html(draw_front(points, objectives))
    more = ""
    if len(front.rows) > 2 * ROWS:
        more = f"<br>and {len(front.rows) - 2 * ROWS} more: study.frontier()"
    return (
        f"<div><b>Study {escape(str(run))}</b>: {escape(_count_trials(records))}; "
        f"{_front_words(front, records)}<br>{picture}{front.html(2 * ROWS)}{more}</div>"
    )


def _count_trials(records: Sequence[Record]) -> str:
    """Such as '12 trials (10 done, 2 failed) by tpe'."""
    statuses = Counter(record.status for record in records)
    searched = [record for record in records if record.role != "baseline"]
    origins = dict.fromkeys(record.origin for record in searched if record.origin)
    counts = counted(statuses)
    if len(searched) < len(records):
        counts.append(f"{len(records) - len(searched)} of them baselines")
    details = ", ".join(counts)
    return (
        f"{len(records)} trial{'s' * (len(records) != 1)}"
        + (f" ({details})" if details else "")
        + (f" by {', '.join(origins)}" if origins else "")
    )


def _front_words(front: TextTable, records: Sequence[Record]) -> str:
    """How large the front is, and how many trials have no place on it."""
    nothing = sum(record.scored and learned_nothing(record) for record in records)
    if nothing and not front.rows:
        return "nothing learned, hence no front"
    return f"a front of {len(front.rows)}" + (f", {nothing} learned nothing" if nothing else "")


# -- comparisons ---------------------------------------------------------------------------------
def comparison_text(comparison: ComparedMasks) -> str:
    """A comparison in at most ten lines: the masks that it is about, then the others."""
    entries = comparison.entries
    seeds = {seed for entry in entries.values() for seed in entry.scores}
    where = f" {_short_path(comparison.run)}" if comparison.run is not None else ""
    lines = [
        f"Comparison{where}: {len(entries)} masks, {len(seeds)} seeds; see .verdict(), .frame()"
    ]
    by_name = {row[0].text: row for row in outcomes(comparison).rows}
    rows = [by_name[name] for name in sorted(entries, key=lambda name: not entries[name].tested)]
    shown = [[short_text(name.text, 40), *(c.text for c in row)] for name, *row in rows[:ROWS]]
    widths = [max(map(len, column)) for column in zip(*shown, strict=True)]
    for cells in shown:
        line = "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True))
        short = len(line) <= LONGEST - 2
        lines.append(
            line.rstrip() if short else textwrap.shorten(line, LONGEST - 2, placeholder=" ...")
        )
    if len(entries) > ROWS:
        lines.append(f"and {len(entries) - ROWS} more")
    return "\n  ".join(lines)


def comparison_html(comparison: ComparedMasks) -> str:
    """A picture, the table, densest first, and the verdict, for notebooks."""
    where = "" if comparison.run is None else f" {escape(str(comparison.run))}"
    points = compared_points(comparison)
    picture = _figure_html(draw_front(points, comparison.objectives))
    return (
        f"<div><b>Comparison{where}</b><br>{picture}{outcomes(comparison).html()}"
        f'<pre style="white-space:pre-wrap">{escape(comparison.verdict())}</pre></div>'
    )


def outcomes(comparison: ComparedMasks) -> TextTable:
    """Name, kind, sparsity, score with its interval, and outcome of each mask."""
    table, findings = comparison_table(comparison), comparison.findings()
    table = table.only("mask", "kind", "sparsity", comparison.title)
    texts = []
    for cell, *_ in table.rows:
        entry = comparison.entries[cell.text]
        about = [each for each in findings if each.mask == cell.text]
        words = outcome_words(comparison, about + mirrored(entry, findings))
        words = words if entry.scores else "failed" * bool(words)
        nothing = "learned nothing" * entry.learned_nothing
        texts.append("; ".join(filter(None, (words, nothing))))
    return table.beside("outcome", texts)


# -- HTML ----------------------------------------------------------------------------------------
def _figure_html(figure: Figure | None) -> str:
    """A figure as an element of a notebook; empty without one."""
    if figure is None:
        return ""
    svg = file_of(figure, "svg").decode("utf-8")
    return inline(svg, "score over sparsity", figure.get_figwidth())


def _short_path(path: Path) -> str:
    """A path, or its end where it is long."""
    return str(path) if len(str(path)) <= 40 else f".../{path.name[-40:]}"
