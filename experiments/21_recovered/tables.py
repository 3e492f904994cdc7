"""What follows from the lines of results/: what is chosen, and what the plan compares.

python experiments/21_recovered/tables.py     # writes results/*.csv, once all seeds are judged
"""

from __future__ import annotations

import base64
import json
import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from masksearch.analysis.row_scores import RowScores
from masksearch.analysis.stats import (
    PairedDifference,
    estimate,
    holm,
    holm_levels,
    paired_difference,
)

HERE = Path(__file__).parent
RESULTS = HERE / "results"
PLAN = tomllib.loads((HERE / "plan.toml").read_text(encoding="utf-8"))
CONTROLS = ("dense", "random keys")
Line = dict[str, Any]  # of results/, or of a table


def read(path: Path) -> list[Line]:
    """The lines of a file; none where there is no file."""
    return list(map(json.loads, path.read_text("utf-8").splitlines())) if path.is_file() else []


def all_lines(results: Path = RESULTS) -> dict[int, list[Line]]:
    """Seed -> its lines."""
    return {
        int(path.stem.removeprefix("seed_")): read(path) for path in results.glob("seed_?.jsonl")
    }


def judged(lines: Iterable[Line], steps: str, half: str) -> dict[str, Line]:
    """Name -> line of the masks that were scored after those steps on those rows."""
    return {
        line["name"]: line
        for line in lines
        if line["stage"] == "judge"
        and (line["steps"], line["half"]) == (steps, half)
        and line["score"] is not None
    }


# -- what is chosen, on search rows ------------------------------------------------------------
def best(lines: Iterable[Line]) -> Line | None:
    """The best score of a search's masks, of equal ones the sparsest; None without one."""
    scored = [line for line in lines if line["score"] is not None]
    return max(scored, key=lambda line: (line["score"], -line["density"]), default=None)


def by_score(scored: dict[str, Line], budget: float) -> list[str]:
    """Names of the hand-designed masks of a budget, the best first."""
    arms = (*PLAN["arms"], *CONTROLS)
    own = [n for n in scored if n.endswith(f" {budget}") and not n.startswith(arms)]
    return sorted(own, key=lambda name: (-scored[name]["score"], scored[name]["density"]))


def best_hand(lines: Iterable[Line], budget: float) -> list[str]:
    """Names of the hand-designed masks, the best after a trial's recovery first."""
    return by_score(judged(lines, "trial", "search"), budget)


def preferred(lines: Iterable[Line], budget: float) -> str:
    """The hand-designed mask whose full recovery is best on search rows."""
    return by_score(judged(lines, "full", "search"), budget)[0]


def chosen(lines: Sequence[Line], arm: str, budget: float) -> Line | None:
    """The line that judges an arm's mask of a budget; None while there is none.

    Args:
        lines: Of one seed.
        arm: A search's; "hand" or "hand, longer": the hand-designed mask that search rows prefer
            after a full recovery; "hand, best": the best one on judging rows, an optimistic bound;
            "hand, fixed": the amendment's, after the longer schedule; a control's.
        budget: Of the mask; 1 of dense attention.
    """
    full = judged(lines, "full", "test")
    if arm == "hand, best":
        return best(full[name] for name in by_score(full, budget))
    steps = "longer" if arm in ("hand, longer", "hand, fixed") else "full"
    if arm == "hand, fixed":
        name = f"{PLAN['amendment']['mask']} {budget}"
    elif arm.startswith("hand"):
        if not by_score(judged(lines, "full", "search"), budget):
            return None
        name = preferred(lines, budget)
    else:
        name = f"{arm} {budget:g}"
    return judged(lines, steps, "test").get(name)


def scored_after(lines: Sequence[Line], arm: str, budget: float, steps: str = "") -> Line | None:
    """As `chosen`; with `steps` the line of the same mask after those ("none": as it is)."""
    line = chosen(lines, arm, budget)
    return judged(lines, steps, "test").get(line["name"]) if line and steps else line


# -- what is compared --------------------------------------------------------------------------
@dataclass(frozen=True)
class Arm:
    """An arm's score on judging rows, by seed, and the same row by row."""

    scores: dict[int, float]
    rows: dict[int, RowScores]


def rows_of(line: Line) -> RowScores:
    """The scores row by row of a line."""
    values = np.frombuffer(base64.b85decode(line["rows"]), "<f2").astype(np.float64)
    return RowScores({PLAN["task"]: values}, {PLAN["task"]: 1.0}, {PLAN["task"]: PLAN["task"]})


def over_budgets(
    lines: dict[int, list[Line]], arm: str, budgets: Sequence[float], steps: str = ""
) -> Arm:
    """An arm's mean over budgets, of the seeds that have judged it at all of them; with `steps`,
    the same masks after those ("none": as they are)."""
    found = Arm({}, {})
    for seed, own in sorted(lines.items()):
        each = [line for budget in budgets if (line := scored_after(own, arm, budget, steps))]
        if len(each) == len(budgets):
            found.scores[seed] = float(np.mean([line["score"] for line in each]))
            found.rows[seed] = RowScores.mean([rows_of(line) for line in each])
    return found


def minus(one: Arm, other: Arm, level: float = 0.95) -> PairedDifference:
    """The paired difference of two arms, over seeds and rows."""
    return paired_difference(one.scores, other.scores, level, rows_a=one.rows, rows_b=other.rows)


def contrast(name: str, found: PairedDifference) -> Line:
    """A row of a table of differences."""
    return {"contrast": name, "difference": found.value, "low": found.low, "high": found.high,
            "p": found.p_value, "seeds": found.n}  # fmt: skip


def primary(lines: dict[int, list[Line]]) -> pd.DataFrame:
    """The two planned contrasts, with Holm's adjusted p and intervals at its levels, and the
    headline, which is in no family."""
    plan = PLAN["primary"]
    pairs = [plan["against_hand"], plan["against_random"]]
    arms = [[over_budgets(lines, arm, plan["budgets"]) for arm in pair] for pair in pairs]
    p_values = [minus(*sides).p_value for sides in arms]
    rows = [
        contrast(" - ".join(pair), minus(*sides, level)) | {"adjusted_p": p, "level": level}
        for pair, sides, p, level in zip(
            pairs, arms, holm(p_values), holm_levels(p_values), strict=True
        )
    ]
    ends = plan["headline"]["arm"], plan["headline"]["opponent"]
    sides = [over_budgets(lines, arm, [budget]) for arm, budget in ends]
    name = " - ".join(f"{arm} {budget}" for arm, budget in ends)
    return pd.DataFrame([*rows, contrast(name, minus(*sides)) | {"level": 0.95}])


def secondary(lines: dict[int, list[Line]]) -> pd.DataFrame:
    """DAM's differences at each budget of the floor after recovery and as masks are, with single
    intervals; "hand, longer" is "hand" as it is."""
    others = ("hand, longer", "hand", "hand, best", "random", "random keys", "dense")
    table = []
    for budget, steps, other in product(PLAN["floor"]["budgets"], ("", "none"), others):
        if (steps, other) != ("none", "hand, longer"):
            dam = over_budgets(lines, "dam", [budget], steps)
            rival = over_budgets(lines, other, [1 if other == "dense" else budget], steps)
            about = {"budget": budget, "steps": steps or "full"}
            table.append(contrast(f"dam - {other}", minus(dam, rival)) | about)
    return pd.DataFrame(table)


def by_seed(lines: dict[int, list[Line]], arm: str, budget: float) -> list[float]:
    """An arm's score on each dense model, after recovery."""
    found = over_budgets(lines, arm, [budget]).scores
    return [found[seed] for seed in sorted(found)]


def hours(lines: dict[int, list[Line]]) -> float:
    """The seconds of the plan's runs, which shared two cores with others, in hours; without those
    of the amendment."""
    plan = PLAN["amendment"]
    late = ("longer", f"{plan['mask']} {plan['budget']}")
    own = [
        line
        for seed, each in lines.items()
        for line in each
        if seed not in plan["seeds"] or (line.get("steps"), line.get("name")) != late
    ]
    return sum(line["seconds"] or 0 for line in own) / 3600


def scores(lines: dict[int, list[Line]], steps: str = "") -> pd.DataFrame:
    """Each arm's mean score at each budget after recovery, with an interval over seeds; with
    `steps`, the same masks after those ("none": as they are), where they were scored so."""
    table = []
    arms = [*PLAN["arms"], "hand", "hand, longer", "hand, best", *CONTROLS]
    for arm, budget in product(arms, [*PLAN["budgets"], 1.0]):
        every = [scored_after(each, arm, budget, steps) for each in lines.values()]
        own = [line for line in every if line]
        if not own:
            continue
        mean = estimate([line["score"] for line in own])
        table.append(
            {"arm": arm, "budget": budget, "seeds": len(own), "score": mean.value, "low": mean.low,
             "high": mean.high, "density": np.mean([line["density"] for line in own])}
        )  # fmt: skip
    return pd.DataFrame(table)
