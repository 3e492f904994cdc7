"""The data of a page's charts: masks and their fronts, hypervolumes, paired differences."""

from __future__ import annotations

import math
import shlex
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np

from masksearch.analysis.compare import ComparedMasks
from masksearch.analysis.fronts import arm_of
from masksearch.analysis.pareto import (
    learned_nothing,
    on_front,
    pareto,
    score_title,
    sparsity_of,
)
from masksearch.analysis.runs import MaskGroup, MaskRuns
from masksearch.analysis.search_curves import Compute, band_of, curves_of, without_rte
from masksearch.analysis.stats import CLAIM_SEEDS, estimate, mean_of_searches
from masksearch.contracts import LOW, RANDOM, Objective, Record, Shape, is_side_value
from masksearch.masks.families import SCRAMBLED
from masksearch.masks.measure import unit_densities
from masksearch.masks.text import short_text
from masksearch.neighbours import load_part
from masksearch.report.chart_rows import (
    ChartStrategy,
    Difference,
    DifferenceChart,
    Estimate,
    Facts,
    FrontChart,
    FrontStep,
    Kept,
    KeptShares,
    Level,
    Point,
    PointGroup,
    Score,
    Volume,
    VolumeChart,
)
from masksearch.report.pictures import Pictures
from masksearch.report.section import Section
from masksearch.report.style import GREY, INK, ORANGE, PINK, STYLES, TITLES, styles_of
from masksearch.report.tables import percent

T = TypeVar("T")
COSTS = {  # what a budget may be of -> how it is called; `density` is 1 - sparsity of the pairs
    "density": "share of the pairs kept",
    "block_density": "share of the blocks computed",
    "kv_bytes": "share of the dense cache",
    "work": "share of the work",
    "latency_ratio": "time ratio of the kernel, not of the model",
    "latency": "time (ms)",
}
CACHES = ("kv_bytes", "kv_bytes_per_head")
TRUE_FRONT = "true front"
KINDS: dict[MaskGroup, tuple[str, str]] = {  # colour and shape of the masks of a comparison
    "searched": (ORANGE, "s"),
    "candidate": (PINK, "^"),
    "hand-designed": (INK, "D"),
    "control": (GREY, "o"),
}
STEPS = 200  # points of a curve of hypervolume at most
LED = 4  # searched masks and candidates that a page begins with
DRAWN = 1000  # trials that a chart shows, beside those of its front
TOLD = 12  # layers whose shares are told one by one
SHOWN = 24  # masks of a front whose layers and heads are shown, at most


# -- fronts --------------------------------------------------------------------------------------
def search_chart(section: Section, pictures: Pictures) -> FrontChart | None:
    """The finished trials of the searches, those on the front first, of others every so many
    where there are more than `DRAWN`; None without one."""
    score, (cost, axis) = section.objectives[0], saving(section.objectives)
    owners = {id(record): name for name, study in section.studies.items() for record in study}
    strategies = {  # several searches by one strategy are one group
        name: next((s for s, runs in section.searches.items() if study in runs.values()), name)
        for name, study in section.studies.items()
    }
    on = {id(record) for record in pareto(section.searched, section.objectives)}
    points = list[Point]()
    for record in _drawn_records(section):
        owner = owners[id(record)]
        title = record.name if record.role == "baseline" else ""
        values = {
            name: [value, record.values.get(name + LOW)]
            for name, value in record.values.items()
            if not is_side_value(name)
        }
        points.append(
            Point(
                **_mask_facts(record, section.runs.get(owner), section.shape, pictures, cost),
                id=f"{section.key}{owner} {record.number}",
                name=title or f"{owner} {record.number}",
                group="hand-designed" if title else strategies[owner],
                search="" if title else owner,
                seeds=1,
                score=record.value(score.name),
                low=None,
                high=None,
                promised=None,
                values=values,
                front=id(record) in on,
                nothing=learned_nothing(record),
                lead="",
            )
        )
    searched = {point["group"] for point in points if point["search"]}
    styles = styles_of(name for name in dict.fromkeys(strategies.values()) if name in searched)
    groups = [
        group_of(name, style, RANDOM if name == RANDOM else "searched")
        for name, style in styles.items()
    ]
    if not points:
        return None
    title = score_title(score.name, section.searched)
    return _front_chart(f"{section.key}front", score, title, groups, points, axis, section.truth)


def _drawn_records(section: Section) -> list[Record]:
    """The finished trials that a chart shows: all, or where there are more than `DRAWN` the
    hand-designed masks, the front of every search, and every so many of the others."""
    score, (cost, _) = section.objectives[0], saving(section.objectives)
    records = [r for r in section.searched if r.scored and math.isfinite(r.value(score.name))]
    if len(records) <= DRAWN:
        return records
    sign = 1 if score.goal == "max" else -1
    shown = {id(r) for r in records if r.role == "baseline"}
    shown |= {id(r) for r in pareto(records, section.objectives)}
    for study in section.studies.values():
        apt = [r for r in study if r.scored and r.role != "baseline" and not learned_nothing(r)]
        gains = [(_saved_share(r, cost), sign * r.value(score.name)) for r in apt]
        shown |= {id(r) for r in _unbeaten(apt, gains)}
    others = [record for record in records if id(record) not in shown]
    shown |= {id(record) for record in others[:: -(-len(others) // DRAWN) or 1]}
    return [record for record in records if id(record) in shown]


def compared_chart(section: Section, name: str, key: str, pictures: Pictures) -> FrontChart | None:
    """The masks of a comparison with their intervals, and the front of each kind."""
    comparison = section.comparisons[name]
    score, (cost, axis) = comparison.objectives[0], saving(comparison.objectives)
    records = {r.name: r for r in reversed(comparison.records) if r.mask}
    points = list[Point]()
    for entry in comparison.entries.values():
        if not entry.scores or not math.isfinite(entry.sparsity):
            continue
        shown = not 1 < len(entry.scores) < CLAIM_SEEDS  # of one seed the interval is of its rows
        points.append(
            Point(
                **_mask_facts(records[entry.name], comparison.run, section.shape, pictures, cost),
                id=f"{section.key}{name} {entry.name}",
                name=entry.name,
                group=SCRAMBLED if entry.kind == "control" and entry.at_random else entry.kind,
                search="",
                seeds=len(entry.scores),
                score=entry.shown.value,
                low=entry.shown.low if shown else None,
                high=entry.shown.high if shown else None,
                promised=comparison.promised.get(entry.name),
                values=values_of(entry, comparison),
                front=False,
                nothing=entry.learned_nothing,
                lead="",
            )
        )
    styles: list[tuple[str, tuple[str, str]]] = [*KINDS.items(), (SCRAMBLED, STYLES[RANDOM])]
    groups = [group_of(kind, style, kind) for kind, style in styles if kind != "hand-designed"]
    if not points:
        return None
    entries = {f"{section.key}{name} {e.name}": e for e in comparison.entries.values()}
    alone = {at for at, e in entries.items() if not arm_of(e, comparison.promised)}
    key, title = section.key + key, comparison.title
    return _front_chart(key, score, title, groups, points, axis, section.truth, alone)


def leading(points: Sequence[Point], goal: str) -> dict[str, str]:
    """Ids of the points that a page begins with -> what they stand for: full attention, the best
    hand-designed mask, and the best candidates and masks of a search (of its front, where its
    trials are shown)."""
    sign = 1 if goal == "max" else -1
    best: dict[tuple[str, str], Point] = {}
    for point in points:
        if point["nothing"] or point["picture"] is None:
            continue
        if point["saved"] == 0:
            what = ("dense", "")
        elif point["group"] == "hand-designed":
            what = ("best hand-designed", "")
        elif point["front"] or point["group"] == "searched":
            what = ("found", point["name"])
        elif point["group"] == "candidate":
            what = ("named", point["name"])
        else:
            continue
        if what not in best or sign * (point["score"] - best[what]["score"]) > 0:
            best[what] = point
    mine = sorted((what for what in best if what[1]), key=lambda what: -sign * best[what]["score"])
    order = [("dense", ""), ("best hand-designed", ""), *mine[:LED]]
    return {best[what]["id"]: what[0] for what in order if what in best}


def _front_chart(
    key: str,
    score: Objective,
    title: str,
    groups: list[PointGroup],
    points: list[Point],
    axis: str,
    truth: Sequence[tuple[float, float]] = (),
    alone: Collection[str] = (),
) -> FrontChart:
    """Points, the front of each group of them but for those that are `alone`, the true front where
    it is known, and full attention as a level line; `lead` says of some what they stand for."""
    leads = leading(points, score.goal)
    for point in points:
        point["lead"] = leads.get(point["id"], "")
    groups = [*groups, group_of("hand-designed", KINDS["hand-designed"], "hand-designed")]
    sparse = [point for point in points if point["saved"] > 0]
    used = [g for g in groups if any(point["group"] == g["name"] for point in sparse)]
    sign = 1 if score.goal == "max" else -1
    left = min((point["saved"] for point in sparse), default=0.0)
    lines = list[FrontStep]()
    for group in used:
        members = [p for p in sparse if p["group"] == group["name"] and not p["nothing"]]
        members = [point for point in members if point["id"] not in alone]
        several = len({point["search"] for point in members}) > 1
        steps = _mean_front(members, sign) if several else front_of(members, sign)
        for index, (saved, step) in enumerate([*steps[:1], *steps]):
            at = saved if index else left
            lines.append(FrontStep(**step, group=group["name"], arm=group["arm"], saved=at))
    if truth:
        used = [*used, group_of(TRUE_FRONT, (PINK, "o"), "truth")]
        known = sorted(truth)
        for at, best in [(min(left / 100, known[0][0]), known[0][1]), *known]:
            bare = Estimate(id="", score=best, low=None, high=None)
            lines.append(FrontStep(**bare, group=TRUE_FRONT, arm="truth", saved=100 * at))
    title = TITLES.get(title, title.replace("_", " "))
    return FrontChart(
        kind="front",
        id=key,
        score=Score(
            name=score.name, title=title, goal="higher" if score.goal == "max" else "lower"
        ),
        axis=axis,
        groups=used,
        points=points,
        lines=lines,
        levels=_levels_of([point for point in points if point["saved"] == 0], sign),
    )


def group_of(name: str, style: tuple[str, str], arm: str) -> PointGroup:
    """A group of points: its name, colour and shape, and whose front it is."""
    return PointGroup(name=name, colour=style[0], shape=style[1], arm=arm)


def _estimate_of(point: Point) -> Estimate:
    """A point by its score alone."""
    return Estimate(id=point["id"], score=point["score"], low=point["low"], high=point["high"])


def _levels_of(dense: Sequence[Point], sign: int) -> list[Level]:
    """A level line for each point that leaves nothing out; the best one has the label of all."""
    label = f"{len(dense)} masks with nothing left out"
    if len({point["name"] for point in dense}) == 1:  # also where each of several searches has it
        label = f"{dense[0]['name']} (nothing left out)"
    order = sorted(dense, key=lambda point: -sign * point["score"])
    return [
        Level(**_estimate_of(point), label="" if index else label)
        for index, point in enumerate(order)
    ]


def front_of(points: Sequence[Point], sign: int) -> list[tuple[float, Estimate]]:
    """Saving and score of the points that no other one beats in both, densest first."""
    order = sorted(points, key=lambda point: (point["saved"], sign * point["score"]))
    best = _unbeaten(order, [(each["saved"], sign * each["score"]) for each in order])
    return [(point["saved"], _estimate_of(point)) for point in best]


def _unbeaten(each: Sequence[T], gains: Sequence[tuple[float, float]]) -> list[T]:
    """Those that no other one beats in both gains."""
    kept = on_front(np.reshape(gains, (len(gains), 2)))
    return [one for one, best in zip(each, kept, strict=True) if best]


def _mean_front(points: Sequence[Point], sign: int) -> list[tuple[float, Estimate]]:
    """Mean over searches (`mean_of_searches`) of the best score at a sparsity or beyond."""
    searches: dict[str, list[Point]] = {}
    for point in points:
        searches.setdefault(point["search"], []).append(point)
    fronts = [front_of(members, sign) for members in searches.values()]
    steps = []
    for at in sorted({saved for front in fronts for saved, _ in front}):
        best = [[sign * step["score"] for saved, step in front if saved >= at] for front in fronts]
        if all(best):
            mean = mean_of_searches([sign * max(scores) for scores in best])
            steps.append((at, Estimate(id="", score=mean.value, low=mean.low, high=mean.high)))
    return steps


def saving(objectives: Sequence[Objective]) -> tuple[str, str]:
    """The share of dense attention's cost that a front is drawn over, and the title of its axis:
    what is left out of the cache where bytes are the objective, else of the pairs."""
    name = objectives[-1].name
    if name in CACHES:
        return name, "cache bytes saved (% of the dense cache)"
    return "density", "sparsity (% of real pairs left out)"


def costs_of(record: Record) -> dict[str, float]:
    """The costs of a record's mask by name, beside its other measures and values."""
    density = {"density": 1 - sparsity_of(record)} if record.measures else {}
    return {**record.measures, **record.values, **density}


def _saved_share(record: Record, cost: str) -> float:
    """The share of dense attention's cost that its mask saves."""
    costs = costs_of(record)
    return 1 - costs[cost] if cost in costs else sparsity_of(record)


def every_cost() -> dict[str, str]:
    """The costs that a budget may limit, shares of engines among them -> their titles."""
    return COSTS | (load_part("parts", "costs", "table") or {})


def _mask_facts(
    record: Record, run: Path | None, shape: Shape | None, pictures: Pictures, cost: str
) -> Facts:
    """The facts of a record's mask whatever its score, with what it saves of `cost`."""
    mask, costs = record.mask, costs_of(record)
    named = str(mask or "") if run is None else f"{run}#{record.number}"
    return Facts(
        place=shlex.quote(named),
        expression=str(mask or ""),
        short=short_text(str(mask or "")),
        fingerprint=record.fingerprint,
        sparsity=100 * sparsity_of(record),
        saved=100 * _saved_share(record, cost),
        table_sparsity=100 * costs.get("sparsity", math.nan),
        costs={name: costs[name] for name in every_cost() if name in costs},
        picture=pictures.panels(mask, shape) if mask and shape else None,
    )


def values_of(entry: MaskRuns, comparison: ComparedMasks) -> dict[str, list[float | None]]:
    """Mean and 95% interval over seeds of each reported value; of the score over rows too."""
    mean = entry.score
    cells: dict[str, list[float | None]] = {
        comparison.objectives[0].name: [mean.value, mean.low, mean.high]
    }
    for name in comparison.tasks:
        if runs := entry.values.get(name):
            each = estimate(list(runs.values()))
            cells[name] = [each.value, each.low, each.high]
    return cells


# -- what a page compares ------------------------------------------------------------------------
def difference_chart(comparison: ComparedMasks, key: str) -> DifferenceChart | None:
    """The declared comparisons: paired differences with their intervals; None without one."""
    lines = [
        Difference(
            label=f"{finding.mask} minus {finding.against}",
            mask=finding.mask,
            against=finding.against,
            outcome="the same mask" if finding.same else finding.outcome,
            margin=None if finding.margin is None else -comparison.sign * finding.margin,
            mean=finding.difference.value,
            low=finding.difference.low,
            high=finding.difference.high,
            level=finding.difference.level,
            adjusted_p=finding.adjusted,
            seeds=finding.difference.n,
            rows=finding.difference.n_rows,
        )
        for finding in comparison.findings_to_show()
        if math.isfinite(finding.difference.value)
    ]
    title = f"difference in {comparison.title.replace('_', ' ')}"
    return DifferenceChart(kind="differences", id=key, title=title, lines=lines) if lines else None


def volume_charts(section: Section) -> Iterator[VolumeChart]:
    """Hypervolume over trials and over compute; also of the score without RTE."""
    alone = {n: {0: s} for n, s in section.studies.items() if n not in section.unfinished}
    judged = [section.objectives]
    if without := without_rte(section.searches, section.objectives):
        judged.append(without)
    axes: tuple[tuple[Compute, str], ...] = (
        ("trials", "counted trials (finished, reused or stopped)"),
        ("seconds", "compute in seconds, failed trials included"),
    )
    for objectives in judged:
        if not all(math.isfinite(objective.worst) for objective in objectives):
            continue
        curves = curves_of(section.searches or alone, objectives)
        styles = styles_of(curves)
        for by, title in axes:
            lines = [
                Volume(group=name, compute=compute, mean=mean.value, low=mean.low, high=mean.high)
                for name, runs in curves.items()
                for compute, mean in band_of(runs, by, STEPS).items()
            ]
            if any(line["mean"] > 0 for line in lines):
                yield VolumeChart(
                    kind="hypervolume",
                    id=f"{section.key}volume_{by}_{objectives[0].name.replace('/', '_')}",
                    score=objectives[0].name,
                    compute=title,
                    groups=[
                        ChartStrategy(name=name, colour=c, shape=s, searches=len(curves[name]))
                        for name, (c, s) in styles.items()
                    ],
                    lines=lines,
                )


# -- what layers and heads keep ------------------------------------------------------------------
def kept_shares(section: Section, chart: FrontChart | None) -> Kept:
    """The kept share of each layer and head of the masks on a chart's front, densest first.

    Where the chart has no joint front (a comparison), the fronts of its kinds are taken together.
    """
    shape, points = section.shape, chart["points"] if chart else []
    steps = {line["id"] for line in chart["lines"]} if chart else set()
    best = [p for p in points if p["front"]] or [p for p in points if p["id"] in steps]
    best = [*{p["fingerprint"] or p["id"]: p for p in best if p["picture"] is not None}.values()]
    best.sort(key=lambda point: (point["sparsity"], point["name"]))
    masks = {record.fingerprint: record.mask for record in section.records}
    every = list[KeptShares]()
    if shape is not None and shape.layers * shape.heads > 1:
        for point in best:
            if (mask := masks.get(point["fingerprint"])) is not None:
                kept = unit_densities(mask, shape)
                every.append(KeptShares(id=point["id"], name=point["name"], kept=kept))
    uneven = [each for each in every if np.ptp(each["kept"]) > 1e-9]
    if not uneven:
        note = "Every mask of the front keeps the same share in all layers and heads."
        return Kept(masks=[], notes=[note] if every else [], most=1.0)
    shown = np.linspace(0, len(uneven) - 1, min(SHOWN, len(uneven))).round().astype(int)
    notes = describe_kept(uneven)
    if len(uneven) < len(every):
        notes.append(
            f"{len(every) - len(uneven)} more masks of the front keep the same share everywhere."
        )
    if len(shown) < len(uneven):
        notes.append(f"{len(shown)} of these {len(uneven)} masks are shown.")
    most = float(max(np.max(each["kept"]) for each in uneven))
    return Kept(masks=[uneven[index] for index in shown], notes=notes, most=most)


def describe_kept(masks: Sequence[KeptShares]) -> list[str]:
    """The changes from the densest mask to the sparsest, in sentences."""
    first, last = np.array(masks[0]["kept"]), np.array(masks[-1]["kept"])
    lines = []
    if len(masks) > 1:
        texts = []
        for at in (int((first - last).argmax()), int((first - last).argmin())):
            layer, head = divmod(at, first.shape[1])
            shares = f"{percent(first[layer, head])} to {percent(last[layer, head])}"
            texts.append(f"layer {layer}, head {head} ({shares})")
        lines.append(
            f"From {masks[0]['name']} to {masks[-1]['name']}: {texts[0]} gives up the most, "
            f"{texts[1]} the least."
        )
    if any(np.ptp(np.mean(each["kept"], axis=1)) > 1e-9 for each in masks):
        fullest = [int(np.mean(each["kept"], axis=1).argmax()) for each in masks]
        layer = max(sorted(set(fullest)), key=fullest.count)
        ends = [first, last][: len(masks)]  # of one mask it is itself
        means = "; ".join(
            f"layer {index} {' and '.join(map(percent, shares))}"
            for index, shares in enumerate(zip(*(end.mean(1) for end in ends), strict=True))
        )
        of, often = "", ""
        if len(masks) > 1:
            of = " in the first and in the last mask"
            often = f" in {fullest.count(layer)} of {len(masks)} masks"
        kept = f" Kept{of}: {means}." if len(first) <= TOLD else ""
        lines.append(f"Layer {layer} is the fullest{often}.{kept}")
    return lines
