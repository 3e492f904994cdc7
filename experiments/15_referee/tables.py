"""Results as small files in results/: every judged score with its densities and rows, and what
follows from them. What is stored there is read again, and what new runs have is added. The plan's
amendment is in amended/; its verdict is written once all of its pairs are judged."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
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
AMENDED = PLAN["amendment"]
BUDGETS: list[float] = PLAN["budgets"]["densities"]
APART = PLAN["seeds"]["apart"]
KEYS = ["task", "arm", "budget", "search"]
ADDED = ("restore_star",)  # after scores had been seen: in no family
Judged = dict[int, RowScores]  # search seed -> scores of one mask, row by row


def write(out: Path, task: str, runs: Path, shape: ms.Shape) -> None:
    """Adds what the runs of a task have to `out`; the verdict is that of all that is there, of the
    amendment's that of both folders."""
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
    amended = out.name == "amended"
    if amended and (missing := unjudged(out)):
        print(f"not judged yet: {', '.join(missing)}; the amendment's figures come when all is")
        return
    found = {"contrasts": contrasts(out)} if amended else {}
    found |= dict(zip(("areas", "margins"), verdict(out), strict=True))
    for name, table in found.items():
        if table.empty:  # the older arms did not run anew
            continue
        table.to_csv(out / f"{name}.csv", index=False, lineterminator="\n")
        print(table.to_string(index=False))


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


def amended_scores(results: Path) -> pd.DataFrame:
    """The scores on the amendment's pairs; of an arm that ran anew there its new ones."""
    both = pd.concat([pd.read_csv(results / f"{own}scores.csv") for own in ("", "amended/")])
    both = both.drop_duplicates(KEYS, keep="last")
    pairs = AMENDED["seeds"]
    return both[[row.search in pairs.get(row.task, ()) for row in both.itertuples()]]


def read(out: Path, task: str) -> dict[tuple[str, str], Judged]:
    """(arm, budget) -> its rows by search seed; in the folder of the amendment the others too."""
    found = read(out.parent, task) if out.name == "amended" else {}
    path = out / f"rows_{task}.npz"
    for name, own in load(path).items() if path.is_file() else ():
        found[name] = found.get(name, {}) | {  # of an arm that ran anew what is new counts
            search: RowScores({"dev": values.astype(np.float64)}, {"dev": 1.0}, {"dev": task})
            for search, values in own.items()
        }
    return found


def weights(budgets: Sequence[float]) -> list[float]:
    """Of the score within each budget in the area: trapezoids, divided by the range."""
    found = [0.0] * len(budgets)
    for at in range(len(budgets) - 1):
        width = (budgets[at] - budgets[at + 1]) / (budgets[0] - budgets[-1])
        found[at], found[at + 1] = found[at] + width / 2, found[at + 1] + width / 2
    return found


def area(
    arm: str, judged: Mapping[tuple[str, str], Judged], budgets: Sequence[float] = BUDGETS
) -> Judged:
    """Row by row the area under score over the told density, divided by the range."""
    sides = [judged.get((arm, str(budget)), {}) for budget in budgets]
    shares, found = weights(budgets), {}
    for search in set.intersection(*map(set, sides)):
        parts = [w * side[search].scores["dev"] for w, side in zip(shares, sides, strict=True)]
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
    for task in PLAN["tasks"]:
        path = out / f"rows_{task}.npz"
        if not path.is_file() or ("gates", str(BUDGETS[0])) not in load(path):
            continue  # nothing of these arms is new there
        judged = read(out, task)
        arms = [arm for arm in PLAN["arms"] if (arm, str(BUDGETS[0])) in judged]
        common = set.intersection(*(set(area(arm, judged)) for arm in arms))  # the pairs of all
        judged = {name: {s: own[s] for s in own if s in common} for name, own in judged.items()}
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


# -- the amendment -------------------------------------------------------------------------------
def store_choosing(path: Path, task: str, search: int, run: Path) -> None:
    """Adds the scores of a comparison on rows that judge nothing, by arm and budget."""
    lines = list[dict[str, Any]]()
    for name, entry in ms.Comparison.open(run).entries.items():
        arm, _, budget = name.rpartition(" ")
        line = {"task": task, "arm": arm, "budget": float(budget), "search": search}
        lines.append(line | {"density": 1 - entry.sparsity, "score": entry.scores[search]})
    path.parent.mkdir(parents=True, exist_ok=True)
    merge(path, lines)


def chosen_areas(path: Path, task: str) -> pd.Series[float]:
    """Area of each arm on rows that judge nothing, mean over searches."""
    table = pd.read_csv(path)
    table = table[table.task == task].pivot(index=("arm", "search"), columns="budget")["score"]
    return (table[BUDGETS] @ weights(BUDGETS)).groupby("arm").mean()


def best_setting(out: Path, arm: str) -> int:
    """The setting of a swept arm with the largest area, the first of equals."""
    areas = chosen_areas(out / "sweep.csv", AMENDED["sweep_task"])
    settings = range(len(AMENDED["sweep"][arm]))
    return max(settings, key=lambda setting: areas[f"{arm} {setting}"])


def best_head(out: Path, task: str) -> str:
    """The added head arm with the largest area on rows that judge nothing."""
    return str(chosen_areas(out / "choosing.csv", task).idxmax())


def arms_of(out: Path, task: str, search: int) -> list[str]:
    """The arms that run on a pair: where its dense model, judged anew, has not the stored scores,
    those that primary differences need run anew, too."""
    order: list[str] = AMENDED["order"][task]
    sides = [
        load(path).get(("dense", "1"), {}).get(search) if path.is_file() else None
        for path in (out.parent / f"rows_{task}.npz", out / f"rows_{task}.npz")
    ]
    anew = all(side is not None for side in sides) and not np.array_equal(*sides)
    return [*dict.fromkeys([*order, *(("dam", "fisher_rounds") if anew else ())])]


def unjudged(out: Path) -> list[str]:
    """The amendment's arms and searches that are not judged, in the order of its tasks."""
    missing = []
    for task, seeds in AMENDED["seeds"].items():
        path = out / f"rows_{task}.npz"
        judged, new = read(out, task), load(path) if path.is_file() else {}
        for seed in seeds:
            anew = arms_of(out, task, seed)
            for arm in dict.fromkeys(("dam", "fisher_rounds", *anew)):
                own = new if arm in anew else judged
                if any(seed not in own.get((arm, str(budget)), {}) for budget in BUDGETS):
                    missing.append(f"{task} {arm} {seed}")
    return missing


def contrasts(out: Path) -> pd.DataFrame:
    """The amendment's primary differences of areas, Holm over them; the same over all budgets but
    the last; and, each by itself, those of every added arm to DAM and to effects in rounds."""
    judged = {task: read(out, task) for task in AMENDED["seeds"]}
    best = {task: best_head(out, task) for task in judged}
    primary = [
        (task, best[task] if arm == "best head arm" else arm, other)
        for task, arm, other in AMENDED["primary"]
    ]
    rivals = [("dam", "fisher_rounds")]
    rivals += [(arm, other) for arm in AMENDED["arms"] for other in ("dam", "fisher_rounds")]
    alone = [(task, *each) for task in judged for each in rivals]

    def minus_other(
        each: tuple[str, str, str], level: float = 0.95, budgets: Sequence[float] = BUDGETS
    ) -> PairedDifference:
        task, *arms = each
        seeds = AMENDED["seeds"][task]
        sides = [area(arm, judged[task], budgets) for arm in arms]
        return difference(*({seed: side[seed] for seed in seeds} for side in sides), level=level)

    found = [
        ("primary", each, *line)
        for each, line in zip(primary, correct_family(primary, minus_other), strict=True)
    ]
    for kind, family, budgets in (
        ("without the last budget", primary, BUDGETS[:-1]),
        ("alone", alone, BUDGETS),
    ):
        lines = [minus_other(each, budgets=budgets) for each in family]
        found += [
            (kind, each, line, line.p_value) for each, line in zip(family, lines, strict=True)
        ]
    return pd.DataFrame(
        {
            **{"kind": kind, "task": task, "arm": arm, "minus": other, "pairs": line.n},
            **{"value": line.value, "low": line.low, "high": line.high, "p": float(f"{p:.3g}")},
        }
        for kind, (task, arm, other), line, p in found
    ).round(5)
