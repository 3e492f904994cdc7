"""What the pages say of this experiment, from its plan and from results/: see
experiments/verify.py."""

import runpy
from pathlib import Path
from types import SimpleNamespace

import pandas as pd

from experiments.verify import rows, sentences

HERE = "experiments/23_no_labels/README.md"
RESULTS = Path(__file__).parent / "results"
ours = SimpleNamespace(**runpy.run_path(str(Path(__file__).parent / "contrasts.py")))
PLAN, PARTS = ours.PLAN, ours.PARTS
lines = ours.all_lines(RESULTS)
kept = ours.kept(lines).set_index(["of", "arm", "budget"]).sort_index()
apart = pd.read_csv(RESULTS / "embedder.csv")
apart = apart.set_index(["part", "contrast", "budget"]).sort_index()
sides = pd.read_csv(RESULTS / "sides.csv").set_index(["arm", "budget"])
BUDGETS = PLAN["embedder"]["budgets"]
PERCENT = [100 * budget for budget in BUDGETS]
TITLES = {"squad": "SQuAD", "sts-b": "STS-B"}
DRAWN = f"dam - {ours.HAND}"


def both(part: str, arm: str) -> list[float]:
    """The mean score of an arm's searches at both budgets."""
    return [kept.loc[(part, arm, budget), "score"] for budget in BUDGETS]


def row(part: str, budget: float) -> list[float]:
    """A row of the table."""
    gap = apart.loc[(part, DRAWN, budget)]
    p = gap["p"] if pd.isna(gap["adjusted_p"]) else gap["adjusted_p"]
    means = [kept.loc[(part, arm, budget), "score"] for arm in ("dense", "dam", ours.HAND)]
    return [*means, *gap[["difference", "low", "high"]], p, gap["ahead"], gap["models"]]


def of_search(rows: str, arm: str) -> float:
    """The score of search 0 at the smaller budget."""
    return ours.named(lines["squad", 0], rows, f"{arm} {BUDGETS[1]}")["score"]


SEARCHES = PARTS["squad"]["seeds"]
OTHERS = ("tpe", "random", "attention of pairs")
SCORED = ("dam", "attention of pairs", "tpe")
assert (apart.loc[("squad", DRAWN), "ahead"] == 0).all()
assert {*kept.loc[("squad", ours.HAND), "mask"]} == {
    f"hand {budget}: widest window and special tokens" for budget in BUDGETS
}
assert all(
    one < min(line["score"] for line in ours.judged(lines, "squad", "dam", budget).values())
    for one, budget in zip(both("squad", "consensus"), BUDGETS, strict=True)
)
PAGE = {
    "Put on all-MiniLM-L6-v2 as it is, DAM's masks keep {} and {} on STS-B, where dense attention "
    "has {}, with {} and {} % of the pairs of query and key; the best drawn ones {} and {}.": [
        *both("sts-b", "dam"),
        *(kept.loc[("sts-b", "dense", BUDGETS[0]), "score"], *PERCENT),
        *both("sts-b", ours.HAND),
    ],
    "On SQuAD DAM's keep {} and {} of {}, and the best drawn mask, the widest window with the "
    "special tokens, {} and {}: DAM is behind in each of {} searches at both budgets.": [
        *both("squad", "dam"),
        kept.loc[("squad", "dense", BUDGETS[0]), "score"],
        *both("squad", ours.HAND),
        len(SEARCHES),
    ],
    "{} beginnings of WikiText's paragraphs,": [PARTS["squad"]["texts"]],
    "Two searches each on SQuAD at {} %, at about as many texts read: TPE {}, random search {}, "
    "attention weights {}.": [
        PERCENT[1],
        *(kept.loc[("squad", arm, BUDGETS[1]), "score"] for arm in OTHERS),
    ],
    "The consensus of {} searches, the mean of their gates, keeps {} and {} on SQuAD: less than "
    "each of them.": [len(SEARCHES), *both("squad", "consensus")],
    "There, at {} %, search 0 has {} with DAM, {} with attention weights and {} with TPE; in "
    "nDCG@10 {}, {} and {}.": [
        PERCENT[1],
        *(of_search(rows, arm) for rows in ("choice", "judge") for arm in SCORED),
    ],
}
TABLE = {
    f"{TITLES[part]}, {100 * budget:g} %": row(part, budget)
    for part in TITLES
    for budget in BUDGETS
}
SIDES = {
    f"{title}, {100 * budget:g} %": [*sides.loc[(arm, budget)].drop("none")]
    for budget in BUDGETS
    for arm, title in {"dam": "DAM", "drawn": "drawn"}.items()
}
NEARER, FARTHER = (sides.loc[arm, "cosine of paragraphs"] for arm in ("dam", "drawn"))
assert (NEARER > FARTHER).all()
DOCS = {  # whether DAM is ahead
    "on pairs of sentences DAM's masks are {} of the best drawn ones, in the retrieval of "
    "paragraphs {}, where most texts that gates had read were as short as questions": [
        apart.loc[(part, DRAWN), "difference"].mean() for part in ("sts-b", "squad")
    ],
}
CLAIMS = [
    *sentences(HERE, PAGE),
    *rows(HERE, TABLE),
    *rows(HERE, SIDES),
    *sentences("docs/trained_encoders.md", DOCS),
]
