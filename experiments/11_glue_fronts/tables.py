"""Results as small files in results/: scores, their rows, differences, search curves, heads.

What is stored there is read again, and what new runs have is added: seeds and tasks may come from
several machines.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

import masksearch as ms
from masksearch.analysis.pareto import hypervolume_curve
from masksearch.analysis.row_scores import RowScores
from masksearch.analysis.runs import MaskRuns
from masksearch.analysis.stats import (
    CLAIM_SEEDS,
    PairedDifference,
    correct_family,
    paired_difference,
)
from masksearch.masks.lower import lower
from masksearch.masks.measure import pair_weights

MILESTONES = (5, 10, 20, 35, 70, 88, 175, 350)  # masks judged
SCORES, ROWS = "scores.csv", "rows_{}_{}.npz"  # of a task, and "own" or "fresh" models
RUN = ["task", "stage", "model", "mask", "search_seed"]  # what tells scores apart


class Scores(NamedTuple):
    """Of one arm: search seed -> score, its rows, and the mask's effective density."""

    score: dict[int, float]
    rows: dict[int, RowScores]
    density: dict[int, float]


Judged = dict[str, dict[str, Scores]]  # "own" or "fresh" model -> mask -> its scores


def read_scores(runs: Path, stage: str, seeds: dict[int, int]) -> Judged:
    """Where it was judged (`"own"` or `"fresh"` model) -> mask -> its scores by search seed.

    Args:
        runs: A task's; holds the folders `stage` and `<stage>_own`, a comparison for each seed.
        stage: What was done under the masks.
        seeds: Search seed -> seed of the fresh model.
    """
    found: Judged = {"own": {}, "fresh": {}}
    for seed, fresh in seeds.items():
        for model, folder, number in (("own", f"{stage}_own", seed), ("fresh", stage, fresh)):
            if (run := runs / folder / str(seed)).is_dir():
                for name, entry in ms.Comparison.open(run).entries.items():
                    if number in entry.scores:
                        add(found[model].setdefault(name, Scores({}, {}, {})), seed, entry, number)
    return found


def add(scores: Scores, seed: int, entry: MaskRuns, number: int) -> None:
    """Puts one run of a mask, that of model `number`, under a search seed."""
    scores.score[seed] = entry.scores[number]
    scores.density[seed] = 1 - entry.sparsity
    if number in entry.rows:
        scores.rows[seed] = entry.rows[number]


def score_rows(task: str, stage: str, found: Judged) -> list[dict[str, Any]]:
    """A line for each mask, search seed and kind of model."""
    return [
        {
            "task": task,
            "stage": stage,
            "model": model,
            "mask": name,
            "search_seed": seed,
            "effective_density": round(scores.density[seed], 4),
            "score": round(score, 5),
        }
        for model, masks in found.items()
        for name, scores in masks.items()
        for seed, score in scores.score.items()
    ]


def write_scores(out: Path, stage: str, task: str, found: Judged, rows_of: set[str]) -> None:
    """Adds scores, and the rows of some judged masks, to those that are stored in `out`."""
    merge(out / SCORES, score_rows(task, stage, found), RUN)
    for model, masks in found.items() if stage == "judged" else ():
        path = out / ROWS.format(task, model)
        kept = dict(np.load(path)) if path.is_file() else {}
        for name in masks.keys() & rows_of:
            for seed, rows in masks[name].rows.items():
                ((values, weight),) = ((rows.scores[p], w) for p, w in rows.weights.items())
                if weight != 1:
                    raise ValueError(f"{task}: the score is {weight} times its rows' mean")
                kept["|".join((task, model, name, str(seed)))] = pack(values)
        if kept:
            np.savez_compressed(path, **dict(sorted(kept.items())))


def pack(values: np.ndarray) -> np.ndarray:
    """Row scores in few bytes: right or wrong, or half precision."""
    return values.astype(np.uint8 if np.isin(values, (0, 1)).all() else np.float16)


def merge(path: Path, lines: Iterable[Mapping[str, Any]], keys: list[str]) -> None:
    """Adds lines to a table; of lines with the same keys the new one stays."""
    old = [pd.read_csv(path)] if path.is_file() else []
    table = pd.concat([*old, pd.DataFrame(lines)], ignore_index=True)
    if len(table):
        table = table.drop_duplicates(keys, keep="last")
        table.sort_values(keys, kind="stable").to_csv(path, index=False, lineterminator="\n")


def stored(results: Path) -> dict[str, Judged]:
    """Task -> the judged scores in results/, with their rows."""
    table = pd.read_csv(results / SCORES)
    rows: dict[str, np.ndarray] = {}
    for path in results.glob(ROWS.format("*", "*")):
        rows |= dict(np.load(path))
    found: dict[str, Judged] = {}
    for line in table[table.stage == "judged"].itertuples():
        task = found.setdefault(str(line.task), {"own": {}, "fresh": {}})
        scores = task[str(line.model)].setdefault(str(line.mask), Scores({}, {}, {}))
        seed, name = int(line.search_seed), f"{line.task}|{line.model}|{line.mask}"
        scores.score[seed], scores.density[seed] = float(line.score), float(line.effective_density)
        if f"{name}|{seed}" in rows:
            values = rows[f"{name}|{seed}"].astype(np.float64)
            scores.rows[seed] = RowScores({"dev": values}, {"dev": 1.0}, {"dev": str(line.task)})
    return found


def differences(
    found: Mapping[str, Judged], pairs: list[tuple[str, str]], model: str
) -> pd.DataFrame:
    """Paired differences over search seeds, corrected together (Holm) over tasks and pairs.

    Args:
        found: Task -> what `read_scores` gives.
        pairs: Mask, and what it is compared with.
        model: `"own"` or `"fresh"`.
    """
    family = [
        (task, mask, other)
        for task in found
        for mask, other in pairs
        if enough(found[task][model], mask) and enough(found[task][model], other)
    ]

    def difference(member: tuple[str, str, str], level: float) -> PairedDifference:
        task, mask, other = member
        mine, others = found[task][model][mask], found[task][model][other]
        rows = {"rows_a": mine.rows, "rows_b": others.rows}
        return paired_difference(mine.score, others.score, level, **rows)

    return pd.DataFrame(
        {
            "task": task,
            "model": model,
            "mask": mask,
            "against": other,
            "difference": round(d.value, 5),
            "low": round(d.low, 5),
            "high": round(d.high, 5),
            "adjusted_p": float(f"{p:.4g}"),
            "seeds": d.n,
        }
        for (task, mask, other), (d, p) in zip(
            family, correct_family(family, difference), strict=True
        )
    )


def enough(masks: dict[str, Scores], name: str) -> bool:
    """Whether a mask has the seeds that a claim needs."""
    return name in masks and len(masks[name].score) >= CLAIM_SEEDS


def lost(found: Mapping[str, Judged], budgets: list[float], arms: list[str]) -> pd.DataFrame:
    """What each arm's masks lose of dense's score on fresh models: single 95 % intervals."""
    pairs = [(f"{arm} {budget}", "dense") for arm in arms for budget in budgets]
    single = [differences({task: judged}, [pair], "fresh") for task, judged in found.items()
              for pair in pairs]  # fmt: skip
    return pd.concat(single, ignore_index=True).drop(columns=["model", "against"], errors="ignore")


def curve_rows(task: str, arm: str, seed: int, study: ms.Study) -> Iterator[dict[str, Any]]:
    """Hypervolume on search rows after so many masks; the training of gates is not counted."""
    judged = [r for r in study.records() if r.mask is not None]
    curve = hypervolume_curve(judged, study.objectives)
    for count in sorted({*MILESTONES, len(curve)}):
        if 0 < count <= len(curve):
            row = {"task": task, "arm": arm, "search_seed": seed, "masks": count}
            yield row | {"hypervolume": round(curve[count - 1].hypervolume, 5)}


def head_rows(task: str, seed: int, mask: ms.Mask, shape: ms.Shape) -> Iterator[dict[str, Any]]:
    """What a mask keeps in each head of the non-padding query-key pairs."""
    weights = pair_weights(shape).expand(shape.layers, 1, -1, -1)
    kept = (lower(mask, shape) * weights).sum((-2, -1)) / weights.sum((-2, -1))
    for layer in range(shape.layers):
        for head in range(shape.heads):
            row = {"task": task, "search_seed": seed, "layer": layer, "head": head}
            yield row | {"kept": round(float(kept[layer, head]), 4)}
