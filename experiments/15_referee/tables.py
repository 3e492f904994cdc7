"""Results as small files in results/: every judged score with its densities and rows, and what
follows from them. What is stored there is read again, and what new runs have is added."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import masksearch as ms
from masksearch.analysis.row_scores import RowScores
from masksearch.analysis.stats import (
    PairedDifference,
    correct_family,
    judge_margins,
    paired_difference,
)
from masksearch.masks.measure import effective_density

PLAN = tomllib.loads((Path(__file__).parent / "plan.toml").read_text(encoding="utf-8"))
BUDGETS: list[float] = PLAN["budgets"]["densities"]
APART = PLAN["seeds"]["apart"]
KEYS = ["task", "arm", "budget", "search"]
ADDED = ("restore_star",)  # after scores had been seen: in no family
Judged = dict[int, RowScores]  # search seed -> scores of one mask, row by row


def write(out: Path, task: str, runs: Path, shape: ms.Shape) -> None:
    """Adds what the runs of a task have to `out`; the verdict is that of all that is there."""
    out.mkdir(parents=True, exist_ok=True)
    lines, path = list[dict[str, Any]](), out / f"rows_{task}.npz"
    kept = load(path) if path.is_file() else {}
    for run in sorted((runs / task / "judged").glob("*")):
        search, found = int(run.name), ms.Comparison.open(run)
        masks = {record.name: record.mask for record in found.records}
        for name, entry in found.entries.items():
            if (seed := search + APART) not in entry.scores:
                continue
            arm, _, budget = name.rpartition(" ") if name != "dense" else (name, "", "1")
            density = effective_density(masks[name], shape)
            line = {"task": task, "arm": arm, "budget": float(budget), "search": search}
            line |= {"density": 1 - entry.sparsity, "judged_density": density}
            lines.append(line | {"score": entry.scores[seed]})
            ((values,),) = [[*entry.rows[seed].scores.values()]]
            right = np.isin(values, (0, 1)).all()
            own = kept.setdefault((arm, budget), {})
            own[search] = values.astype(np.uint8 if right else np.float16)
    merge(out / "scores.csv", lines)
    stacks = {
        f"{arm}|{budget}|{','.join(map(str, sorted(own)))}": np.stack(
            [values for _, values in sorted(own.items())]
        )
        for (arm, budget), own in sorted(kept.items())
    }
    np.savez_compressed(path, **stacks)  # type: ignore[arg-type]
    areas, margins = verdict(out)
    areas.to_csv(out / "areas.csv", index=False, lineterminator="\n")
    margins.to_csv(out / "margins.csv", index=False, lineterminator="\n")
    print(areas.to_string(index=False), margins.to_string(index=False), sep="\n\n")


def merge(path: Path, lines: list[dict[str, Any]]) -> None:
    """Adds lines to a table; of lines with the same keys the new one stays."""
    old = [pd.read_csv(path)] if path.is_file() else []
    table = pd.concat([*old, pd.DataFrame(lines).round(5)], ignore_index=True)
    table = table.drop_duplicates(KEYS, keep="last").sort_values(KEYS, kind="stable")
    table.to_csv(path, index=False, lineterminator="\n")


def load(path: Path) -> dict[tuple[str, str], dict[int, np.ndarray]]:
    """(arm, budget) -> what each row says, by search seed."""
    found = {}
    for name, values in np.load(path).items():
        arm, budget, searches = name.split("|")
        found[arm, budget] = dict(zip(map(int, searches.split(",")), values, strict=True))
    return found


def read(out: Path, task: str) -> dict[tuple[str, str], Judged]:
    """(arm, budget) -> its rows by search seed."""
    return {
        name: {
            search: RowScores({"dev": values.astype(np.float64)}, {"dev": 1.0}, {"dev": task})
            for search, values in own.items()
        }
        for name, own in load(out / f"rows_{task}.npz").items()
    }


def area(arm: str, judged: Mapping[tuple[str, str], Judged]) -> Judged:
    """Row by row the area under score over the told density, divided by the range."""
    sides = [judged.get((arm, str(budget)), {}) for budget in BUDGETS]
    weights = [0.0] * len(BUDGETS)
    for at in range(len(BUDGETS) - 1):  # trapezoids
        width = (BUDGETS[at] - BUDGETS[at + 1]) / (BUDGETS[0] - BUDGETS[-1])
        weights[at], weights[at + 1] = weights[at] + width / 2, weights[at + 1] + width / 2
    found = {}
    for search in set.intersection(*map(set, sides)):
        parts = [w * side[search].scores["dev"] for w, side in zip(weights, sides, strict=True)]
        first = sides[0][search]
        found[search] = RowScores({"dev": np.sum(parts, axis=0)}, {"dev": 1.0}, first.digests)
    return found


def difference(
    mine: Judged, other: Judged, level: float = 0.95
) -> ms.analysis.stats.PairedDifference:
    """Mean of `mine` minus `other`, with an interval over pairs of models and over rows."""
    scores = [{seed: rows.score for seed, rows in each.items()} for each in (mine, other)]
    return paired_difference(*scores, level, rows_a=mine, rows_b=other)


def minus(dam: Judged, arm: tuple[str, Judged], level: float) -> PairedDifference:
    """An arm's areas minus DAM's."""
    return difference(arm[1], dam, level)


def verdict(out: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Each arm's area beside DAM's, Holm over the arms of a task; and what each mask loses."""
    areas, margins = list[dict[str, Any]](), list[dict[str, Any]]()
    for task in [task for task in PLAN["tasks"] if (out / f"rows_{task}.npz").is_file()]:
        judged = read(out, task)
        arms = [arm for arm in PLAN["arms"] if (arm, str(BUDGETS[0])) in judged]
        family = [(arm, area(arm, judged)) for arm in arms if arm not in ADDED]
        dam, *others = family  # the plan names DAM first
        beside = correct_family(others, partial(minus, dam[1]))
        for (arm, mine), (each, p) in zip(others, beside, strict=True):
            line = {"task": task, "arm": arm}
            line |= {"area": np.mean([rows.score for rows in mine.values()])}
            line |= {"minus_dam": each.value, "low": each.low, "high": each.high}
            areas.append(line | {"adjusted_p": float(f"{p:.3g}"), "pairs": each.n})
        margin, dense = PLAN["tasks"][task]["margin"], judged["dense", "1"]
        for arm in [*arms, "random keys", "random keys and [CLS]"]:
            shown = True
            for budget in BUDGETS:
                each = difference(judged[arm, str(budget)], dense)
                ((outcome, p),) = judge_margins([each], margin, 1)
                shown &= outcome in ("loses at most", "gains more than")
                line = {"task": task, "arm": arm, "budget": budget, "lost": -each.value}
                line |= {"low": -each.high, "high": -each.low, "margin": margin}
                margins.append(line | {"outcome": outcome, "shown_in_sequence": shown})
    return pd.DataFrame(areas).round(5), pd.DataFrame(margins).round(5)
