"""Fronts as figures: the score of masks over what they save, of searches and of comparisons."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from masksearch.analysis.compare import ComparedMasks
from masksearch.analysis.fronts import arm_of
from masksearch.analysis.pareto import (
    learned_nothing,
    on_front,
    pareto,
    score_title,
    sparsity_of,
)
from masksearch.analysis.stats import CLAIM_SEEDS, Interval, mean_of_searches
from masksearch.contracts import Objective, Record
from masksearch.gates.unit_costs import WORK
from masksearch.masks.families import SCRAMBLED
from masksearch.masks.text import short_text
from masksearch.report.section import Section
from masksearch.report.style import (
    COLUMN,
    GREY,
    INK,
    ORANGE,
    PAGE,
    PINK,
    PRINT,
    SMALL,
    STYLES,
    TITLES,
    clean,
    hover,
    new_figure,
    plain,
    shorten,
    styles_of,
)
from masksearch.tasks.glue.tasks import TASKS

NOTHING = "no better than a constant answer"
CACHES = ("kv_bytes", "kv_bytes_per_head")
HAND, TRUE_FRONT = "hand-designed", "true front"
KINDS = {  # colour and marker of the masks of a comparison, by their kind
    "searched": (ORANGE, "s"),
    "candidate": (PINK, "^"),
    "control": (GREY, "o"),
    SCRAMBLED: STYLES["random"],
    HAND: (INK, "D"),
}
GIVEN = (HAND, "control", SCRAMBLED)  # kinds that no one has searched or asked about
LED = 4  # searched masks and candidates that a page begins with
DRAWN = 1000  # trials of a figure; of more, those that are on no front are pixels without a title
NAMED, MOST = 8, 44  # names that a column has room for, and the width of a page
LONGEST = 26  # letters of a name in a figure
MARGIN = 0.04  # of an axis, beyond its points
RINGS = (4.0, 10.0, 18.0, 28.0, 40.0, 55.0, 72.0)  # points between a mark and its name
WAYS = ((1, 0), (-1, 0), (0, 1), (0, -1), (0.8, 0.8), (-0.8, 0.8), (0.8, -0.8), (-0.8, -0.8))


@dataclass(frozen=True, eq=False)
class Point:
    """A mask of a front's figure: a trial, or a mask of a comparison with its mean.

    Args:
        record: Of the mask, or of one of its runs.
        name: In figures and tables.
        group: Masks of one colour: a strategy's, or those of one kind.
        saved: Percent of dense attention's cost that it saves (`saving`).
        score: With its interval, as far as it is known.
        promised: The score that a search gave it; NaN of a mask that was not judged again.
        search: The search that has found it; "" of a mask that is no trial of one.
        front: Whether it is on the front of its searches, or of its kind.
        alone: Whether no front may have it.
        nothing: Whether it has learned nothing.
    """

    record: Record
    name: str
    group: str
    saved: float
    score: Interval
    promised: float = math.nan
    search: str = ""
    front: bool = False
    alone: bool = False
    nothing: bool = False


Step = tuple[float, Interval]  # percent saved, and the best score there or beyond


# -- points --------------------------------------------------------------------------------------
def trial_points(section: Section) -> list[Point]:
    """The finished trials of the searches; several searches by one strategy are one group."""
    score, cost = section.objectives[0].name, saving(section.objectives)[0]
    front = {id(record) for record in pareto(section.searched, section.objectives)}
    points = list[Point]()
    for study, records in section.studies.items():
        strategies = (s for s, runs in section.searches.items() if records in runs.values())
        group = next(strategies, study)
        for record in records:
            if not record.scored or not math.isfinite(record.value(score)):
                continue
            hand = record.name if record.role == "baseline" else ""
            points.append(
                Point(
                    record,
                    name=hand or f"{study} {record.number}",
                    group=HAND if hand else group,
                    saved=100 * _saved_share(record, cost),
                    score=Interval(record.value(score), n=1),
                    search="" if hand else study,
                    front=id(record) in front,
                    nothing=learned_nothing(record),
                )
            )
    return points


def compared_points(comparison: ComparedMasks) -> list[Point]:
    """The masks of a comparison with their means; below three seeds the interval over seeds says
    little, and is left out."""
    cost, promised = saving(comparison.objectives)[0], comparison.promised
    records = {r.name: r for r in reversed(comparison.records) if r.mask}
    points = list[Point]()
    for entry in comparison.entries.values():
        if not entry.scores or not math.isfinite(entry.sparsity):
            continue
        few = 1 < len(entry.scores) < CLAIM_SEEDS  # of one seed the interval is of its rows
        points.append(
            Point(
                records[entry.name],
                entry.name,
                SCRAMBLED if entry.kind == "control" and entry.at_random else entry.kind,
                100 * _saved_share(records[entry.name], cost),
                Interval(entry.shown.value, n=entry.shown.n) if few else entry.shown,
                math.nan if (before := promised.get(entry.name)) is None else before,
                alone=not arm_of(entry, promised),
                nothing=entry.learned_nothing,
            )
        )
    sign, best = _sign(comparison.objectives[0]), set[int]()
    for group in {point.group for point in points}:
        best |= {id(point) for point in _best([p for p in points if p.group == group], sign)}
    return [replace(point, front=id(point) in best) for point in points]


def leading(points: Sequence[Point], goal: str) -> dict[str, Point]:
    """The masks that a page begins with, by what they stand for: full attention, the best
    hand-designed mask, and the best candidates and masks of searches."""
    sign = 1 if goal == "max" else -1
    order = sorted((p for p in points if not p.nothing), key=lambda p: -sign * p.score.value)
    leads: dict[str, Point] = {}
    for kind, chosen in (
        ("dense", [p for p in order if p.saved == 0][:1]),
        ("best hand-designed", [p for p in order if p.saved > 0 and p.group == HAND][:1]),
        ("", [p for p in order if p.saved > 0 and p.front and p.group not in GIVEN][:LED]),
    ):
        for point in sorted(chosen, key=lambda point: point.saved):
            words = kind or ("named" if point.group == "candidate" else "found")
            leads[words if words == point.name else f"{words}: {point.name}"] = point
    return leads


def _sign(score: Objective) -> int:
    return 1 if score.goal == "max" else -1


def _best(points: Sequence[Point], sign: int) -> list[Point]:
    """Those of the points that a front may have that no other one beats in both."""
    apt = [p for p in points if p.saved > 0 and not p.nothing and not p.alone]
    apt.sort(key=lambda point: (point.saved, sign * point.score.value))
    kept = on_front(np.reshape([(p.saved, sign * p.score.value) for p in apt], (len(apt), 2)))
    return [point for point, best in zip(apt, kept, strict=True) if best]


def front_steps(points: Sequence[Point], sign: int) -> list[Step]:
    """The front of one group, densest first; of several searches the mean (`mean_of_searches`) of
    the best score at a sparsity or beyond."""
    searches: dict[str, list[Point]] = {}
    for point in points:
        searches.setdefault(point.search, []).append(point)
    fronts = [[(p.saved, p.score) for p in _best(own, sign)] for own in searches.values()]
    if len(fronts) == 1:
        return fronts[0]
    steps = list[Step]()
    for at in sorted({saved for front in fronts for saved, _ in front}):
        best = [[sign * score.value for saved, score in front if saved >= at] for front in fronts]
        if all(best):
            steps.append((at, mean_of_searches([sign * max(scores) for scores in best])))
    return steps


def saving(objectives: Sequence[Objective]) -> tuple[str, str]:
    """The measure of the bytes or of the work that a front is drawn over, "" where it is drawn
    over the pairs, and the title of its axis."""
    name = objectives[-1].name
    if name in CACHES:
        return name, "cache bytes saved (% of the dense cache)"
    if name == WORK:
        return name, "work left out (% of the dense model's)"
    return "", "sparsity (% of real pairs left out)"


def _saved_share(record: Record, cost: str) -> float:
    """The share of dense attention's bytes or work, or without a measure of pairs, that its mask
    saves; dense attention itself saves nothing, not even what its head does not read."""
    if sparsity_of(record) == 0:
        return 0.0
    costs = {**record.measures, **record.values}
    return 1 - costs[cost] if cost in costs else sparsity_of(record)


def axis_title(score: Objective, records: Sequence[Record]) -> str:
    """A score with its task and metric, as far as the records tell them.

    >>> from masksearch.contracts import Evaluate
    >>> from masksearch.masks import star
    >>> values = {"glue": 0.5, "MRPC": 0.5, "MRPC/f1": 0.7, "MRPC/majority": 0.4}
    >>> one = Record(0, "done", Evaluate(star()), values=values | {"MRPC/accuracy": 0.5})
    >>> axis_title(Objective("glue", "max", 0.0), [one])
    'MRPC accuracy, higher is better'
    """
    task = score_title(score.name, records)
    values = [record.values for record in records if record.scored]
    metrics = [name for each in values[:1] for name in each if name.startswith(f"{task}/")]
    same = [name for name in metrics if all(v.get(name) == v.get(task) for v in values)]
    metric = same[0].removeprefix(f"{task}/") if same else ""
    metric = metric or (TASKS[task].primary if task in TASKS else "")
    title = TITLES.get(task, task.replace("_", " "))
    goal = "higher" if score.goal == "max" else "lower"
    return f"{title} {metric}".rstrip() + f", {goal} is better"


# -- figures -------------------------------------------------------------------------------------
@rc_context(PRINT)
def draw_front(
    points: Sequence[Point],
    objectives: Sequence[Objective],
    truth: Sequence[tuple[float, float]] = (),
) -> Figure | None:
    """Marks with their intervals and names, the front of each group with its band, the true front
    where it is known, and full attention as a level line; None without a point."""
    if not points:
        return None
    sparse, sign = [point for point in points if point.saved > 0], _sign(objectives[0])
    title = axis_title(objectives[0], [point.record for point in points])
    named = _points_to_name(sparse)
    wide = len(named) > NAMED
    figure = new_figure(PAGE if wide else COLUMN, 3.8 if wide else 3.0)
    axes = figure.add_subplot()
    clean(axes, saving(objectives)[1], title)
    _draw_levels(axes, [point for point in points if point.saved == 0], sign)
    styles = {**styles_of(dict.fromkeys(point.group for point in sparse if point.search)), **KINDS}
    lines = {
        group: front_steps(members, sign)
        for group in styles
        if (members := [point for point in sparse if point.group == group])
    }
    if truth:
        lines[TRUE_FRONT] = [(100 * saved, Interval(best)) for saved, best in sorted(truth)]
    every = [step for steps in lines.values() for step in steps]
    xs = [point.saved for point in sparse] + [saved for saved, _ in every]
    left, right = min(xs, default=0.0), max(xs, default=100.0)
    for group, steps in lines.items():
        style = styles.get(group, (PINK, ""))
        if members := [point for point in sparse if point.group == group]:
            _draw_marks(axes, members, style, title, len(points) > DRAWN)
        _draw_line(axes, steps, group, style[0], left)
    room = MARGIN * (right - left) or 1.0
    axes.set_xlim(left - room, right + room)
    axes.set_ylim(*_score_ends(points, [score.value for _, score in every], objectives[0].goal))
    handles, labels = axes.get_legend_handles_labels()
    once = dict(zip(labels, handles, strict=True))
    figure.legend(
        once.values(), once.keys(), loc="outside lower left", ncols=5 if wide else 2,
        frameon=False, fontsize=SMALL, columnspacing=1.2,
    )  # fmt: skip
    _name_marks(axes, sparse, named, {group: style[0] for group, style in styles.items()})
    return figure


def _draw_levels(axes: Axes, dense: Sequence[Point], sign: int) -> None:
    """A level line for each point that leaves nothing out; the best one has the label of all."""
    order = sorted(dense, key=lambda point: -sign * point.score.value)
    names = dict.fromkeys(point.name for point in order)  # each of several searches may have it
    label = next(iter(names), "") if len(names) == 1 else f"{len(order)} masks"
    for index, point in enumerate(order):
        if not math.isnan(point.score.low):
            axes.axhspan(point.score.low, point.score.high, color=GREY, alpha=0.1, linewidth=0)
        level = axes.axhline(point.score.value, color=GREY, linewidth=1.1, linestyle=":")
        level.set_url(hover(f"{point.name}\n{point.score.text()}"))
        level.set_label("" if index else plain(f"{label} (nothing left out)"))


def _draw_marks(
    axes: Axes, points: Sequence[Point], style: tuple[str, str], title: str, many: bool
) -> None:
    """The marks of one group, with their intervals and what searches promised; crosses where
    nothing was learned. Of very many points those beside the fronts are pixels."""
    colour, marker = style
    bars = [point for point in points if not math.isnan(point.score.low)]
    low, high = ends_of([point.score for point in bars])
    xs = [point.saved for point in bars]
    axes.vlines(xs, low, high, color=colour, linewidth=0.8, label="95% interval" if bars else "")
    told = [point for point in points if not math.isnan(point.promised)]
    axes.plot(
        [p.saved for p in told], [p.promised for p in told], "_",
        color=colour, markersize=6, label="score in the search" if told else "",
    )  # fmt: skip
    name = plain(points[0].group)
    for nothing, (symbol, size, shade, label) in enumerate(
        [(marker, 15, colour, name), ("x", 12, GREY, NOTHING)]
    ):
        mine = [point for point in points if point.nothing == nothing]
        dim = [many and bool(point.search) and not point.front for point in mine]
        for pixels in (True, False):
            some = [point for point, each in zip(mine, dim, strict=True) if each == pixels]
            marks = axes.scatter(
                [point.saved for point in some], [point.score.value for point in some], size,
                shade, marker=symbol, alpha=0.85, linewidths=0.8 * nothing, zorder=3,
                rasterized=pixels, label=label if some else "",
            )  # fmt: skip
            marks.set_urls([] if pixels else [hover(_words_of(p, title)) for p in some])


def ends_of(values: Sequence[Interval]) -> tuple[list[float], list[float]]:
    """Lower and upper ends."""
    return [each.low for each in values], [each.high for each in values]


def _words_of(point: Point, title: str) -> str:
    """The lines that a page shows where the mouse is at a mark."""
    seeds = f", {point.score.n} seeds" if point.score.n > 1 else ""
    return "\n".join(
        [
            point.name,
            f"{title.rpartition(',')[0]} {point.score.text()}{seeds}",
            *[NOTHING] * point.nothing,
            f"{100 * sparsity_of(point.record):.1f}% sparse",
            short_text(str(point.record.mask or "")),
        ]
    )


def _draw_line(axes: Axes, steps: Sequence[Step], group: str, colour: str, left: float) -> None:
    """A front as a line of steps from `left` on, with its band."""
    if not steps:
        return
    steps = [(left, steps[0][1]), *steps]
    xs, scores = [saved for saved, _ in steps], [score.value for _, score in steps]
    label = group if group == TRUE_FRONT else ""
    axes.plot(
        xs, scores, "--" if group == HAND else "-",
        drawstyle="steps-pre", color=colour, linewidth=1.1, label=label,
    )  # fmt: skip
    low, high = ends_of([score for _, score in steps])
    axes.fill_between(xs, low, high, step="pre", color=colour, alpha=0.14, linewidth=0)


def _score_ends(points: Sequence[Point], lines: Sequence[float], goal: str) -> tuple[float, float]:
    """Both ends of the axis of scores: masks with their intervals, and a little more, within the
    metric's range (0 to 1, or from 0) where all masks are."""
    scores = [*lines, *(point.score.value for point in points)]
    ends = [end for p in points for end in (p.score.low, p.score.high, p.promised)]
    ys = [*scores, *(end for end in ends if not math.isnan(end))]
    room = 2 * MARGIN * (max(ys) - min(ys)) or 0.05 * abs(ys[0]) or 1.0
    low, high = min(ys) - room, max(ys) + room
    share = goal == "max" and max(scores) <= 1
    return max(low, 0.0) if min(scores) >= 0 else low, min(high, 1.0) if share else high


def _points_to_name(points: Sequence[Point]) -> list[Point]:
    """The points whose names stand in a figure: none of a search's own trials, no scrambled ones,
    and where they are very many those on a front."""
    named = [point for point in points if not point.search and point.group != SCRAMBLED]
    named = [point for point in named if point.front] if len(named) > MOST else named
    return [*{(p.name, p.saved, p.score.value): p for p in named}.values()][:MOST]


def _name_marks(
    axes: Axes, points: Sequence[Point], named: Sequence[Point], colours: Mapping[str, str]
) -> None:
    """Names beside their marks, on no other name or mark, with a line where they stand apart; one
    that has no room is left out."""
    figure = axes.get_figure(root=True)
    assert isinstance(figure, Figure)
    figure.draw_without_rendering()  # everything has its place now
    figure.set_layout_engine("none")
    scale, frame = figure.dpi / 72, axes.get_window_extent()
    at = axes.transData.transform([(p.saved, p.score.value) for p in [*named, *points]])
    taken = [np.concatenate([place - 3 * scale, place + 3 * scale]) for place in at]
    for point, place in zip(named, at, strict=False):
        text = axes.annotate(
            plain(shorten(point.name, LONGEST)), (point.saved, point.score.value), (0, 0),
            textcoords="offset points", ha="center", va="center", fontsize=SMALL,
            color=GREY if point.nothing else colours[point.group],
            bbox={"facecolor": "white", "alpha": 0.7, "linewidth": 0, "pad": 0.4},
        )  # fmt: skip
        half = np.array(text.get_window_extent().size) / 2
        for ring, way in itertools.product(RINGS, WAYS):
            middle = place + np.array(way) * (half + ring * scale)
            box = np.concatenate([middle - half, middle + half])
            inside = (box[:2] >= frame.min).all() and (box[2:] <= frame.max).all()
            rest = np.array(taken)
            free = (box[2:] <= rest[:, :2]).any(1) | (rest[:, 2:] <= box[:2]).any(1)
            if inside and free.all():
                taken.append(box)
                text.set_position(tuple((middle - place) / scale))
                if ring > RINGS[0]:
                    ends = [place, np.clip(place, box[:2], box[2:])]
                    xs, ys = axes.transData.inverted().transform(ends).T
                    axes.plot(xs, ys, color="#B8B8B8", linewidth=0.5, zorder=1)
                break
        else:
            text.remove()
