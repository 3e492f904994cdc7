"""The tables of experiment 20: differences from one window, with their tests; correlations.

What is judged is a search's mask, on rows. The searches of an arm (samples of documents) and the
rows are both draws from more: `paired_difference` has the variance of both.
"""

from __future__ import annotations

import tomllib
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import spearmanr

from masksearch.analysis.row_scores import RowScores
from masksearch.analysis.stats import PairedDifference, paired_difference

PLAN = tomllib.loads((Path(__file__).parent / "plan.toml").read_text(encoding="utf-8"))
CELL = ["sample", "budget", "arm"]
COUNTS = 0.75  # of its loss behind another row's context, at most
DRAWS = 2000  # of masks, for the interval of a rank correlation


def write(out: Path) -> None:
    """differences.csv, means.csv and correlations.csv, from what was judged so far."""
    lines, means = [], []
    for kind, stage in (("planted", "judge"), ("smollm2", "judge"), ("smollm2", "longest")):
        table = read(out, kind, stage)
        if table.empty:
            continue
        by = ["decoder", "budget", "arm"]
        each = table.drop(columns=["row", "sample"]).groupby(by).mean().reset_index()
        means.append(each.assign(stage=stage))
        for budget, part in table[table.budget < 1].groupby("budget"):
            for arm in sorted({*part.arm} - {"uniform"}):
                for value in ("tasks", "right", "text"):
                    apart = minus(part, arm, value)
                    about = {"stage": stage, "decoders": kind, "budget": budget, "arm": arm}
                    found = {"difference": apart.value, "low": apart.low, "high": apart.high}
                    found |= {"p": apart.p_value, "searches": apart.n}
                    lines.append({**about, "value": value, **found})
    pd.DataFrame(lines).to_csv(out / "differences.csv", index=False, float_format="%.5g")
    pd.concat(means).to_csv(out / "means.csv", index=False, float_format="%.5g")
    correlations(out).to_csv(out / "correlations.csv", index=False, float_format="%.4g")


def read(out: Path, kind: str, stage: str) -> pd.DataFrame:
    """What was judged on decoders of a kind, a line for each row; `tasks` is the mean of those
    that count; of all where none does."""
    parts = [pd.DataFrame()]
    for path in sorted(out.glob(f"{stage}_{kind}*.csv")):
        name = path.stem.split("_")[1]
        loss = pd.read_csv(out / f"check_{name}.csv").set_index("form")
        table = pd.read_csv(path).assign(decoder=name)
        tasks = [c for c in table if c not in (*CELL, "row", "decoder", "text", "right")]
        counted = [t for t in tasks if loss.at["dense", t] <= COUNTS * loss.at["without", t]]
        parts.append(table.assign(tasks=table[counted or tasks].mean(axis=1)))
    return pd.concat(parts)


def minus(part: pd.DataFrame, arm: str, value: str, base: str = "uniform") -> PairedDifference:
    """The mean difference of two arms at one budget; of an arm that is drawn, its one mask."""
    mine, others = scores(part, arm, value), scores(part, base, value)
    others = {sample: others.get(sample, others[0]) for sample in mine}
    ours, theirs = ({n: each.score for n, each in arms.items()} for arms in (mine, others))
    return paired_difference(ours, theirs, rows_a=mine, rows_b=others, seedless=len(mine) == 1)


def scores(part: pd.DataFrame, arm: str, value: str) -> dict[int, RowScores]:
    """Sample -> the scores of what its search has found, row by row, of each decoder alike."""
    own, found = part[part.arm == arm].dropna(subset=value), dict[int, RowScores]()
    for sample, each in own.groupby("sample"):
        rows = {name: of[value].to_numpy() for name, of in each.groupby("decoder")}
        weights, digests = dict.fromkeys(rows, 1 / len(rows)), dict.fromkeys(rows, "")
        found[sample] = RowScores(rows, weights, digests)
    return found


def correlations(out: Path) -> pd.DataFrame:
    """Spearman's rank correlation of text and tasks over the first masks that random search has
    judged, with an interval over masks drawn again."""
    lines, draw = [], np.random.default_rng(0)
    for path in sorted(out.glob("trials_*_random.csv")):
        table = pd.read_csv(path)
        table = table[(table["sample"] == 0) & (table.budget == table.budget.iloc[0])]
        table = table[table.nll.notna()].head(PLAN["analysis_of_masks"]["masks"])
        tasks = table[[n for n in table if n.startswith("nll/")]].mean(axis=1).to_numpy()
        text, count = table.nll.to_numpy(), len(table)
        again = [spearmanr(text[of], tasks[of]).statistic
                 for of in draw.integers(count, size=(DRAWS, count))]  # fmt: skip
        low, high = np.nanquantile(again, [0.025, 0.975])
        lines.append({"decoder": path.stem.split("_")[1], "masks": count, "low": low,
                      "rank": spearmanr(text, tasks).statistic, "high": high})  # fmt: skip
    return pd.DataFrame(lines)
