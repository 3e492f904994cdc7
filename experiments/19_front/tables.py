"""What follows from the lines in results/: the proxy card, what was chosen, the verdict, and the
plan's secondary figures with intervals over searches."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from masksearch.analysis.pareto import dominated_volume
from masksearch.analysis.stats import estimate, holm, holm_levels
from masksearch.masks import FAMILIES

PLAN = tomllib.loads((Path(__file__).parent / "plan.toml").read_text(encoding="utf-8"))
ARMS: dict[str, dict[str, Any]] = PLAN["arms"]
CONTRASTS = [("dam", "random"), ("tpe", "random"), ("dam", "tpe")]
CONTROLS = ["dense", "random keys"]
CONSTANT, FULLEST = 0.0, 0.6  # the hypervolume's reference; the former is a constant's correlation
ROUNDING = 1e-9  # share by which a budget may be missed
PLACE = ["where", "arm", "budget"]
Line = dict[str, Any]  # of results/, or of a table


def read(path: Path) -> list[Line]:
    """The lines of a file; none where there is no file."""
    return list(map(json.loads, path.read_text("utf-8").splitlines())) if path.is_file() else []


def searches(results: Path) -> dict[tuple[str, int], list[Line]]:
    """Arm and number -> the lines of that search."""
    paths = [(arm, path) for arm in ARMS for path in sorted(results.glob(f"{arm}_?.jsonl"))]
    return {(arm, int(path.stem[-1])): read(path) for arm, path in paths}


def scored(line: Line) -> bool:
    """Whether a line is a mask with a score; gates have none."""
    return line["score"] is not None


def best_within(lines: Iterable[Line], budget: float) -> Line | None:
    """The best score within a budget, of equal ones the sparsest; None where nothing is within."""
    most = budget * (1 + ROUNDING)
    within = [line for line in lines if scored(line) and line["density"] <= most]
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
    return pd.DataFrame(
        {"arm": arm, "search": number, "trials": sum(map(scored, lines)),
         "tokens": sum(map(tokens, lines)), "seconds": sum(line["seconds"] for line in lines)}
        for (arm, number), lines in searches(results).items()
    )  # fmt: skip


# -- the proxy card ------------------------------------------------------------------------------
def card(lines: Iterable[Line]) -> pd.DataFrame:
    """Each mask's score with every seed, and its mean."""
    table = pd.DataFrame(lines).pivot(index=["name", "density"], columns="seed", values="score")
    table = table.rename_axis(["mask", "density"])
    return table.assign(mean=table.mean(axis=1)).sort_values("mean").reset_index()


def noise_and_spread(table: pd.DataFrame) -> tuple[float, float]:
    """Standard deviation of one mask over seeds, and of masks without what seeds make of it.

    One-way analysis of variance; the seed's own part (it is common to all masks) is no noise of a
    comparison of masks, so it is taken out first.
    """
    scores = table.drop(columns=["mask", "density", "mean"]).to_numpy()
    masks, seeds = scores.shape
    rest = scores - scores.mean(0) - scores.mean(1, keepdims=True) + scores.mean()
    noise = (rest**2).sum() / ((masks - 1) * (seeds - 1))
    between = scores.mean(1).var(ddof=1) - noise / seeds
    return noise**0.5, max(0.0, between) ** 0.5


# -- the verdict ---------------------------------------------------------------------------------
def chosen(results: Path, budgets: Sequence[float]) -> pd.DataFrame:
    """What each search chose at each budget on the rows of searches; absent where nothing fits."""
    rows, columns = [], {"density": "density", "score": "proxy", "setting": "setting"}
    for (arm, search), lines in searches(results).items():
        for budget in budgets:
            best = best_within(lines, budget) or {}
            row = {"arm": arm, "search": search, "budget": budget}
            rows.append(row | {name: best.get(of) for of, name in columns.items()})
    return pd.DataFrame(rows)


def judged(results: Path, task: str) -> pd.DataFrame:
    """A row a mask that all seeds have judged: its mean score, and their number."""
    lines = filter(scored, read(results / f"judged_{task}.jsonl"))
    table = pd.DataFrame(
        [(o["where"], *o["name"].rsplit(" ", 1), o["density"], o["score"]) for o in lines],
        columns=[*PLACE, "density", "score"],
    ).astype({"budget": float, "density": float, "score": float})
    means = table.groupby(PLACE).agg(
        density=("density", "first"), score=("score", "mean"), seeds=("score", "count")
    )
    return means[means["seeds"] == means["seeds"].max()].reset_index()


def beside_drawn(results: Path, task: str) -> pd.DataFrame:
    """The searches' masks as CPUs judged them, and what else the card has judged, or CPUs."""
    own, card = judged(results, task), judged(results, f"{task}_card")
    if card.empty:
        return own
    return pd.concat([own[own["where"] != "drawn"], card[card["where"] == "drawn"]])


def both_scores(picked: pd.DataFrame, scores: pd.DataFrame) -> pd.DataFrame:
    """What was chosen with its judged score, which is NaN where not all seeds have judged it."""
    picked = picked.assign(where="search " + picked["search"].astype(str))
    return picked.merge(scores[[*PLACE, "score"]], how="left", on=PLACE)


def by_search(picked: pd.DataFrame, scores: pd.DataFrame) -> pd.DataFrame:
    """Each search's mean over the budgets; a budget without a mask counts as a constant answer.

    A search that is not judged whole has no row.
    """
    both = both_scores(picked, scores)
    both.loc[both["proxy"].isna(), "score"] = CONSTANT
    means = both.groupby(["arm", "search"])["score"].agg(lambda own: own.mean(skipna=False))
    return means.dropna().reset_index()


def permutation(one: Sequence[float], other: Sequence[float]) -> float:
    """Exact two-sided p of a difference of means, over all ways to deal the searches."""
    how = {"n_resamples": np.inf, "alternative": "greater"}
    test = stats.permutation_test((one, other), lambda a, b: abs(a.mean() - b.mean()), **how)
    return float(test.pvalue)


def contrasts(means: pd.DataFrame) -> pd.DataFrame:
    """The three primary contrasts, with Holm's correction over them.

    Beside the plan's permutation stands Welch's t, which keeps its level where arms spread
    unequally, with its interval at the level of Holm's test.
    """
    rows, tests = [], []
    for one, other in CONTRASTS:
        a, b = (means.loc[means["arm"] == arm, "score"].tolist() for arm in (one, other))
        if len(a) > 1 and len(b) > 1:
            row = {"contrast": f"{one} - {other}", "difference": np.mean(a) - np.mean(b)}
            rows.append(row | {"p": permutation(a, b), "searches": f"{len(a)}, {len(b)}"})
            tests.append(stats.ttest_ind(a, b, equal_var=False))
    table, welch = pd.DataFrame(rows), [float(test.pvalue) for test in tests]
    if not rows:
        return table
    levels = zip(tests, holm_levels(welch), strict=True)
    ends = [test.confidence_interval(level) for test, level in levels]
    return table.assign(
        adjusted_p=holm(table["p"].tolist()),
        welch_p=welch,
        adjusted_welch_p=holm(welch),
        low=[low for low, _ in ends],
        high=[high for _, high in ends],
    )


# -- the plan's secondary figures ----------------------------------------------------------------
def row(measure: str, arm: str, mean: float, ends: Sequence[float], searches: int) -> Line:
    """One figure with the ends of its 95 % interval."""
    return dict(measure=measure, arm=arm, value=mean, low=ends[0], high=ends[1], searches=searches)


def over_searches(measure: str, arm: str, values: Iterable[float]) -> Line:
    """Mean over an arm's searches, by Student's t."""
    found = estimate(list(values))
    return row(measure, arm, found.value, (found.low, found.high), found.n)


def between(measure: str, one: str, other: str, values: pd.Series) -> Line:
    """Difference of two arms' means over searches, by Welch's t."""
    a, b = values[one], values[other]
    ends = stats.ttest_ind(a, b, equal_var=False).confidence_interval()
    return row(measure, f"{one} - {other}", float(a.mean() - b.mean()), ends, len(a) + len(b))


def volumes(scores: pd.DataFrame) -> pd.Series:
    """Each search's hypervolume, of what it had judged."""
    own = scores[scores["arm"].isin(ARMS)]
    gains = own.assign(score=own["score"] - CONSTANT, density=FULLEST - own["density"])
    groups = gains.groupby(["arm", "where"])[["score", "density"]]
    return groups.apply(lambda each: dominated_volume(each.to_numpy()))


def attained(scores: pd.DataFrame, densities: Sequence[float]) -> pd.DataFrame:
    """Of each arm, the score that half of its searches attain with no more than a density."""
    rows = []
    for (arm, _), own in scores[scores["arm"].isin(ARMS)].groupby(["arm", "where"]):
        for density in densities:
            best = own.loc[own["density"] <= density + ROUNDING, "score"].max()
            rows.append({"arm": arm, "density": density, "score": best})
    medians = pd.DataFrame(rows).fillna(CONSTANT).groupby(["arm", "density"])["score"].median()
    return medians.reset_index()


def rivals(
    results: Path, scores: pd.DataFrame, budgets: Sequence[float], heads: bool = False
) -> pd.DataFrame:
    """At each budget the drawn mask that is best on the rows of searches, and its judged score;
    beside it the best judged one (chosen by the score itself: an optimistic bound). With `heads`
    among whole heads and full last layers too (the plan's fourth amendment)."""
    lines = read(results / "drawn.jsonl")
    drawn = scores[(scores["where"] == "drawn") & ~scores["arm"].isin(CONTROLS)]
    if heads:
        lines += read(results / "drawn_heads.jsonl")
        drawn = pd.concat([drawn, judged(results, "heads")])
    names = drawn["arm"] + " " + drawn["budget"].astype(str)
    judged_at = dict(zip(names, drawn["score"], strict=True))
    rows = []
    for budget in budgets:
        best = best_within(lines, budget)
        if best is not None and best["name"] in judged_at:
            within = {line["name"] for line in lines if best_within([line], budget)}
            bound = max(judged_at[name] for name in within & judged_at.keys())
            rows.append((budget, best["name"], best["density"], judged_at[best["name"]], bound))
    return pd.DataFrame(rows, columns=["budget", "mask", "density", "judged", "bound"])


def above_families(results: Path, budgets: Sequence[float]) -> pd.DataFrame:
    """Each search of the card minus the best of the six published families within each budget, and
    in the mean over the budgets. Families are chosen by their judged scores, which favours them;
    they are one mask a budget, whose noise is left out."""
    scores = judged(results, "STS-B_card")
    families = scores[(scores["where"] == "drawn") & scores["arm"].isin(FAMILIES)]
    best = families.groupby("budget")["score"].max()
    gains = scores.set_index("arm")["score"] - scores["budget"].map(best).to_numpy()
    each = scores["budget"].to_numpy()
    means = by_search(chosen(results, budgets), scores).set_index("arm")["score"] - best.mean()
    values = {"mean": means} | {f"{at:g}": gains[each == at] for at in budgets}
    found = [over_searches(at, arm, of[[arm]]) for at, of in values.items() for arm in ARMS]
    return pd.DataFrame(found)


def proxy_rows(both: pd.DataFrame) -> Iterator[Line]:
    """How far the score on search rows can be trusted: regret of a choice among a search's four
    masks, and Kendall's tau-b with the judged score, all masks together and within a budget."""
    for arm, own in both.groupby("arm"):
        regrets = []
        for _, masks in own.groupby("search"):
            within = [masks["density"] <= budget * (1 + ROUNDING) for budget in masks["budget"]]
            best = [masks.loc[each, "score"].max() for each in within]
            regrets.append((best - masks["score"]).mean())
        yield over_searches("regret of the proxy", arm, regrets)
    groups = [("all budgets", both), *((f"{at:g}", own) for at, own in both.groupby("budget"))]
    for name, own in groups:
        tau = stats.kendalltau(own["proxy"], own["score"]).statistic
        yield row("tau-b of proxy and judged", name, tau, (np.nan, np.nan), len(own))


def on_one_device(results: Path, task: str, picked: pd.DataFrame) -> tuple[pd.DataFrame, ...]:
    """Scores of masks, and means of searches to compare with them: the card's where it has judged
    every search, as the plan's amendment has it, else the CPUs'."""
    cpu, card = (judged(results, name) for name in (task, f"{task}_card"))
    means, again = by_search(picked, cpu), by_search(picked, card)
    return (card, again) if len(again) == len(means) else (cpu, means)


def secondary(results: Path, budgets: Sequence[float], task: str = "STS-B") -> pd.DataFrame:
    """Every secondary figure that the lines allow so far."""
    scores, picked = judged(results, task), chosen(results, budgets)
    means = by_search(picked, scores)
    whole = [arm for arm in ARMS if (means["arm"] == arm).sum() > 1]
    values = {"score": means.set_index("arm")["score"], "hypervolume": volumes(scores)}
    rows = [over_searches(name, arm, of[arm]) for name, of in values.items() for arm in whole]
    for budget, own in scores[scores["arm"].isin(whole)].groupby("budget"):
        values[f"score at {budget:g}"] = own.set_index("arm")["score"]
    for one, other in CONTRASTS:
        if one in whole and other in whole:
            rows += [between(name, one, other, of) for name, of in values.items()]
    again = scores.merge(judged(results, f"{task}_card"), on=PLACE, suffixes=("", "_card"))
    if len(again) > 1:
        gaps = again["score_card"] - again["score"]
        rows.append(over_searches("score", "card - CPU, of masks", gaps))
    scores, means = on_one_device(results, task, picked)
    best = rivals(results, scores, budgets)
    drawn = scores[scores["where"] == "drawn"].groupby("arm")["score"]
    opposed = {arm: drawn.get_group(arm).mean() for arm in CONTROLS if arm in drawn.groups}
    if len(best) == len(budgets):
        opposed["the drawn, by search rows"] = best["judged"].mean()
        opposed["the drawn, by judged rows"] = best["bound"].mean()
    for name, score in opposed.items():
        gains = means.set_index("arm")["score"] - score
        rows += [over_searches("score", f"{arm} - {name}", gains[arm]) for arm in whole]
    for rival in best.itertuples():
        gains = scores[scores["budget"] == rival.budget].set_index("arm")["score"] - rival.judged
        at = f"score at {rival.budget:g}"
        name = "the drawn, by search rows"
        rows += [over_searches(at, f"{arm} - {name}", gains[[arm]]) for arm in whole]
    return pd.DataFrame([*rows, *proxy_rows(both_scores(picked, judged(results, task)).dropna())])


def save(table: pd.DataFrame, path: Path) -> None:
    """Writes a table of results/."""
    table.to_csv(path, index=False, float_format="%.5f", lineterminator="\n")


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
                if len(means := by_search(picked, scores)):
                    tables |= {f"searches_{name}": means, f"contrasts_{name}": contrasts(means)}
    if "searches_STS-B" in tables:
        tables["secondary"] = secondary(results, budgets)
    if "searches_STS-B_card" in tables:
        tables["families"] = above_families(results, budgets)
    for name, table in tables.items():
        save(table, results / f"{name}.csv")
        print(name, table.to_string(index=False), sep="\n", end="\n\n")
