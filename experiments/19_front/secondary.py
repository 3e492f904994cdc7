"""The plan's secondary figures, each with an interval over searches.

python experiments/19_front/figures.py writes them, results/secondary.csv.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats
from tables import (
    ARMS,
    CONTRASTS,
    ROUNDING,
    beside_drawn,
    best_within,
    by_search,
    chosen,
    judged,
    read,
)

from masksearch.analysis.pareto import dominated_volume
from masksearch.analysis.stats import estimate

REFERENCE = {"score": 0.0, "density": 0.6}  # from which the hypervolume is measured
CONTROLS = ["dense", "random keys"]
RIVAL = ["budget", "mask", "density", "proxy", "judged", "best judged", "bound"]
Row = dict[str, Any]


def row(measure: str, arm: str, mean: float, ends: Sequence[float], searches: int) -> Row:
    """One figure with the ends of its 95 % interval."""
    return dict(measure=measure, arm=arm, value=mean, low=ends[0], high=ends[1], searches=searches)


def over_searches(measure: str, arm: str, values: Sequence[float]) -> Row:
    """Mean over an arm's searches, by Student's t."""
    found = estimate(values)
    return row(measure, arm, found.value, (found.low, found.high), found.n)


def between(measure: str, one: str, other: str, values: pd.Series) -> Row:
    """Difference of two arms' means over searches, by Welch's t."""
    a, b = values[one], values[other]
    ends = stats.ttest_ind(a, b, equal_var=False).confidence_interval()
    return row(measure, f"{one} - {other}", float(a.mean() - b.mean()), ends, len(a) + len(b))


def volumes(scores: pd.DataFrame) -> pd.Series:
    """Each search's hypervolume, of what it had judged."""
    found = scores[scores["arm"].isin(ARMS)]
    gains = found[["score"]] - REFERENCE["score"]
    gains["room"] = REFERENCE["density"] - found["density"]
    keys = [found["arm"], found["where"]]
    return gains.groupby(keys).apply(lambda own: dominated_volume(own.to_numpy()))


def attained(scores: pd.DataFrame, densities: Sequence[float]) -> pd.DataFrame:
    """Of each arm, the score that half of its searches attain with no more than a density."""
    rows = []
    for (arm, _), own in scores[scores["arm"].isin(ARMS)].groupby(["arm", "where"]):
        for density in densities:
            best = own.loc[own["density"] <= density + ROUNDING, "score"].max()
            rows.append({"arm": arm, "density": density, "score": best})
    table = pd.DataFrame(rows).fillna(REFERENCE["score"])
    return table.groupby(["arm", "density"])["score"].median().reset_index()


def rivals(results: Path, scores: pd.DataFrame, budgets: Sequence[float]) -> pd.DataFrame:
    """At each budget the drawn mask that is best on the rows of searches, and its judged score;
    beside it the best judged one (chosen by the score itself: an optimistic bound)."""
    lines = read(results / "drawn.jsonl")
    drawn = scores[(scores["where"] == "drawn") & ~scores["arm"].isin(CONTROLS)]
    names = drawn["arm"] + " " + drawn["budget"].astype(str)
    judged_at = dict(zip(names, drawn["score"], strict=True))
    rows = []
    for budget in budgets:
        best = best_within(lines, budget)
        if best is None or best["name"] not in judged_at:
            continue
        within = {each["name"] for each in lines if best_within([each], budget)}
        top = max(within & judged_at.keys(), key=judged_at.__getitem__)
        found = [best["name"], best["density"], best["score"], judged_at[best["name"]]]
        rows.append((budget, *found, top, judged_at[top]))
    return pd.DataFrame(rows, columns=RIVAL)


def proxy_rows(picked: pd.DataFrame, scores: pd.DataFrame) -> Iterator[Row]:
    """How far the score on search rows can be trusted: regret of a choice among a search's four
    masks, and Kendall's tau-b with the judged score, all masks together and within a budget."""
    own = scores.assign(search=scores["where"].str.removeprefix("search "))
    own = own[own["where"] != "drawn"].astype({"search": int})
    both = picked.merge(own.drop(columns="density"), on=["arm", "search", "budget"])
    regrets = []
    for (arm, search), masks in both.groupby(["arm", "search"]):
        for mask in masks.itertuples():
            allowed = masks[masks["density"] <= mask.budget * (1 + ROUNDING)]
            regrets.append((arm, search, allowed["score"].max() - mask.score))
    regret = pd.DataFrame(regrets, columns=["arm", "search", "regret"])
    for arm, values in regret.groupby(["arm", "search"])["regret"].mean().groupby("arm"):
        yield over_searches("regret of the proxy", arm, values.tolist())
    overall = stats.kendalltau(both["proxy"], both["score"]).statistic
    yield row("tau-b of proxy and judged", "all budgets", overall, (np.nan, np.nan), len(both))
    for budget, masks in both.groupby("budget"):
        tau = stats.kendalltau(masks["proxy"], masks["score"]).statistic
        yield row("tau-b of proxy and judged", f"{budget:g}", tau, (np.nan, np.nan), len(masks))


def on_one_device(results: Path, task: str, picked: pd.DataFrame) -> tuple[pd.DataFrame, ...]:
    """Scores of masks, and of searches to compare with them, as the plan's amendment says.

    Both are the card's where it has judged every search; else the searches are the CPUs', and what
    the card gives masks above the CPUs, if it is told from nothing, is taken off its scores.
    """
    scores = beside_drawn(results, task)
    searches, card = by_search(picked, scores), judged(results, f"{task}_card")
    again = by_search(picked, card) if len(card) else card
    if len(again) == len(searches):
        return card, again
    if len(gaps := device_gaps(results, task)) > 1:
        gap = estimate(gaps.tolist())
        drawn = scores["where"] == "drawn"
        if gap.low > 0 or gap.high < 0:
            scores.loc[drawn, "score"] -= gap.value
    return scores, searches


def device_gaps(results: Path, task: str) -> pd.Series:
    """Card minus CPU, of each mask that both have judged with all seeds."""
    keys = ["where", "arm", "budget"]
    own, card = (judged(results, name) for name in (task, f"{task}_card"))
    if card.empty:
        return pd.Series(dtype=float)
    both = own.merge(card, on=keys, suffixes=("", "_card"))
    return both["score_card"] - both["score"]


def secondary(results: Path, budgets: Sequence[float], task: str = "STS-B") -> pd.DataFrame:
    """Every secondary figure that the lines allow so far."""
    scores, picked = judged(results, task), chosen(results, budgets)
    searches = by_search(picked, scores).set_index("arm")["score"]
    whole = [arm for arm in ARMS if arm in searches and len(searches[[arm]]) > 1]
    rows = [over_searches("score", arm, searches[arm].tolist()) for arm in whole]
    volume = volumes(scores)
    rows += [over_searches("hypervolume", arm, volume[arm].tolist()) for arm in whole]
    for one, other in CONTRASTS:
        if one in whole and other in whole:
            rows.append(between("score", one, other, searches))
            rows.append(between("hypervolume", one, other, volume))
            for budget, own in scores.groupby("budget"):
                if len(own[own["arm"].isin([one, other])]) > 3:
                    values = own.set_index("arm")["score"]
                    rows.append(between(f"score at {budget:g}", one, other, values))
    if len(gaps := device_gaps(results, task)) > 1:
        rows.append(over_searches("score", "card - CPU, of masks", gaps.tolist()))
    others, found = on_one_device(results, task, picked)
    for name, score in opposed(results, others, budgets).items():
        own = found.set_index("arm")["score"] - score
        for arm in whole:
            rows.append(over_searches("score", f"{arm} - {name}", own[arm].tolist()))
    for rival in rivals(results, others, budgets).itertuples():
        at = others[others["budget"] == rival.budget].set_index("arm")["score"]
        for arm in whole:
            gains = (at[[arm]] - rival.judged).tolist()
            name = f"{arm} - the drawn, by search rows"
            rows.append(over_searches(f"score at {rival.budget:g}", name, gains))
    return pd.DataFrame([*rows, *proxy_rows(picked, scores)])


def opposed(results: Path, scores: pd.DataFrame, budgets: Sequence[float]) -> dict[str, float]:
    """Controls and drawn masks -> their mean over the budgets."""
    drawn = scores[scores["where"] == "drawn"].groupby("arm")["score"]
    found = {arm: drawn.get_group(arm).mean() for arm in CONTROLS if arm in drawn.groups}
    best = rivals(results, scores, budgets)
    if len(best) == len(budgets):
        found["the drawn, by search rows"] = best["judged"].mean()
        found["the drawn, by judged rows"] = best["bound"].mean()
    return found
