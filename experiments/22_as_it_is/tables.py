"""What follows from the lines of results/: what is chosen, and what the plan compares."""

from __future__ import annotations

import base64
import json
import math
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import t

from masksearch.analysis.row_scores import RowScores
from masksearch.analysis.stats import (
    ErrorPart,
    PairedDifference,
    estimate,
    holm,
    holm_levels,
    paired_difference,
)

HERE = Path(__file__).parent
RESULTS = HERE / "results"
PLAN = tomllib.loads((HERE / "plan.toml").read_text(encoding="utf-8"))
ABOVE_CONSTANT = 0.15  # of a dense model, for its task to be in
ARMS = [*PLAN["arms"], "hand-designed", "other search"]
Line = dict[str, Any]  # of results/, or of a table
Model = tuple[str, int]  # task and seed


def read(path: Path) -> list[Line]:
    """The lines of a file; none where there is no file."""
    return list(map(json.loads, path.read_text("utf-8").splitlines())) if path.is_file() else []


def all_lines(results: Path = RESULTS) -> dict[Model, list[Line]]:
    """Task and seed -> the lines of that dense model."""
    names = {path: path.stem.rpartition("_") for path in sorted(results.glob("*_*.jsonl"))}
    return {(task, int(seed)): read(path) for path, (task, _, seed) in names.items()}


def scored(lines: Iterable[Line], rows: str, name: str = "") -> list[Line]:
    """The lines of masks whose name begins so, scored on those rows."""
    return [
        line
        for line in lines
        if line["stage"] == "score" and line["rows"] == rows and line["name"].startswith(name)
    ]


def best(lines: Iterable[Line]) -> Line:
    """The best score, of equal ones the sparsest."""
    return max(lines, key=lambda line: (line["score"], -line["density"]))


def named(lines: Iterable[Line], rows: str, name: str) -> Line | None:
    """The line of the mask of that name, scored on those rows."""
    return next((line for line in scored(lines, rows) if line["name"] == name), None)


def opponent(lines: list[Line], arm: str, budget: float) -> str:
    """The name of the mask that stands for an arm: "hand-designed" and "other search" are those
    that the choosing rows prefer."""
    if arm == "hand-designed":
        return best(scored(lines, "choice", f"hand {budget}: "))["name"]
    if arm == "other search":
        names = [f"{each} {budget}" for each in PLAN["primary"]["searches"]]
        each = [line for name in names if (line := named(lines, "choice", name))]
        return best(each)["name"]
    return arm if arm == "dense" else f"{arm} {budget}"


# -- what is compared --------------------------------------------------------------------------
def rows_of(line: Line) -> RowScores:
    """The scores row by row of a line."""
    size, kind, packed = re.match(r"(\d+)([bf])(.*)", line["each"], re.S).groups()
    raw = base64.b85decode(packed)
    if kind == "b":
        values = np.unpackbits(np.frombuffer(raw, np.uint8), count=int(size)).astype(float)
    else:
        values = np.frombuffer(raw, "<f2").astype(float)
    return RowScores({"rows": values}, {"rows": 1.0}, {"rows": size})


def judged(
    lines: Mapping[Model, list[Line]], task: str, arm: str, budget: float
) -> dict[int, Line]:
    """Seed -> the judged line of an arm's mask."""
    own = {seed: each for (of, seed), each in lines.items() if of == task}
    found = {
        seed: named(each, "judge", opponent(each, arm, budget))
        for seed, each in own.items()
        if scored(each, "judge", f"dam {budget}")
    }
    return {seed: line for seed, line in sorted(found.items()) if line}


def minus(
    one: Mapping[int, Line], other: Mapping[int, Line], level: float = 0.95
) -> PairedDifference:
    """The paired difference of two arms, over models and rows."""
    scores = [{seed: line["score"] for seed, line in arm.items()} for arm in (one, other)]
    rows = [{seed: rows_of(line) for seed, line in arm.items()} for arm in (one, other)]
    return paired_difference(*scores, level, rows_a=rows[0], rows_b=rows[1])


def minus_or_first(one: Mapping[int, Line], other: Mapping[int, Line]) -> PairedDifference:
    """The paired difference of two arms; of fewer than three models that of the first, over its
    rows alone."""
    seeds = sorted(one.keys() & other.keys())
    if len(seeds) > 2:
        return minus(one, other)
    a, b = one[seeds[0]], other[seeds[0]]
    rows = {"rows_a": {0: rows_of(a)}, "rows_b": {0: rows_of(b)}}
    return paired_difference({0: a["score"]}, {0: b["score"]}, seedless=True, **rows)


def mean_of_tasks(gaps: Sequence[PairedDifference]) -> PairedDifference:
    """The mean of differences of several tasks. The spread over models is taken to be the same in
    each: its estimates are pooled."""
    value, count = math.fsum(gap.value for gap in gaps) / len(gaps), len(gaps) ** 2
    models, rows = ([gap.errors[at] for gap in gaps] for at in range(2))
    degrees = sum(part.df for part in models)
    spread = sum(gap.n * part.variance * part.df for gap, part in zip(gaps, models, strict=True))
    spread *= sum(1 / gap.n for gap in gaps) / degrees / count
    drawn = ErrorPart(sum(part.variance for part in rows) / count, min(part.df for part in rows))
    errors = ErrorPart(spread, degrees), drawn
    half = math.sqrt(sum(float(t.isf(0.025, part.df)) ** 2 * part.variance for part in errors))
    models_of_all = sum(gap.n for gap in gaps)
    return PairedDifference(value, value - half, value + half, models_of_all, errors=errors)


def as_line(found: PairedDifference, one: Mapping[int, Line], other: Mapping[int, Line]) -> Line:
    """A row of a table of differences, with the count of models on which the first is ahead."""
    ahead = sum(one[seed]["score"] > other[seed]["score"] for seed in one.keys() & other.keys())
    return {
        "difference": found.value,
        "low": found.low,
        "high": found.high,
        "p": found.p_value,
        "ahead": ahead,
        "models": found.n,
    }


def out(lines: Mapping[Model, list[Line]]) -> list[Model]:
    """The dense models that have not learned their task, on which nothing was searched."""
    return [model for model, own in lines.items() if any(line["stage"] == "out" for line in own)]


def tasks_in(lines: Mapping[Model, list[Line]]) -> dict[str, bool]:
    """Task -> whether its dense models, all of them, are enough above a constant answer."""
    gaps: dict[str, list[float]] = {task: [0.0] for task, _ in out(lines)}
    for (task, _), own in lines.items():
        if dense := named(own, "choice", "dense"):
            gaps.setdefault(task, []).append(dense["score"] - dense["constant"])
    return {task: min(each) >= ABOVE_CONSTANT for task, each in gaps.items()}


def primary(lines: Mapping[Model, list[Line]]) -> pd.DataFrame:
    """(a) and (b) of the plan for each task and budget; (b) with Holm's adjusted p, and intervals
    at its levels."""
    plan, table = PLAN["primary"], []
    for other in ("hand-designed", "other search"):
        family = []
        for task, budget in product(plan["tasks"], plan["budgets"]):
            sides = [judged(lines, task, arm, budget) for arm in ("dam", other)]
            if all(sides):
                family.append((task, budget, sides))
        p_values = [minus(*sides).p_value for *_, sides in family]
        corrected = other == "other search"
        levels = holm_levels(p_values) if corrected else [0.95] * len(family)
        adjusted = holm(p_values) if corrected else [float("nan")] * len(family)
        for (task, budget, sides), level, p in zip(family, levels, adjusted, strict=True):
            about = {"task": task, "budget": budget, "contrast": f"dam - {other}"}
            found = as_line(minus(*sides, level), *sides)
            table.append(about | found | {"adjusted_p": p, "level": level})
    return pd.DataFrame(table)


def against_dense(lines: Mapping[Model, list[Line]]) -> pd.DataFrame:
    """DAM minus dense, with the 90 % interval whose lower end is held against the margin."""
    plan, table = PLAN["primary"], []
    for task, budget in product(plan["tasks"], plan["budgets"]):
        sides = [judged(lines, task, arm, budget) for arm in ("dam", "dense")]
        if all(sides):
            margin = plan["margin"][task]
            found, low = as_line(minus(*sides), *sides), minus(*sides, 0.9).low
            about = {"task": task, "budget": budget, "margin": margin}
            table.append(about | found | {"low_90": low, "within": low > -margin})
    return pd.DataFrame(table)


def scores(lines: Mapping[Model, list[Line]]) -> pd.DataFrame:
    """Each arm's mean score on each task at each budget, with an interval over models."""
    table = []
    tasks = dict.fromkeys(task for task, _ in lines)
    budgets = [*PLAN["primary"]["budgets"], *PLAN["secondary"]["budgets"]]
    for task, budget, arm in product(tasks, budgets, [*ARMS, "dense"]):
        own = judged(lines, task, arm, budget)
        if not own:
            continue
        mean = estimate([line["score"] for line in own.values()])
        densities = [
            [line[name] for line in own.values()] for name in ("density", "density_judged")
        ]
        table.append(
            {"task": task, "budget": budget, "arm": arm, "models": len(own), "score": mean.value,
             "low": mean.low, "high": mean.high, "density": np.mean(densities[0]),
             "density_judged": np.mean(densities[1])}
        )  # fmt: skip
    return pd.DataFrame(table)


def reuse(lines: Mapping[Model, list[Line]]) -> pd.DataFrame:
    """DAM's masks on models that they were not searched on, minus the mask that was."""
    table = []
    for task, budget in product(
        dict.fromkeys(task for task, _ in lines), PLAN["primary"]["budgets"]
    ):
        own = judged(lines, task, "dam", budget)
        kinds: dict[str, dict[int, list[float]]] = {}
        for seed in own:
            for line in scored(lines[task, seed], "judge", f"dam {budget}"):
                if line.get("arm") == "reuse":
                    source = re.search(r" of (\S+) \d+$", line["name"])
                    kind = source[1] if source else "consensus"
                    kinds.setdefault(kind, {}).setdefault(seed, []).append(line["score"])
        for kind, of_seed in kinds.items():
            means = {seed: float(np.mean(each)) for seed, each in of_seed.items()}
            gap = paired_difference(means, {seed: own[seed]["score"] for seed in means})
            table.append(
                {"task": task, "budget": budget, "masks of": kind, "models": gap.n,
                 "score": np.mean([*means.values()]), "difference": gap.value, "low": gap.low,
                 "high": gap.high}
            )  # fmt: skip
    return pd.DataFrame(table)


def hours(lines: Mapping[Model, list[Line]]) -> float:
    """The seconds of a core that all lines took, in hours."""
    return sum(line.get("seconds", 0) for own in lines.values() for line in own) / 3600
