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
DRAWN = f"dam - {ours.HAND}"
FIRST = [f"dam - dam of the first texts, {budget}" for budget in BUDGETS]
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


def drawn_masks(part: str, budget: float) -> int:
    """How many drawn masks each search of a part had to choose from."""
    (count,) = {
        len(ours.scored(own, "choice", f"hand {budget}: "))
        for (of, _), own in lines.items()
        if of == part
    }
    return count


def searches_alone(part: str, budget: float) -> list[float]:
    """The ends of the interval over searches, without what judges."""
    sides = [ours.judged(lines, part, arm, budget) for arm in ("dam", ours.HAND)]
    scores = [{seed: line["score"] for seed, line in arm.items()} for arm in sides]
    found = ours.paired_difference(*scores)
    return [found.low, found.high]


TEN = [
    line
    for (of, _), own in lines.items()
    if of == "sts-b"
    for line in ours.scored(own, "choice", f"hand {BUDGETS[1]}: ")
]
SAME = [line["score"] for line in TEN if "same token" in line["name"]]
WHOLE = [line["score"] for line in TEN if "heads" in line["name"]]
assert len(SAME) + len(WHOLE) == len(TEN)
assert len({*SAME}) == len(SAME) / 2  # both are one mask
assert min(SAME) > max(WHOLE)
SHARES = {
    (part, budget): [kept.loc[(part, arm, budget), "share"] for arm in ("dam", ours.HAND)]
    for part, budget in ((LONG, BUDGETS[1]), *((part, b) for part in TITLES for b in BUDGETS))
}
AT_LENGTH = [[*apart.loc[(LONG, each, BUDGETS[1]), ENDS]] for each in FIRST]
assert AT_LENGTH[1][0] - AT_LENGTH[0][0] > AT_LENGTH[0][0]  # more comes with the share


def shares_of_four(budget: float) -> float:
    """DAM's share on SQuAD's texts, in the mean over the searches that the amendment has, too."""
    own = ours.judged(lines, "squad", "dam", budget)
    four = [own[seed]["density_judged"] for seed in PARTS[LONG]["seeds"]]
    return sum(four) / len(four)


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
SAID = {
    part: "yes" if min(gap(part, budget)[1] for budget in BUDGETS) > 0 else "no" for part in TITLES
}
dealt = pd.read_csv(RESULTS / "offsets_kept.csv").set_index(["part", "budget", "arm"])
PAGE = {
    "(a) Do gates that learn a classifier's own answers find as good masks as gates that learn "
    "labels? (b) Is search ahead of hand-designed masks on a published embedding model that "
    "nobody has fine-tuned here?": [],
    "(a) Yes: in the mean over three tasks their masks lose and gain less than {}, shown at both "
    "budgets: {} [{}, {}] at {} % of the pairs of query and key, {} [{}, {}] at {} %.": [
        *(ours.MARGIN, *LEARN)
    ],
    f"(b) On STS-B's pairs of sentences {SAID['sts-b']}, in SQuAD's retrieval of paragraphs "
    f"{SAID['squad']}. Put on all-MiniLM-L6-v2 as it is, DAM's masks keep {{}} and {{}} on STS-B, "
    "where dense attention has {}, with {} and {} % of the pairs; the best hand-designed ones {} "
    "and {}, or {} without the diagonal (below). That is one data set, and no test: the plan has "
    "it as secondary, and a pilot had read these pairs.": [
        *both("sts-b", "dam"),
        *(kept.loc[("sts-b", "dense", BUDGETS[0]), "score"], *PERCENT),
        *both("sts-b", ours.HAND),
        dealt.loc[("sts-b", BUDGETS[1], "offsets"), "score"],
    ],
    "On SQuAD DAM's keep {} and {} of {}, and the best hand-designed mask, the widest window with "
    "the special tokens, {} and {}: DAM is behind in each of {} searches at both budgets, as the "
    "plan tested.": [
        *both("squad", "dam"),
        kept.loc[("squad", "dense", BUDGETS[0]), "score"],
        *both("squad", ours.HAND),
        len(SEARCHES),
    ],
    "Where gates read texts as long as paragraphs, an amendment, DAM keeps {} with {} % of the "
    "pairs that judge, the best hand-designed mask of those texts {} with {} %: no difference "
    "is shown.": [
        kept.loc[(LONG, "dam", BUDGETS[1]), "score"],
        100 * SHARES[LONG, BUDGETS[1]][0],
        kept.loc[(LONG, ours.HAND, BUDGETS[1]), "score"],
        100 * SHARES[LONG, BUDGETS[1]][1],
    ],
    "[plan.toml](plan.toml) was committed before the first score that it governs.": [],
    "Three fine-tuned MiniLMs a task, by [22](../22_as_it_is/README.md)'s recipe and rows. On "
    "each two searches by DAM at each budget: gates that learn labels, {} steps, and gates that "
    "learn the dense model's logits, {}; these take {} to {} times the seconds. Masks are put on "
    "as they are. Answers minus labels; the planned tests are of the mean over tasks: p that it "
    "loses less than {}, and that it gains less, each kind by Holm over both budgets.": [
        *(PLAN["classifiers"]["arms"][arm]["steps"] for arm in ARMS),
        *longer(),
        ours.MARGIN,
    ],
    "By their single intervals SST-2 and QNLI are within {} at {} %, no task is at {} %, "
    "and STS-B at neither.": [ours.MARGIN, *PERCENT],
    "Model: 6 layers, 12 heads. No weight is trained.": [],
    "Texts that searches read: {} beginnings of WikiText's paragraphs, of lengths drawn from "
    "those of the texts that judge; where a paragraph was too short for its length it was left "
    "out. Gates learn the mean of 1 - cosine to the dense embedding, 150 steps of 32 texts. "
    "Samplers score masks by the order of near texts, in "
    "[head_roles](../../search_spaces/head_roles.py).": [
        PARTS["squad"]["texts"],
    ],
    "Opponents: hand-designed masks that fit the budget, on SQuAD {} with {} % and {} with {} %, "
    "where gates read long texts {}, on STS-B {} and {}; {} texts that no search has read choose "
    "one, by the order of near texts. Of STS-B's ten none is a window or a family from a paper: "
    "two are one mask, in which each token sees itself, the same token elsewhere and [CLS], {} to "
    "{} on choosing texts; the others are whole heads, {} to {} there.": [
        *(drawn_masks("squad", BUDGETS[0]), PERCENT[0]),
        *(drawn_masks("squad", BUDGETS[1]), PERCENT[1]),
        drawn_masks(LONG, BUDGETS[1]),
        *(drawn_masks("sts-b", budget) for budget in BUDGETS),
        *(PARTS["squad"]["query_texts"], min(SAME), max(SAME), min(WHOLE), max(WHOLE)),
    ],
    "Judging: nDCG@10 of every fourth question of SQuAD's development set among all 2,067 "
    "paragraphs, of at most {} tokens; Spearman on STS-B's development pairs, which a pilot had "
    "read, of at most {} tokens.": [PARTS["squad"]["length"], PARTS["sts-b"]["length"]],
    "DAM minus the best hand-designed mask. SQuAD's rows are the planned tests, over searches and "
    "paragraphs, with Holm's interval and p, of {} % at the smaller budget. STS-B's are in no "
    "test; their intervals are over searches and pairs. Over searches alone, as the plan had it, "
    "they are [{}, {}] and [{}, {}]. *Ahead*: in how many searches DAM is.": [
        100 * apart.loc[("squad", DRAWN, BUDGETS[1]), "level"],
        *(end for budget in BUDGETS for end in searches_alone("sts-b", budget)),
    ],
    "*Share*: of the pairs of the texts that judge. On SQuAD more of them are long than of those "
    "that searches read.": [],
    "*As long*: [amendment.toml](amendment.toml), planned after the first four rows had been "
    "seen; a test of its own. Gates read {} texts of WikiText that are as long as SQuAD's "
    "paragraphs. So the same {} % of what they read are more of the pairs that judge, {}. Minus "
    "DAM that read texts of all lengths, on the same four searches: {} [{}, {}] to its mask of {} "
    "%, whose share is {}, and {} [{}, {}] to that of {} %, whose share is {}.": [
        *(PARTS[LONG]["texts"], PERCENT[1], SHARES[LONG, BUDGETS[1]][0]),
        *(*AT_LENGTH[1], PERCENT[1], shares_of_four(BUDGETS[1])),
        *(*AT_LENGTH[0], PERCENT[0], shares_of_four(BUDGETS[0])),
    ],
    "DAM keeps the questions and loses with the paragraphs. Most texts that gates read are as "
    "short as questions; of the pairs of those that judge its mask of {} % has {}. With texts as "
    "long as paragraphs DAM keeps {} more, with a share of {}; but {} more than its own mask with "
    "a share of {}. So more of the {} comes with the share than with what gates read.": [
        *(PERCENT[1], SHARES["squad", BUDGETS[1]][0]),
        *(AT_LENGTH[1][0], SHARES[LONG, BUDGETS[1]][0]),
        *(AT_LENGTH[0][0], shares_of_four(BUDGETS[0]), AT_LENGTH[1][0]),
    ],
    "Two searches each on SQuAD at {} %, at about as many texts read: TPE {}, random search {}, "
    "attention weights {}.": [
        PERCENT[1],
        *(kept.loc[("squad", arm, BUDGETS[1]), "score"] for arm in OTHERS),
    ],
    "Gates that read STS-B's own training sentences keep {} and {} there: minus those of WikiText "
    "{} [{}, {}] and {} [{}, {}].": [
        *both("sts-b, own", "dam"),
        *(
            apart.loc[("sts-b, own", first, budget), end]
            for first, budget in zip(FIRST, BUDGETS, strict=True)
            for end in ENDS
        ),
    ],
    "The consensus of all searches, the mean of their gates, keeps {} and {} on SQuAD, less than "
    "each of them, and {} and {} on STS-B, more than each. Of the four searches on texts as long "
    "as paragraphs it keeps {}, less than each; the gates of two of them were made anew, on "
    "another processor, where DAM of the same seed ends in another mask.": [
        *both("squad", "consensus"),
        *both("sts-b", "consensus"),
        kept.loc[(LONG, "consensus", BUDGETS[1]), "score"],
    ],
    "Of each row the mask of the search that the choosing texts prefer is a file of "
    "[results/masks](results/masks) (`take.py` has written them; DAM's for STS-B and of the "
    "amendment, else the hand-designed ones):": [],
    "Looked at afterwards, on search {}, so these are hints. With one side masked and the other "
    "dense, every eighth question, nDCG@10, and the mean cosine to the dense embedding": [0],
    "In cosine DAM's paragraphs are nearer to the dense ones than the hand-designed mask's, and "
    "yet are found less often: the mean cosine, which gates learn, is not the order.": [],
    "Nor is the order of near texts of WikiText, by which masks were chosen. There, at {} %, "
    "search {} has {} with DAM, {} with attention weights and {} with TPE; in nDCG@10 {}, {} and "
    "{}.": [
        *(PERCENT[1], 0),
        *(of_search(rows, arm) for rows in ("choice", "judge") for arm in SCORED),
    ],
    "A first amendment, `46e2ed3a`, asked for gates that read SQuAD's own texts. 17 minutes later "
    "`eb417c49` took its place; nothing of it had run. Both were written after the plan's two "
    "tests had been seen.": [],
    "A found mask was thrown away: `0f5e32f2` removes the line of DAM's search 2 of the "
    "amendment, of which no score was stored, and puts there the mask that another processor "
    "found with the same seed. It also removes three lines of STS-B's second classifier, which "
    "were written anew.": [],
    "By the plan embedder.py runs from the plan's own commit. `a0386300` changed it and texts.py "
    "before STS-B's lines of (b) were written, by reading without effect on these.": [],
    "(a) The texts that gates read are those of the training file. Texts from elsewhere were read "
    "in (b) alone.": [],
    "STS-B's lead of the plan is one over {} masks that all keep the diagonal; a mask without it "
    "halves it at {} % (below).": [drawn_masks("sts-b", BUDGETS[1]), 100 * BUDGETS[1]],
    "One published embedding model is to be had offline. Another collection, longer texts and "
    "weights that train on were not run.": [],
    "Searches ran on two machines; seconds of labels and answers are compared within a model. A "
    "share of pairs is no time.": [],
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
    for arm, title in {"dam": "DAM", "drawn": "hand-designed"}.items()
}
NEARER, FARTHER = (sides.loc[arm, "cosine of paragraphs"] for arm in ("dam", "drawn"))
assert (NEARER > FARTHER).all()
# -- drawn masks without the diagonal ----------------------------------------------------------
WITHOUT = "## Hand-designed masks without the diagonal, 2026-11-30"
leads = pd.read_csv(RESULTS / "offsets_apart.csv")
leads = leads.set_index(["part", "budget", "contrast", "over"]).sort_index()
OF_PAIRS, SMALL, LARGE = "sts-b", BUDGETS[1], BUDGETS[0]


def lead(budget: float, other: str, over: str = "searches", part: str = OF_PAIRS) -> list[float]:
    """DAM minus drawn masks, with its interval."""
    return [*leads.loc[(part, budget, f"dam - {other}", over), ENDS]]


def without_diagonal(part: str, budget: float) -> list[float]:
    """A row of the table."""
    scores = [dealt.loc[(part, budget, arm), "score"] for arm in ("dam", "before", "offsets")]
    gaps = [*lead(budget, "before", part=part), *lead(budget, "offsets", part=part)]
    counts = leads.loc[(part, budget, "dam - offsets", "searches"), ["ahead", "models"]]
    share = dealt.loc[(part, budget, "offsets"), "density_judged"]
    return [*scores, share, *gaps, *counts]


for budget in BUDGETS:  # the texts that choose prefer offsets in every search
    chosen = dealt.loc[(OF_PAIRS, budget, "drawn")]
    assert chosen["without the diagonal"] == chosen["searches"]
again = {line["name"]: line for line in ours.all_lines(RESULTS / "offsets")["sts-b", 0]}
AGAIN = f"hand {SMALL}: same token"
assert again[f"again, {AGAIN}"]["score"] == ours.named(lines["sts-b", 0], "judge", AGAIN)["score"]
EVERYWHERE = "searches and rows"
PAGE |= {
    "the hand-designed mask that was judged for search 0 at {} % was scored again, with equal "
    "scores.": [100 * SMALL],
    "At {} % a mask without the diagonal halves DAM's lead: minus the best hand-designed mask of "
    "both lists, which the texts that choose prefer in each search, it is {}, with other pairs "
    "counted too [{}, {}]; before, {} [{}, {}].": [
        *(100 * SMALL, lead(SMALL, "drawn")[0], *lead(SMALL, "drawn", EVERYWHERE)[1:]),
        *lead(SMALL, "before", EVERYWHERE),
    ],
    "At {} % the texts that choose prefer offsets as well, wrongly: on the pairs that judge they "
    "keep {} {} than the mask before. By that choice DAM's lead is {}, by the better of both "
    "lists {}.": [
        100 * LARGE,
        -leads.loc[(OF_PAIRS, LARGE, "offsets - before", "searches"), "difference"],
        leads.loc[(OF_PAIRS, LARGE, "offsets - before", "searches"), "difference"],
        *(lead(LARGE, "drawn")[0], lead(LARGE, "before")[0]),
    ],
    "It has {} and {}: {} than offsets at {} %, {} at {} %.": [
        *(dealt.loc[(OF_PAIRS, budget, "beside"), "score"] for budget in (SMALL, LARGE)),
        lead(SMALL, "offsets")[0] - lead(SMALL, "beside")[0],
        100 * SMALL,
        lead(LARGE, "offsets")[0] - lead(LARGE, "beside")[0],
        100 * LARGE,
    ],
}
DEALT = {
    f"STS-B, {100 * budget:g} %": without_diagonal(OF_PAIRS, budget) for budget in (SMALL, LARGE)
}
RETRIEVAL = [gap("squad", budget) for budget in BUDGETS]
SIGNS = [apart.loc[(part, DRAWN), "difference"].mean() for part in ("sts-b", "squad")]
AS_LONG = gap(LONG, BUDGETS[1])
LEAD = lead(SMALL, "drawn", EVERYWHERE)  # over both lists
SHARE = dealt.loc[(OF_PAIRS, SMALL, "offsets"), "density_judged"]


def shares(part: str, budget: float) -> list[float]:
    """DAM's and the drawn mask's share of the pairs that judge, in percent."""
    return [100 * share for share in SHARES[part, budget]]


LINK = "[23](../experiments/23_no_labels/README.md) |"
DOCS = {
    "docs/trained_encoders.md": {  # whether DAM is ahead
        "on STS-B's pairs of sentences DAM's masks are {} of the best hand-designed ones, in "
        "SQuAD's retrieval of paragraphs {}, where most texts that gates had read were as short "
        "as questions;": SIGNS,
    },
    "docs/adapting.md": {
        "nothing is said of what is lost to labels; on {} tasks masks of gates that learned "
        "answers kept as much of the labels, within {} in the mean, as those of gates that "
        "learned labels ([experiment 23]": [len(ours.TASKS), ours.MARGIN],
    },
    "experiments/README.md": {
        "for classifiers yes, within {}; on an embedding model "
        f"{'' if SIGNS[0] > 0 else 'not '}for sentences, "
        f"{'' if SIGNS[1] > 0 else 'not '}for paragraphs |": [ours.MARGIN],
    },
    "README.md": {
        "| `--text`, `--label` | columns; twice `--text` for pairs; without `--label` "
        "the model's answers [take their place]"
        "(experiments/23_no_labels/README.md) |": [],
    },
    "docs/does_search_pay.md": {
        "| one without labels | DAM, which learns the model's own answers | tested: within "
        "{} of DAM that learns labels | " + LINK: [ours.MARGIN],
        "| an embedding model that compares sentences | DAM, judged by pairs of your own | "
        "measured, on one data set | " + LINK: [],
        "| an embedding model that finds paragraphs | the widest window that fits, and special "
        "tokens that all see | tested | " + LINK: [],
    },
}
NO_CLAIM = [
    (HERE, "Every hand-designed mask of the list keeps the diagonal."),
    (HERE, "[offsets.toml](offsets.toml), committed before its first score, judges two families "
     "that leave it out: [CLS]'s column and, in each head, offsets of its own, nearby ones or "
     "each offset in one head. Searches, texts and DAM's masks are the stored ones;"),
    (HERE, "*As it was*: the best hand-designed mask of the list; *offsets*: the better of the "
     "two families on the texts that choose."),
    (HERE, "The first family was named with 200 of STS-B's judging pairs in sight."),
    (HERE, "Read off DAM's mask, so no choice of a hand: near offsets and a last layer with as "
     "many full heads as DAM's keeps there."),
    (HERE, "draws the nearby offsets from now on (\"offsets by head\")."),
    (HERE, "| | DAM | as it was | offsets | share | DAM - as it was | DAM - offsets | ahead |"),
]  # fmt: skip
PART_TITLES = {
    "sts-b": "pairs of sentences, STS-B (Spearman)",
    "squad": "retrieval of paragraphs, SQuAD (nDCG)",
    LONG: "the same, learnt from long texts",
}
CLAIMS = [
    *sentences(HERE, PAGE),
    *sentences(
        "docs/masks_to_take.md",
        {
            f"| [{file}](../experiments/23_no_labels/results/masks/{file}) | {PART_TITLES[of]} | "
            + f"{arm.replace('dam', 'DAM')} |"
            + 4 * " {} |": TAKEN[file]
            for file, of, arm in taken[["of", "arm"]].itertuples()
        },
    ),
    *rows(HERE, LEARNED, "## (a) Answers in place of labels"),
    *rows(HERE, TABLE, "## Scores of (b)"),
    *rows(HERE, DEALT, WITHOUT),
    *rows(HERE, SIDES),
    *rows(HERE, TAKEN),
    *(claim for page, said in DOCS.items() for claim in sentences(page, said)),
]
NO_CLAIM += [  # headings of tables, and names
    (HERE, "| | dense | labels | answers | difference | loses less | gains less |"),
    (HERE, "| | dense | DAM | share | hand-designed | share | DAM - hand-designed | p | ahead |"),
    (HERE, "| file | tokens | share | score | dense |"),
    (HERE, "is the folder of all-MiniLM-L6-v2;"),
    (HERE, "is a SentenceTransformer that keeps its mask. Longer texts are cut there,"),
]
