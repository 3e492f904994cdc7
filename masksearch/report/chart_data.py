"""The data of a page's charts: masks and their fronts, hypervolumes, paired differences."""

from __future__ import annotations

import math
import shlex
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from masksearch.analysis.compare import ComparedMasks
from masksearch.analysis.fronts import arm_of
from masksearch.analysis.pareto import learned_nothing, on_front, pareto, sparsity_of
from masksearch.analysis.runs import Kind, MaskRuns
from masksearch.analysis.search_curves import Compute, band_of, curves_of, without_rte
from masksearch.analysis.stats import CLAIM_SEEDS, estimate, mean_of_searches
from masksearch.contracts import LOW, RANDOM, Objective, Record, Shape, is_side_value
from masksearch.masks.families import SCRAMBLED
from masksearch.masks.measure import unit_densities
from masksearch.masks.text import short_text
from masksearch.report.pictures import Pictures
from masksearch.report.section import Section
from masksearch.report.style import GREY, INK, ORANGE, PINK, STYLES, TITLES, styles_of
from masksearch.report.tables import percent
from masksearch.user_code import load_part

T = TypeVar("T")
COSTS = {  # what a budget may be of -> how it is called; `density` is 1 - sparsity of the pairs
    "density": "share of the pairs kept",
    "block_density": "share of the blocks computed",
    "kv_bytes": "share of the dense cache",
    "latency_ratio": "time ratio of the kernel, not of the model",
    "latency": "time (ms)",
}
CACHES = ("kv_bytes", "kv_bytes_per_head")
TRUE_FRONT = "true front"
KINDS: dict[Kind, tuple[str, str]] = {  # colour and shape of the masks of a comparison
    "searched": (ORANGE, "s"),
    "candidate": (PINK, "^"),
    "hand-designed": (INK, "D"),
    "control": (GREY, "o"),
}
SINGLE = {  # what a point says unless it is of several runs, or of a front
    "search": "",
    "seeds": 1,
    "low": None,
    "high": None,
    "front": False,
    "promised": None,
}
STEPS = 200  # points of a curve of hypervolume at most
LED = 4  # searched masks and candidates that a page begins with
DRAWN = 1000  # trials that a chart shows, beside those of its front
TOLD = 12  # layers whose shares are told one by one
SHOWN = 24  # masks of a front whose layers and heads are shown, at most


# -- fronts --------------------------------------------------------------------------------------
def search_chart(section: Section, pictures: Pictures) -> dict[str, Any] | None:
    """The finished trials of the searches, those on the front first, of others every so many
    where there are more than `DRAWN`; None without one."""
    score, (cost, axis) = section.objectives[0], saving(section.objectives)
    owners = {id(record): name for name, study in section.studies.items() for record in study}
    strategies = {  # several searches by one strategy are one group
        name: next((s for s, runs in section.searches.items() if study in runs.values()), name)
        for name, study in section.studies.items()
    }
    on = {id(record) for record in pareto(section.searched, section.objectives)}
    points = []
    for record in drawn_records(section):
        owner = owners[id(record)]
        title = record.name if record.role == "baseline" else ""
        values = {
            name: [value, record.values.get(name + LOW)]
            for name, value in record.values.items()
            if not is_side_value(name)
        }
        points.append(
            {
                **SINGLE,
                "id": f"{section.key}{owner} {record.number}",
                "name": title or f"{owner} {record.number}",
                "group": "hand-designed" if title else strategies[owner],
                "search": "" if title else owner,
                "score": record.value(score.name),
                "values": values,
                "front": id(record) in on,
                "nothing": learned_nothing(record),
                **mask_facts(record, section.runs.get(owner), section.shape, pictures, cost),
            }
        )
    searched = {point["group"] for point in points if point["search"]}
    styles = styles_of(name for name in dict.fromkeys(strategies.values()) if name in searched)
    groups = [
        group_of(name, style, RANDOM if name == RANDOM else "searched")
        for name, style in styles.items()
    ]
    if not points:
        return None
    return front_chart(f"{section.key}front", score, groups, points, axis, section.truth)


def drawn_records(section: Section) -> list[Record]:
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
        gains = [(saved_share(r, cost), sign * r.value(score.name)) for r in apt]
        shown |= {id(r) for r in unbeaten(apt, gains)}
    others = [record for record in records if id(record) not in shown]
    shown |= {id(record) for record in others[:: -(-len(others) // DRAWN) or 1]}
    return [record for record in records if id(record) in shown]


def compared_chart(
    section: Section, name: str, key: str, pictures: Pictures
) -> dict[str, Any] | None:
    """The masks of a comparison with their intervals, and the front of each kind."""
    comparison = section.comparisons[name]
    score, (cost, axis) = comparison.objectives[0], saving(comparison.objectives)
    records = {r.name: r for r in reversed(comparison.records) if r.mask}
    points = []
    for entry in comparison.entries.values():
        if not entry.scores or not math.isfinite(entry.sparsity):
            continue
        shown = not 1 < len(entry.scores) < CLAIM_SEEDS  # of one seed the interval is of its rows
        points.append(
            {
                **SINGLE,
                "id": f"{section.key}{name} {entry.name}",
                "name": entry.name,
                "group": SCRAMBLED if entry.kind == "control" and entry.at_random else entry.kind,
                "seeds": len(entry.scores),
                "score": entry.score.value,
                "low": entry.score.low if shown else None,
                "high": entry.score.high if shown else None,
                "values": values_of(entry, comparison),
                "nothing": entry.learned_nothing,
                "promised": comparison.promised.get(entry.name),
                **mask_facts(records[entry.name], comparison.run, section.shape, pictures, cost),
            }
        )
    styles: list[tuple[str, tuple[str, str]]] = [*KINDS.items(), (SCRAMBLED, STYLES[RANDOM])]
    groups = [group_of(kind, style, kind) for kind, style in styles if kind != "hand-designed"]
    if not points:
        return None
    entries = {f"{section.key}{name} {e.name}": e for e in comparison.entries.values()}
    alone = {at for at, e in entries.items() if not arm_of(e, comparison.promised)}
    return front_chart(section.key + key, score, groups, points, axis, section.truth, alone)


def leading(points: Sequence[Mapping[str, Any]], goal: str) -> dict[str, str]:
    """Ids of the points that a page begins with -> what they stand for: full attention, the best
    hand-designed mask, and the best candidates and masks of a search (of its front, where its
    trials are shown)."""
    sign = 1 if goal == "max" else -1
    best: dict[tuple[str, str], Mapping[str, Any]] = {}
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


def front_chart(
    key: str,
    score: Objective,
    groups: Sequence[Mapping[str, str]],
    points: Sequence[dict[str, Any]],
    axis: str,
    truth: Sequence[tuple[float, float]] = (),
    alone: Collection[str] = (),
) -> dict[str, Any]:
    """Points, the front of each group of them but for those that are `alone`, the true front where
    it is known, and full attention as a level line; `lead` says of some what they stand for."""
    leads = leading(points, score.goal)
    points = [{**point, "lead": leads.get(point["id"], "")} for point in points]
    groups = [*groups, group_of("hand-designed", KINDS["hand-designed"], "hand-designed")]
    sparse = [point for point in points if point["saved"] > 0]
    used = [g for g in groups if any(point["group"] == g["name"] for point in sparse)]
    sign = 1 if score.goal == "max" else -1
    left = min((point["saved"] for point in sparse), default=0.0)
    lines = []
    for group in used:
        members = [p for p in sparse if p["group"] == group["name"] and not p["nothing"]]
        members = [point for point in members if point["id"] not in alone]
        several = len({point["search"] for point in members}) > 1
        steps = mean_front(members, sign) if several else front_of(members, sign)
        for place, step in enumerate([*steps[:1], *steps]):
            at = left if place == 0 else step["saved"]
            about = {name: step[name] for name in ("id", "group", "score", "low", "high")}
            lines.append({**about, "arm": group["arm"], "saved": at})
    if truth:
        used = [*used, group_of(TRUE_FRONT, (PINK, "o"), "truth")]
        about = {"id": "", "group": TRUE_FRONT, "arm": "truth", "low": None, "high": None}
        places = sorted(truth)
        ends = [(min(left / 100, places[0][0]), places[0][1]), *places]
        lines += [{**about, "saved": 100 * at, "score": best} for at, best in ends]
    return {
        "kind": "front",
        "id": key,
        "score": {
            "name": score.name,
            "title": TITLES.get(score.name, score.name.replace("_", " ")),
            "goal": "higher" if score.goal == "max" else "lower",
        },
        "axis": axis,
        "groups": used,
        "points": points,
        "lines": lines,
        "levels": levels_of([point for point in points if point["saved"] == 0], sign),
    }


def group_of(name: str, style: tuple[str, str], arm: str) -> dict[str, str]:
    """A group of points: its name, colour and shape, and whose front it is."""
    return {"name": name, "colour": style[0], "shape": style[1], "arm": arm}


def levels_of(dense: Sequence[dict[str, Any]], sign: int) -> list[dict[str, Any]]:
    """A level line for each point that leaves nothing out; the best one has the label of all."""
    label = f"{len(dense)} masks with nothing left out"
    if len({point["name"] for point in dense}) == 1:  # also where each of several searches has it
        label = f"{dense[0]['name']} (nothing left out)"
    levels = []
    for place, point in enumerate(sorted(dense, key=lambda p: -sign * p["score"])):
        about = {name: point[name] for name in ("id", "score", "low", "high")}
        levels.append({"label": "" if place else label, **about})
    return levels


def front_of(points: Sequence[dict[str, Any]], sign: int) -> list[dict[str, Any]]:
    """The points that no other one beats in both, densest first."""
    by_saving = sorted(points, key=lambda point: (point["saved"], sign * point["score"]))
    return unbeaten(by_saving, [(each["saved"], sign * each["score"]) for each in by_saving])


def unbeaten(each: Sequence[T], gains: Sequence[tuple[float, float]]) -> list[T]:
    """Those that no other one beats in both gains."""
    kept = on_front(np.reshape(gains, (len(gains), 2)))
    return [one for one, best in zip(each, kept, strict=True) if best]


def mean_front(points: Sequence[dict[str, Any]], sign: int) -> list[dict[str, Any]]:
    """Mean over searches (`mean_of_searches`) of the best score at a sparsity or beyond."""
    searches: dict[str, list[dict[str, Any]]] = {}
    for point in points:
        searches.setdefault(point["search"], []).append(point)
    fronts = [front_of(members, sign) for members in searches.values()]
    steps = []
    for at in sorted({point["saved"] for front in fronts for point in front}):
        best = [[sign * p["score"] for p in front if p["saved"] >= at] for front in fronts]
        if all(best):
            interval = mean_of_searches([sign * max(scores) for scores in best])
            about = {"score": interval.value, "low": interval.low, "high": interval.high}
            steps.append({"id": "", "group": points[0]["group"], "saved": at, **about})
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


def saved_share(record: Record, cost: str) -> float:
    """The share of dense attention's cost that its mask saves."""
    costs = costs_of(record)
    return 1 - costs[cost] if cost in costs else sparsity_of(record)


def every_cost() -> dict[str, str]:
    """The costs that a budget may limit, shares of engines among them -> their titles."""
    return COSTS | (load_part("parts", "costs", "table") or {})


def mask_facts(
    record: Record, run: Path | None, shape: Shape | None, pictures: Pictures, cost: str
) -> dict[str, Any]:
    """The facts of a record's mask whatever its score; sparsities in percent, and so is what
    it saves of `cost`.

    `place` is how a command line names the mask: `RUN#7`, or its expression.
    """
    mask, costs = record.mask, costs_of(record)
    place = str(mask or "") if run is None else f"{run}#{record.number}"
    return {
        "place": shlex.quote(place),
        "expression": str(mask or ""),
        "short": short_text(str(mask or "")),
        "fingerprint": record.fingerprint,
        "sparsity": 100 * sparsity_of(record),
        "saved": 100 * saved_share(record, cost),
        "table_sparsity": 100 * costs.get("sparsity", math.nan),
        "costs": {name: costs[name] for name in every_cost() if name in costs},
        "picture": pictures.panels(mask, shape) if mask and shape else None,
    }


def values_of(entry: MaskRuns, comparison: ComparedMasks) -> dict[str, list[float]]:
    """Mean and 95% interval over seeds of each reported value; of the score over rows too."""
    cells = {comparison.objectives[0].name: [entry.score.value, entry.score.low, entry.score.high]}
    for name in comparison.tasks:
        if runs := entry.values.get(name):
            each = estimate(list(runs.values()))
            cells[name] = [each.value, each.low, each.high]
    return cells


# -- what a page compares ------------------------------------------------------------------------
def difference_chart(comparison: ComparedMasks, key: str) -> dict[str, Any] | None:
    """The declared comparisons: paired differences with their intervals; None without one."""
    score = comparison.objectives[0].name
    lines = [
        {
            "label": f"{finding.mask} minus {finding.against}",
            "mask": finding.mask,
            "against": finding.against,
            "outcome": "the same mask" if finding.same else finding.outcome,
            "margin": None if finding.margin is None else -comparison.sign * finding.margin,
            "mean": finding.difference.value,
            "low": finding.difference.low,
            "high": finding.difference.high,
            "level": finding.difference.level,
            "adjusted_p": finding.adjusted,
            "seeds": finding.difference.n,
            "rows": finding.difference.n_rows,
        }
        for finding in comparison.findings_to_show()
        if math.isfinite(finding.difference.value)
    ]
    title = f"difference in {score.replace('_', ' ')}"
    return {"kind": "differences", "id": key, "title": title, "lines": lines} if lines else None


def volume_charts(section: Section) -> Iterator[dict[str, Any]]:
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
            lines: list[dict[str, Any]] = []
            for name, runs in curves.items():
                for compute, volume in band_of(runs, by, STEPS).items():
                    about = {"mean": volume.value, "low": volume.low, "high": volume.high}
                    lines.append({"group": name, "compute": compute, **about})
            if any(line["mean"] > 0 for line in lines):
                yield {
                    "kind": "hypervolume",
                    "id": f"{section.key}volume_{by}_{objectives[0].name.replace('/', '_')}",
                    "score": objectives[0].name,
                    "compute": title,
                    "groups": [
                        {"name": name, "colour": c, "shape": s, "searches": len(curves[name])}
                        for name, (c, s) in styles.items()
                    ],
                    "lines": lines,
                }


# -- what layers and heads keep ------------------------------------------------------------------
def allocation_data(section: Section, chart: Mapping[str, Any] | None) -> dict[str, Any]:
    """The kept share of each layer and head of the masks on a chart's front, densest first.

    Where the chart has no joint front (a comparison), the fronts of its kinds are taken together.
    """
    shape, points = section.shape, list(chart["points"]) if chart else []
    steps = {line["id"] for line in chart["lines"]} if chart else set()
    best = [p for p in points if p["front"]] or [p for p in points if p["id"] in steps]
    best = list(
        {p["fingerprint"] or p["id"]: p for p in best if p["picture"] is not None}.values()
    )
    best.sort(key=lambda point: (point["sparsity"], point["name"]))
    masks = {record.fingerprint: record.mask for record in section.records}
    every = []
    if shape is not None and shape.layers * shape.heads > 1:
        for point in best:
            if (mask := masks.get(point["fingerprint"])) is not None:
                kept = unit_densities(mask, shape)
                every.append({"id": point["id"], "name": point["name"], "kept": kept})
    uneven = [each for each in every if np.ptp(each["kept"]) > 1e-9]
    if not uneven:
        note = "Every mask of the front keeps the same share in all layers and heads."
        return {"masks": [], "notes": [note] if every else [], "most": 1.0}
    places = np.linspace(0, len(uneven) - 1, min(SHOWN, len(uneven))).round().astype(int)
    notes = describe_allocation(uneven)
    if len(uneven) < len(every):
        notes.append(
            f"{len(every) - len(uneven)} more masks of the front keep the same share everywhere."
        )
    if len(places) < len(uneven):
        notes.append(f"{len(places)} of these {len(uneven)} masks are shown.")
    return {
        "masks": [uneven[place] for place in places],
        "notes": notes,
        "most": float(max(np.max(each["kept"]) for each in uneven)),
    }


def describe_allocation(masks: Sequence[Mapping[str, Any]]) -> list[str]:
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
        means = "; ".join(
            f"layer {index} {percent(before)} and {percent(after)}"
            for index, (before, after) in enumerate(zip(first.mean(1), last.mean(1), strict=True))
        )
        kept = f" Kept in the first and in the last mask: {means}." if len(first) <= TOLD else ""
        lines.append(
            f"Layer {layer} is the fullest in {fullest.count(layer)} of {len(masks)} masks.{kept}"
        )
    return lines
