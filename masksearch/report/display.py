"""What a study and a comparison look like at a Python prompt and in a notebook."""

from __future__ import annotations

import math
import textwrap
from collections import Counter
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from masksearch.analysis.compare import ComparedMasks, MaskRuns
from masksearch.analysis.pareto import (
    SPARSITIES,
    is_baseline,
    learned_nothing,
    pareto,
    sparsity_of,
)
from masksearch.analysis.stats import decimals_for, format_estimate
from masksearch.analysis.verdict import outcome_words
from masksearch.contracts import Objective, Record
from masksearch.masks.text import short_text

WIDTH = 120  # characters of a line
ROWS = 8  # lines below the first one
PLOT = (360, 220)  # pixels of the picture of a front
POINTS = 400  # trials that it shows at most, the last ones
BASELINE, TRIAL, FRONT = "#d55e00", "#b9c3cf", "#0b3c6f"


# -- studies -------------------------------------------------------------------------------------
def study_text(run: Path, records: Sequence[Record], objectives: Sequence[Objective]) -> str:
    """A study in at most ten lines: what was run, and its front."""
    front = best_first(records, objectives)
    lines = [f"Study {short_path(run)}: {count_trials(records)}; {front_words(front, records)}"]
    names = [objective.name for objective in objectives]
    for cells in front_rows(front[:ROWS], names):
        figures = (f"{name} {cell}" for name, cell in zip(names, cells[1:-2], strict=True))
        begin = "  ".join([f"  trial {cells[0]:>3}", *figures, cells[-2]])
        lines.append(f"{begin}  {short_text(front[len(lines) - 1].mask or '', room(begin))}")
    if len(front) > ROWS:
        lines.append(f"  and {len(front) - ROWS} more: study.frontier()")
    return "\n".join(lines)


def study_html(run: Path, records: Sequence[Record], objectives: Sequence[Objective]) -> str:
    """The same with a picture of the front, for notebooks."""
    front = best_first(records, objectives)
    names = [objective.name for objective in objectives]
    rows = [
        [*(escape(cell) for cell in cells[:-1]), f"<code>{escape(cells[-1])}</code>"]
        for cells in front_rows(front[: 2 * ROWS], names)
    ]
    more = (
        f"<br>and {len(front) - 2 * ROWS} more: study.frontier()" if len(front) > len(rows) else ""
    )
    return (
        f"<div><b>Study {escape(str(run))}</b>: {escape(count_trials(records))}; "
        f"{front_words(front, records)}<br>{front_svg(records, front, objectives)}"
        f"{html_table(['trial', *names, 'proposed by', 'mask'], rows)}{more}</div>"
    )


def count_trials(records: Sequence[Record]) -> str:
    """Such as '12 trials (10 done, 2 failed) by tpe'."""
    statuses = Counter(record.status for record in records)
    own = [record for record in records if not is_baseline(record)]
    origins = dict.fromkeys(record.origin for record in own if record.origin)
    counts = [f"{count} {status}" for status, count in statuses.items()]
    if len(own) < len(records):
        counts.append(f"{len(records) - len(own)} of them baselines")
    said = ", ".join(counts)
    return (
        f"{len(records)} trial{'s' * (len(records) != 1)}"
        + (f" ({said})" if said else "")
        + (f" by {', '.join(origins)}" if origins else "")
    )


def front_words(front: Sequence[Record], records: Sequence[Record]) -> str:
    """How large the front is, and how many trials have no place on it."""
    nothing = sum(record.scored and learned_nothing(record) for record in records)
    if nothing and not front:
        return "nothing learned, hence no front"
    return f"a front of {len(front)}" + (f", {nothing} learned nothing" if nothing else "")


def best_first(records: Sequence[Record], objectives: Sequence[Objective]) -> list[Record]:
    """The front, best first objective first."""
    first = objectives[0]
    sign = -1 if first.goal == "max" else 1
    return sorted(pareto(records, objectives), key=lambda record: sign * record.value(first.name))


def front_rows(front: Sequence[Record], names: Sequence[str]) -> list[list[str]]:
    """Number, objectives, origin and mask of each; the numbers of a column are even."""
    places = {name: decimals_for(record.value(name) for record in front) for name in names}
    return [
        [
            str(record.number),
            *(format_estimate(record.value(name), decimals=places[name]) for name in names),
            record.origin,
            short_text(record.mask or "", WIDTH),
        ]
        for record in front
    ]


def front_svg(
    records: Sequence[Record], front: Sequence[Record], objectives: Sequence[Objective]
) -> str:
    """Every scored trial, the front dark: the first objective over the second, or sparsity."""
    over = objectives[1].name if len(objectives) > 1 else "effective_sparsity"
    score = objectives[0].name
    on_front = {record.number for record in front}

    def second(record: Record) -> float:
        return sparsity_of(record) if over in SPARSITIES else record.value(over)

    points = [
        (second(record), record.value(score), record)
        for record in records
        if record.scored and {over, score} - {*SPARSITIES} <= {*record.values, *record.measures}
    ]
    points = [p for p in points if math.isfinite(p[0]) and math.isfinite(p[1])]
    points = [p for p in points if p[2].number not in on_front][-POINTS:] + [
        p for p in points if p[2].number in on_front
    ]
    if not points:
        return ""
    (left, right), (low, high) = (
        (min(values), max(values)) for values in list(zip(*points, strict=True))[:2]
    )
    width, height = PLOT
    key = "; orange: baselines" if any(is_baseline(record) for *_, record in points) else ""
    key += "; hollow: learned nothing" if any(learned_nothing(r) for *_, r in points) else ""
    marks = []
    for x, y, record in points:
        across = 56 + (width - 70) * ((x - left) / (right - left) if right > left else 0.5)
        up = height - 36 - (height - 50) * ((y - low) / (high - low) if high > low else 0.5)
        colour = FRONT if record.number in on_front else TRIAL
        if is_baseline(record):
            colour = BASELINE
        about = f"trial {record.number}: {score} {y:.4g}, {over} {x:.4g}, {record.mask}"
        fill = f'fill="{colour}"'
        if learned_nothing(record):
            about, fill = f"{about}, learned nothing", f'fill="none" stroke="{colour}"'
        marks.append(
            f'<circle cx="{across:.1f}" cy="{up:.1f}" r="{4 if record.number in on_front else 3}" '
            f"{fill}><title>{escape(short_text(about, 300))}</title></circle>"
        )
    words = [
        (56, height - 20, "start", f"{left:.3g}"),
        (width - 14, height - 20, "end", f"{right:.3g}"),
        (width / 2, height - 6, "middle", over),
        (50, height - 32, "end", f"{low:.3g}"),
        (50, 18, "end", f"{high:.3g}"),
        (56, 10, "start", f"{score}; dark: the front" + key),
    ]
    texts = [
        f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}">{escape(text)}</text>'
        for x, y, anchor, text in words
    ]
    return (
        f'<svg width="{width}" height="{height}" font-size="11" font-family="sans-serif" '
        'fill="#555" xmlns="http://www.w3.org/2000/svg">'
        f'<path d="M52 14V{height - 32}H{width - 10}" fill="none" stroke="#999"/>'
        f"{''.join(marks)}{''.join(texts)}</svg>"
    )


# -- comparisons ---------------------------------------------------------------------------------
def comparison_text(comparison: ComparedMasks) -> str:
    """A comparison in at most ten lines: the masks that it is about, then the others."""
    entries = sorted(comparison.entries.values(), key=lambda entry: not entry.tested)
    seeds = {seed for entry in entries for seed in entry.scores}
    place = f" {short_path(comparison.run)}" if comparison.run is not None else ""
    lines = [
        f"Comparison{place}: {len(entries)} masks, {len(seeds)} seeds; see .verdict(), .frame()"
    ]
    shown = comparison_rows(comparison, entries[:ROWS])
    widths = [max(map(len, column)) for column in zip(*shown, strict=True)]
    for cells in shown:
        line = "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True))
        lines.append(textwrap.shorten(line, WIDTH - 2, placeholder=" ...") if len(line) > WIDTH - 2
                     else line.rstrip())  # fmt: skip
    if len(entries) > ROWS:
        lines.append(f"and {len(entries) - ROWS} more")
    return "\n  ".join(lines)


def comparison_html(comparison: ComparedMasks) -> str:
    """The table, densest first, and the verdict, for notebooks."""
    entries = sorted(comparison.entries.values(), key=lambda e: (e.sparsity, e.name))
    rows = [
        [f"<b>{escape(cell)}</b>" if entry.tested else escape(cell) for cell in cells]
        for cells, entry in zip(comparison_rows(comparison, entries), entries, strict=True)
    ]
    head = ["mask", "kind", "sparsity", comparison.objectives[0].name, "outcome"]
    place = "" if comparison.run is None else f" {escape(str(comparison.run))}"
    return (
        f"<div><b>Comparison{place}</b>{html_table(head, rows)}"
        f'<pre style="white-space:pre-wrap">{escape(comparison.verdict())}</pre></div>'
    )


def comparison_rows(comparison: ComparedMasks, entries: Sequence[MaskRuns]) -> list[list[str]]:
    """Name, kind, sparsity, score with its interval, and outcome of each mask."""
    scores = [entry.score for entry in entries]
    places = decimals_for(value for s in scores for value in (s.mean, s.low, s.high))
    findings = comparison.findings()
    return [
        [
            short_text(entry.name, 40),
            entry.kind,
            "-" if math.isnan(entry.sparsity) else f"{100 * entry.sparsity:.1f}%",
            format_estimate(score.mean, score.low, score.high, decimals=places),
            "; ".join(
                [outcome_words([each for each in findings if each.mask == entry.name])]
                + ["learned nothing"] * entry.learned_nothing
            ).removeprefix("; "),
        ]
        for entry, score in zip(entries, scores, strict=True)
    ]


# -- HTML ----------------------------------------------------------------------------------------
def html_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of cells that are HTML already, under a head that is text."""
    cell = '<td style="text-align:left">{}</td>'
    names = "".join(f'<th style="text-align:left">{escape(name)}</th>' for name in head)
    body = "".join(f"<tr>{''.join(map(cell.format, row))}</tr>" for row in rows)
    return f"<table><thead><tr>{names}</tr></thead><tbody>{body}</tbody></table>"


def short_path(path: Path) -> str:
    """A path, or its end where it is long."""
    return str(path) if len(str(path)) <= 40 else f".../{path.name[-40:]}"


def room(begin: str) -> int:
    """Characters that a line has left for a mask."""
    return max(16, WIDTH - 2 - len(begin))
