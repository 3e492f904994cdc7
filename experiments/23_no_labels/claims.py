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
learned = pd.read_csv(RESULTS / "classifiers.csv").set_index(["task", "budget"]).sort_index()
apart = pd.read_csv(RESULTS / "embedder.csv")
apart = apart.set_index(["part", "contrast", "budget"]).sort_index()
sides = pd.read_csv(RESULTS / "sides.csv").set_index(["arm", "budget"])
taken = pd.read_csv(RESULTS / "masks.csv").set_index("file")
BUDGETS = PLAN["embedder"]["budgets"]
PERCENT = [100 * budget for budget in BUDGETS]
TITLES = {"squad": "SQuAD", "sts-b": "STS-B"}
LONG = "squad, paragraphs"  # the amendment's
DRAWN, FIRST = f"dam - {ours.HAND}", "dam - dam of the first texts"
ARMS = ("labels", "answers")
ENDS = ["difference", "low", "high"]


def both(part: str, arm: str) -> list[float]:
    """The mean score of an arm's searches at both budgets."""
    return [kept.loc[(part, arm, budget), "score"] for budget in BUDGETS]


def row(part: str, budget: float) -> list[float]:
    """A row of the table."""
    found = apart.loc[(part, DRAWN, budget)]
    p = found["p"] if pd.isna(found["adjusted_p"]) else found["adjusted_p"]
    dense, dam, hand = (kept.loc[(part, arm, budget)] for arm in ("dense", "dam", ours.HAND))
    means = [dense["score"], *dam[["score", "share"]], *hand[["score", "share"]]]
    return [*means, *gap(part, budget), p, found["ahead"], found["models"]]


def gap(part: str, budget: float) -> list[float]:
    """DAM minus the best drawn mask."""
    return [*apart.loc[(part, DRAWN, budget), ENDS]]


def of_task(task: str, budget: float) -> list[float]:
    """A row of the table of classifiers; of the mean over tasks with both p."""
    tasks, found = [*ours.TASKS] if task == "mean" else [task], learned.loc[(task, budget)]
    arms = [kept.loc[(tasks, arm, budget), "score"].mean() for arm in ("dense", *ARMS)]
    p_values = found[["p_loses_less", "p_gains_less"]].dropna()
    return [*arms, *found[ENDS], *p_values]


def of_search(rows: str, arm: str) -> float:
    """The score of search 0 at the smaller budget."""
    return ours.named(lines["squad", 0], rows, f"{arm} {BUDGETS[1]}")["score"]


SEARCHES = PARTS["squad"]["seeds"]
OTHERS = ("tpe", "random", "attention of pairs")
SCORED = ("dam", "attention of pairs", "tpe")
assert (apart.loc[("squad", DRAWN), "ahead"] == 0).all()
assert apart.loc[(LONG, DRAWN, BUDGETS[1]), "p"] > 0.05  # not told apart
assert {*kept.loc[("squad", ours.HAND), "mask"]} == {
    f"hand {budget}: widest window and special tokens" for budget in BUDGETS
}


def singles(part: str, budget: float) -> list[float]:
    """The scores of DAM's searches at a budget."""
    return [line["score"] for line in ours.judged(lines, part, "dam", budget).values()]


for part, budget, beyond, end in (
    *(("squad", budget, operator.lt, min) for budget in BUDGETS),
    *(("sts-b", budget, operator.gt, max) for budget in BUDGETS),
    (LONG, BUDGETS[1], operator.lt, min),
):
    assert beyond(kept.loc[(part, "consensus", budget), "score"], end(singles(part, budget)))
assert {*taken.index} == {path.name for path in (RESULTS / "masks").iterdir()}
WITHIN = learned[(learned["low"] > -ours.MARGIN) & (learned["high"] < ours.MARGIN)]
assert learned.loc["mean", "within"].all()
assert {*WITHIN.drop("mean").index} == {("SST-2", BUDGETS[0]), ("QNLI", BUDGETS[0])}


def longer() -> list[float]:
    """The least and the most times that searches without labels take the seconds of the others."""
    searches = [
        [line for line in own if line["stage"] == "search"]
        for (of, _), own in lines.items()
        if of in ours.TASKS
    ]
    seconds = [
        [sum(each["seconds"] for each in own if each["arm"] == arm) for arm in ARMS]
        for own in searches
    ]
    times = [answers / labels for labels, answers in seconds]
    return [min(times), max(times)]


MEAN = [[*learned.loc[("mean", budget), ENDS], 100 * budget] for budget in BUDGETS]
LEARN = [*MEAN[0], *MEAN[1]]
PAGE = {
    "in the mean over three tasks their masks lose and gain less than {}, shown at both budgets: "
    "{} [{}, {}] at {} % of the pairs of query and key, {} [{}, {}] at {} %.": [
        *(ours.MARGIN, *LEARN)
    ],
    "these take {} to {} times the seconds.": longer(),
    "p that it loses less than {}, and that it gains less,": [ours.MARGIN],
    "Put on all-MiniLM-L6-v2 as it is, DAM's masks keep {} and {} on STS-B, where dense attention "
    "has {}, with {} and {} % of the pairs; the best drawn ones {} and {}.": [
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
    "Where gates read texts as long as paragraphs, an amendment, DAM keeps {} at {} %, the best "
    "drawn mask of those texts {}: no difference is shown.": [
        kept.loc[(LONG, "dam", BUDGETS[1]), "score"],
        PERCENT[1],
        kept.loc[(LONG, ours.HAND, BUDGETS[1]), "score"],
    ],
    "Gates read {} texts of WikiText that are as long as SQuAD's paragraphs: minus DAM that read "
    "texts of all lengths {} [{}, {}].": [
        PARTS[LONG]["texts"],
        *apart.loc[(LONG, FIRST, BUDGETS[1]), ENDS],
    ],
    "with texts as long as paragraphs DAM keeps {} more at {} %.": [
        apart.loc[(LONG, FIRST, BUDGETS[1]), "difference"],
        PERCENT[1],
    ],
    "Of the four searches on texts as long as paragraphs it keeps {}, less than each;": [
        kept.loc[(LONG, "consensus", BUDGETS[1]), "score"],
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
        *(apart.loc[("sts-b, own", FIRST, budget), end] for budget in BUDGETS for end in ENDS),
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
} | {"SQuAD, as long, 12 %": row(LONG, BUDGETS[1])}
LEARNED = {
    f"{title}, {100 * budget:g} %": of_task(task, budget)
    for task, title in {"mean": "the three tasks", **{task: task for task in ours.TASKS}}.items()
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
LONGER = [*gap(LONG, BUDGETS[1]), PERCENT[1]]
PAIRS, RETRIEVAL = ([gap(part, budget) for budget in BUDGETS] for part in ("sts-b", "squad"))
SIGNS = [apart.loc[(part, DRAWN), "difference"].mean() for part in ("sts-b", "squad")]
LINK = " ([23](../experiments/23_no_labels/README.md)) |"
DOCS = {
    "docs/trained_encoders.md": {  # whether DAM is ahead
        "on pairs of sentences DAM's masks are {} of the best drawn ones, in the retrieval of "
        "paragraphs {}, where most texts that gates had read were as short as questions;": SIGNS,
    },
    "docs/adapting.md": {
        "nothing is said of what is lost to labels; on {} tasks masks of gates that learned "
        "answers kept as much of the labels, within {} in the mean, as those of gates that "
        "learned labels ([experiment 23]": [len(ours.TASKS), ours.MARGIN],
    },
    "experiments/README.md": {
        "gates that learn a classifier's own answers find as good masks as gates that learn "
        "labels, within {} in the mean over {} tasks: {} [{}, {}] with {} % of the pairs, "
        "{} [{}, {}] with {} %.": [ours.MARGIN, len(ours.TASKS), *LEARN],
        "On all-MiniLM-L6-v2 as it is DAM minus the best drawn mask is {} [{}, {}] and {} "
        "[{}, {}] on STS-B's pairs, {} [{}, {}] and {} [{}, {}] in retrieval on SQuAD, and {} "
        "[{}, {}] with {} % where gates have read texts as long as its paragraphs |": [
            *(*PAIRS[0], *PAIRS[1], *RETRIEVAL[0], *RETRIEVAL[1], *LONGER)
        ],
    },
    "docs/does_search_pay.md": {
        "| a fine-tuned classifier without labels, and no further training | DAM, whose gates "
        "learn the model's own answers | their masks minus those of gates that learn labels are "
        "{} [{}, {}] with {} % of the pairs and {} [{}, {}] with {} %, in the mean over {} tasks "
        "within the margin of {}" + LINK: [*LEARN, len(ours.TASKS), ours.MARGIN],
        "| a published embedding model, and no labels | for pairs of sentences DAM; for the "
        "retrieval of paragraphs the widest window with the special tokens, or DAM that reads "
        "texts as long | on all-MiniLM-L6-v2 DAM minus the best drawn mask is {} [{}, {}] and "
        "{} [{}, {}] on STS-B with {} and {} % of the pairs; on SQuAD {} [{}, {}] and {} "
        "[{}, {}], and {} [{}, {}] with {} % where gates have read texts as long as its "
        "paragraphs" + LINK: [
            *(*PAIRS[0], *PAIRS[1], *PERCENT, *RETRIEVAL[0], *RETRIEVAL[1], *LONGER)
        ],
    },
    "README.md": {
        "| And without labels? | A classifier's own answers serve as well. On an embedding model "
        "DAM is {} for pairs of sentences, {} in the retrieval of paragraphs; with gates that "
        "read texts as long the two are not told apart | answers minus labels: {} [{}, {}]; DAM "
        "minus drawn: {} [{}, {}], {} [{}, {}], {} [{}, {}], all at {} % |": [
            *(*SIGNS, *MEAN[1][:3], *PAIRS[1], *RETRIEVAL[1], *LONGER)
        ],
    },
}
CLAIMS = [
    *sentences(HERE, PAGE),
    *rows(HERE, LEARNED, "## (a) Answers in place of labels"),
    *rows(HERE, TABLE, "## Scores of (b)"),
    *rows(HERE, SIDES),
    *rows(HERE, TAKEN),
    *(claim for page, said in DOCS.items() for claim in sentences(page, said)),
]
