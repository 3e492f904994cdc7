"""What follows from the lines in results/: the proxy card, what was chosen, and the verdict.

python experiments/19_front/tables.py    # writes the tables of results/ again, and prints them
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from masksearch.analysis.stats import holm

HERE = Path(__file__).parent
PLAN = tomllib.loads((HERE / "plan.toml").read_text(encoding="utf-8"))
ARMS: dict[str, dict[str, Any]] = PLAN["arms"]
CONTRASTS = [("dam", "random"), ("tpe", "random"), ("dam", "tpe")]
CONSTANT = 0.0  # Pearson's correlation of a constant answer
ROUNDING = 1e-9  # share by which a budget may be missed
Line = dict[str, Any]


def read(path: Path) -> list[Line]:
    """The lines of a file; none where there is no file."""
    return list(map(json.loads, path.read_text("utf-8").splitlines())) if path.is_file() else []


def of_arms(results: Path) -> list[Line]:
    """The lines of all searches."""
    paths = [path for arm in ARMS for path in sorted(results.glob(f"{arm}_?.jsonl"))]
    return [line for path in paths for line in read(path)]


def scored(line: Line) -> bool:
    """Whether a line is a mask with a score; gates have none."""
    return line["score"] is not None


def best_within(lines: Iterable[Line], budget: float) -> Line | None:
    """The best score within a budget, of equal ones the sparsest; None where nothing is within."""
    within = [line for line in lines if line["density"] <= budget * (1 + ROUNDING)]
    return max(within, key=lambda line: (line["score"], -line["density"]), default=None)


# -- cost -----------------------------------------------------------------------------------------
def tokens(line: Line) -> int:
    """Tokens that a trial passed, a backward pass counted as two; gates need no task."""
    model, proxy, row = PLAN["model"], PLAN["proxy"], PLAN["budgets"]["tokens_a_row"]
    text = model["batch"] * model["length"]
    if not scored(line):
        steps = ARMS[line["arm"]]["settings"][line["setting"]]["config"]["steps"]
        return steps * text * 4  # forward and backward, and forward through the dense model
    task = proxy["epochs"] * proxy["rows"] * row * 3 + proxy["dev_rows"] * row
    return 0 if line["status"] == "reused" else proxy["steps"] * text * 4 + task


def costs(results: Path) -> pd.DataFrame:
    """What each search has used."""
    lines = of_arms(results)
    each = pd.DataFrame(
        {"arm": line["arm"], "search": line["search"], "trials": scored(line),
         "tokens": tokens(line), "seconds": line["seconds"]}
        for line in lines
    )  # fmt: skip
    return each.groupby(["arm", "search"], sort=False).sum().reset_index() if lines else each


# -- the proxy card ------------------------------------------------------------------------------
def card(lines: Iterable[Line]) -> pd.DataFrame:
    """Each mask's score with every seed, and its mean."""
    seeds = pd.DataFrame(
        {"mask": line["name"], "density": line["density"], "seed": line["seed"],
         "score": line["score"]}
        for line in lines
    )  # fmt: skip
    table = seeds.pivot(index=["mask", "density"], columns="seed", values="score")
    return table.assign(mean=table.mean(axis=1)).sort_values("mean").reset_index()


def noise_and_spread(table: pd.DataFrame) -> dict[str, float]:
    """Standard deviation of one mask over seeds, and of masks without what seeds make of it.

    One-way analysis of variance; the seed's own part (it is common to all masks) is no noise of a
    comparison of masks, so it is taken out first.
    """
    scores = table.drop(columns=["mask", "density", "mean"]).to_numpy()
    masks, seeds = scores.shape
    rest = scores - scores.mean(0) - scores.mean(1, keepdims=True) + scores.mean()
    noise = (rest**2).sum() / ((masks - 1) * (seeds - 1))
    between = scores.mean(1).var(ddof=1) - noise / seeds
    reliability = between / (between + noise) if between > 0 else 0.0
    return {"noise": noise**0.5, "spread": max(0.0, between) ** 0.5, "reliability": reliability}


# -- the verdict ---------------------------------------------------------------------------------
def chosen(results: Path, budgets: Sequence[float]) -> pd.DataFrame:
    """What each search chose at each budget on the rows of searches; absent where nothing fits."""
    rows = []
    every = list(filter(scored, of_arms(results)))
    for arm in ARMS:
        lines = [line for line in every if line["arm"] == arm]
        for search in sorted({line["search"] for line in lines}):
            for budget in budgets:
                best = best_within([o for o in lines if o["search"] == search], budget)
                row = {"arm": arm, "search": search, "budget": budget}
                row |= {"density": best["density"], "proxy": best["score"]} if best else {}
                rows.append(row | ({"setting": best["setting"]} if best else {}))
    return pd.DataFrame(rows)


def judged(results: Path, task: str) -> pd.DataFrame:
    """A row a mask that all seeds have judged: its mean score, and their number."""
    lines = pd.DataFrame(read(results / f"judged_{task}.jsonl"))
    if lines.empty:
        return lines
    lines = lines[lines["score"].notna()]
    lines[["arm", "budget"]] = lines["name"].str.rsplit(" ", n=1, expand=True)
    lines["budget"] = lines["budget"].astype(float)
    keys = ["where", "arm", "budget"]
    means = lines.groupby(keys).agg(
        density=("density", "first"), score=("score", "mean"), seeds=("score", "count")
    )
    whole = means["seeds"] == means["seeds"].max()
    return means[whole].reset_index()


def beside_drawn(results: Path, task: str) -> pd.DataFrame:
    """The searches' masks as CPUs judged them, and what else the card has judged, or CPUs."""
    own, card = judged(results, task), judged(results, f"{task}_card")
    if card.empty:
        return own
    return pd.concat([own[own["where"] != "drawn"], card[card["where"] == "drawn"]])


def by_search(picked: pd.DataFrame, scores: pd.DataFrame) -> pd.DataFrame:
    """Each search's mean over the budgets; a budget without a mask counts as a constant answer.

    A search that is not judged whole has no row.
    """
    rows = []
    for (arm, search), own in picked.groupby(["arm", "search"]):
        here = scores[(scores["arm"] == arm) & (scores["where"] == f"search {search}")]
        values = dict(zip(here["budget"], here["score"], strict=True))
        absent = set(own.loc[own["proxy"].isna(), "budget"])
        each = [CONSTANT if b in absent else values.get(b) for b in own["budget"]]
        if None not in each:
            rows.append({"arm": arm, "search": search, "score": float(np.mean(each))})
    return pd.DataFrame(rows, columns=["arm", "search", "score"])


def permutation(one: Sequence[float], other: Sequence[float]) -> float:
    """Exact two-sided p of a difference of means, over all ways to deal the searches."""

    def difference(a: Sequence[float], b: Sequence[float]) -> float:
        return abs(float(np.mean(a) - np.mean(b)))

    test = stats.permutation_test(
        (one, other), difference, n_resamples=np.inf, alternative="greater"
    )
    return float(test.pvalue)


def contrasts(searches: pd.DataFrame) -> pd.DataFrame:
    """The three primary contrasts, with Holm's correction over them."""
    rows = []
    for one, other in CONTRASTS:
        a, b = (searches.loc[searches["arm"] == arm, "score"].tolist() for arm in (one, other))
        if len(a) > 1 and len(b) > 1:
            row = {"contrast": f"{one} - {other}", "difference": np.mean(a) - np.mean(b)}
            rows.append(row | {"p": permutation(a, b), "searches": f"{len(a)}, {len(b)}"})
    table = pd.DataFrame(rows)
    return table.assign(adjusted_p=holm(table["p"].tolist())) if len(table) else table


def power(difference: float, deviation: float, *, searches: int = 5, draws: int = 400) -> float:
    """Chance that a true difference is shown at 5 % as the first of Holm's three."""
    random = np.random.default_rng(19)
    one = random.normal(difference, deviation, (draws, searches))
    other = random.normal(0.0, deviation, (draws, searches))
    shown = [permutation(a, b) * len(CONTRASTS) <= 0.05 for a, b in zip(one, other, strict=True)]
    return float(np.mean(shown))


def write(results: Path, budgets: Sequence[float]) -> None:
    """Every table that the lines allow so far."""
    picked = chosen(results, budgets)
    tables = {"chosen": picked, "costs": costs(results)}
    if lines := read(results / "card.jsonl"):
        tables["card"] = card(lines)
    for task in PLAN["judge"]["tasks"]:
        for name in (task, f"{task}_card"):
            if len(scores := judged(results, name)):
                tables[f"scores_{name}"] = scores
                if len(searches := by_search(picked, scores)):
                    tables[f"searches_{name}"] = searches
                    tables[f"contrasts_{name}"] = contrasts(searches)
    for name, table in tables.items():
        table.to_csv(
            results / f"{name}.csv", index=False, float_format="%.5f", lineterminator="\n"
        )
        print(name, table.to_string(index=False), sep="\n", end="\n\n")


if __name__ == "__main__":
    write(HERE / "results", PLAN["budgets"]["densities"])
