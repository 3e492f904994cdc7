"""What the pages say of this experiment, from its plan and from results/: see
experiments/verify.py."""

import operator
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
taken = pd.read_csv(RESULTS / "masks.csv").set_index("file")
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
    dense, dam, hand = (kept.loc[(part, arm, budget)] for arm in ("dense", "dam", ours.HAND))
    means = [dense["score"], *dam[["score", "share"]], *hand[["score", "share"]]]
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


def singles(part: str) -> list[list[float]]:
    """The scores of DAM's searches at each budget."""
    each = [ours.judged(lines, part, "dam", budget).values() for budget in BUDGETS]
    return [[line["score"] for line in own] for own in each]


assert all(map(operator.lt, both("squad", "consensus"), map(min, singles("squad"))))
assert all(map(operator.gt, both("sts-b", "consensus"), map(max, singles("sts-b"))))
assert {*taken.index} == {path.name for path in (RESULTS / "masks").iterdir()}
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
    "Gates that read STS-B's own training sentences keep {} and {} there: minus those of WikiText "
    "{} [{}, {}] and {} [{}, {}].": [
        *both("sts-b, own", "dam"),
        *(
            apart.loc[("sts-b, own", "dam - dam of the first texts", budget), end]
            for budget in BUDGETS
            for end in ("difference", "low", "high")
        ),
    ],
    "The consensus of all searches, the mean of their gates, keeps {} and {} on SQuAD, less than "
    "each of them, and {} and {} on STS-B, more than each.": [
        *both("squad", "consensus"),
        *both("sts-b", "consensus"),
    ],
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
TAKEN = {
    file: [
        row["length"],
        row["share"],
        row["score"],
        kept.loc[(row["of"], "dense", row["budget"]), "score"],
    ]
    for file, row in taken.iterrows()
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
    *rows(HERE, TAKEN),
    *sentences("docs/trained_encoders.md", DOCS),
]
