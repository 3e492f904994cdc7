"""What the pages say of this experiment, recomputed from results/: see experiments/verify.py."""

import re
import runpy
from pathlib import Path
from types import SimpleNamespace

import pandas as pd

from experiments.verify import rows, sentences

FOLDER = Path(__file__).parent
HERE = "experiments/21_recovered/README.md"
PLAN_TEXT = (FOLDER / "plan.toml").read_text(encoding="utf-8")
ours = SimpleNamespace(**runpy.run_path(str(FOLDER / "tables.py")))
lines = ours.all_lines()
assert sorted(lines) == ours.PLAN["seeds"]["models"]
after, before = (ours.scores(lines, steps).set_index(["arm", "budget"]) for steps in ("", "none"))
tested = ours.primary(lines).set_index("contrast")
differences = ours.secondary(lines).set_index(["contrast", "budget", "steps"])
NAMES = {
    "dam": "DAM",
    "random": "random search",
    "hand": "hand-designed, best on search rows",
    "hand, longer": "the same, longer schedule",
    "hand, best": "hand-designed, best on judging rows",
    "random keys": "random keys",
}
OPPONENTS = {
    "hand, longer": "hand-designed, longer schedule",
    "hand": "hand-designed, same steps",
    "random": "random search",
    "dense": "dense attention",
}


def cell(table: object, arm: str, budget: float) -> list[float]:
    """An arm's mean score and its interval."""
    return [*table.loc[(arm, budget), ["score", "low", "high"]]]


def minus(other: str, budget: float, steps: str = "full") -> list[float]:
    """DAM minus another arm, and the interval."""
    return [*differences.loc[(f"dam - {other}", budget, steps), ["difference", "low", "high"]]]


def ahead(other: str, budget: float, steps: str = "full") -> list[int]:
    """On how many dense models DAM is ahead of another arm, and behind it."""
    of_other = {"dense": 1.0}.get(other, budget)
    then = "" if steps == "full" else steps
    signs = [
        score > rival
        for score, rival in zip(
            ours.over_budgets(lines, "dam", [budget], then).scores.values(),
            ours.over_budgets(lines, other, [of_other], then).scores.values(),
            strict=True,
        )
    ]
    return [sum(signs), len(signs) - sum(signs)]


def ends(arm: str, budget: float) -> list[float]:
    """The least and the greatest score over dense models."""
    own = ours.by_seed(lines, arm, budget)
    return [min(own), max(own)]


def by_seed_of(arm: str) -> list[float]:
    """An arm's score of 12 % on each dense model, after recovery."""
    return ours.by_seed(lines, arm, 0.12)


SCORES = {
    title: [
        end
        for budget in (0.2, 0.12)
        for table in ((after,) if arm == "hand, longer" else (before, after))
        for end in cell(table, arm, budget)
    ]
    for arm, title in NAMES.items()
}
LEFT = (NAMES["hand, best"], NAMES["random keys"])  # their rows stand in results/notes.md
SCORES["dense attention, all pairs"] = [*cell(before, "dense", 1.0), *cell(after, "dense", 1.0)]
PRIMARY = {
    f"DAM - {OPPONENTS[other]}": [
        *tested.loc[f"dam - {other}", ["difference", "low", "high", "p", "adjusted_p"]]
    ]
    for other in ("hand, longer", "random")
}
PLANNED, BESIDE_RANDOM = ([*row[:3], row[4]] for row in PRIMARY.values())
SINGLE = {
    title: [
        value
        for budget in (0.2, 0.12)
        for steps in (("full",) if other == "hand, longer" else ("none", "full"))
        for value in (*minus(other, budget, steps), ahead(other, budget, steps)[0])
    ]
    for other, title in OPPONENTS.items()
}
side = "ahead of" if minus("hand, longer", 0.2)[0] > 0 else "behind"
assert min(abs(end) for end in minus("hand, longer", 0.2)[1:]) > 0 < minus("hand", 0.12, "none")[1]
assert (
    tested.loc["dam - hand, longer", "adjusted_p"]
    > 0.05
    < tested.loc["dam - random", "adjusted_p"]
)
HEADLINE, MARGIN = tested.loc["dam 0.12 - hand 0.25"], ours.PLAN["primary"]["headline"]["margin"]
assert HEADLINE.seeds == len(lines)
assert HEADLINE.low < -MARGIN  # so it is not shown
dense = cell(after, "dense", 1.0)[0]
STEPS, PLAN = ours.PLAN["steps"], ours.PLAN
pilot = pd.read_csv(FOLDER / "results" / "pilot.csv").query("density > 0 and rate == 0.0002")
by_steps = pilot.pivot(index="mask", columns="steps", values="score")
late = by_steps[STEPS["full"]]
slow = late[late < 0.5]
PAGE = {
    "Not shown by the planned test, the mean over {} and {} % of the pairs: DAM minus the "
    "hand-designed mask, which is trained longer by what DAM's search costs, is {} [{}, {}] "
    "(adjusted p {}), minus random search {} [{}, {}] ({}). The two budgets differ:": [
        *(20, 12, *PLANNED, *BESIDE_RANDOM),
    ],
    "At {} % DAM is {} that mask, by {} [{}, {}].": [20, side, *minus("hand, longer", 0.2)],
    "At {} % DAM keeps {} to {} on the {} dense models, dense attention {}; the hand-designed "
    "masks keep {} to {}, random search's {} to {}: training under them starts on some models and "
    "not on others.": [
        *(12, *ends("dam", 0.12), len(lines), dense, *ends("hand, longer", 0.12)),
        *ends("random", 0.12),
    ],
    "Without further training DAM's masks keep {} [{}, {}] and {} [{}, {}] more than the "
    "hand-designed ones.": [
        *minus("hand", 0.2, "none"),
        *minus("hand", 0.12, "none"),
    ],
    "The plan's floor and that headline took {} of {} planned hours, beside other runs": [
        ours.hours(lines),
        float(re.search(r"when (\d+) core-hours", PLAN["text"]["cut"])[1]),
    ],
    "Recovery: {} steps of {} rows under the mask; a trial takes {} steps, the longer schedule "
    "{}.": [
        *(STEPS["full"], PLAN["model"]["finetune_batch"], STEPS["trial"], STEPS["longer"]),
    ],
    "DAM: free gates, {} steps on the frozen model. Random search in "
    "[head_roles](../../search_spaces/head_roles.py), at equal tokens.": [
        PLAN["arms"]["dam"]["options"]["config"]["steps"],
    ],
    "Hand-designed: all of `masks.equal_cost_baselines` that have a whole head, {} within {} % "
    "and {} within {} %. The {} that a trial's recovery prefers are recovered in full (all of "
    "them on {} models), and search rows prefer one.": [
        *(len(ours.best_hand(lines[0], 0.2)), 20, len(ours.best_hand(lines[0], 0.12)), 12),
        *(PLAN["hand"]["recovered"], len(PLAN["seeds"]["all_hand"])),
    ],
    "Rows: searches read {} rows of the training file that nothing is trained on.": [
        PLAN["rows"]["held_out"] / 2
    ],
    "Pearson correlation on {} rows, mean over {} dense models [95 %]. The figure shows the masks "
    "of dense model {}.": [
        len(next(iter(ours.over_budgets(lines, "dam", [0.12]).rows.values())).scores["STS-B"]),
        *(len(lines), min(lines)),
    ],
    "DAM at {} % minus the hand-designed mask within {} %, after the same steps, is {} [{}, {}]; "
    "that DAM loses at most {} there is not shown": [
        *(12, 25, *HEADLINE[["difference", "low", "high"]], MARGIN),
    ],
    "Where it trains on, at {} %, full heads in some of the layers, and the search's tokens spent "
    "on training, are {}.": [20, {"behind": "ahead", "ahead of": "behind"}[side]],
    "At {} % training starts under DAM's mask on all {} models, under the preferred hand-designed "
    "one on some.": [12, sum(score > 0.8 for score in by_seed_of("dam"))],
    "Over {} masks within {} % the rank correlation of a trial with a full recovery is {} after "
    "{} steps and {} after {}. {} of the twelve end at {} to {}: training under them hardly "
    "starts.": [
        *(len(by_steps), 20, by_steps[STEPS["trial"]].corr(late, method="spearman")),
        *(STEPS["trial"], by_steps[20].corr(late, method="spearman"), 20),
        *(len(slow), slow.min(), slow.max()),
    ],
}
LONGER = ours.PLAN["steps"]["longer"] - ours.PLAN["steps"]["full"]
AHEAD = -minus("hand, longer", 0.2)[0]  # of the hand-designed mask, at 20 %
longer_ahead = {budget: ahead("hand, longer", budget)[1] for budget in (0.2, 0.12)}
MOST = max(  # of all hand-designed masks of 12 % that were judged as they are
    line["score"]
    for own in lines.values()
    for name, line in ours.judged(own, "none", "test").items()
    if name in ours.by_score(ours.judged(own, "none", "test"), 0.12)
)
FIRST_PAGE = {
    "| a model that trains on under its mask | hand-designed masks, which with "
    "{} % of the pairs, trained {}, [were {}](experiments/21_recovered/README.md); over {} "
    "budgets no difference was shown |": [
        *(20, LONGER, tuple(-minus("hand, longer", 0.2)[at] for at in (0, 2, 1)), 2),
    ],
}
ALL_PAGES = {
    "not shown over both budgets; at {} % hand-designed masks, trained {}, are {} by {} |": [
        *(20, LONGER, *2 * [tuple(-minus("hand, longer", 0.2)[at] for at in (0, 2, 1))]),
    ],
}
LINK = "[21](../experiments/21_recovered/README.md) |"
FEWER = ours.minus(
    ours.over_budgets(lines, "dam", [0.12], "none"),
    ours.over_budgets(lines, "hand", [0.2], "none"),
)
PAGE |= {
    "Where a mask is put on a fine-tuned model as it is, search pays: of the whole heads judged "
    "so, none keeps more than {} at {} %. DAM's mask of {} % is also {} [{}, {}] {} of the "
    "hand-designed masks of {} %.": [
        *(MOST, 12, 12, FEWER.value, FEWER.low, FEWER.high, FEWER.value, 20),
    ],
    "After a trial's {} steps hardly any mask has begun to learn, so which one is "
    "preferred is luck: {} to {} describes the choice as much as the masks.": [
        *(ours.PLAN["steps"]["trial"], *ends("hand, longer", 0.12)),
    ],
}
FIXED = ours.over_budgets(lines, "hand, fixed", [0.12])
BESIDE = ours.minus(ours.over_budgets(lines, "dam", [0.12]), FIXED)
DAM_AT_12 = by_seed_of("dam")
PAGE |= {
    f'"{ours.PLAN["amendment"]["mask"]}" of {{}} % of the pairs, after the longer schedule on '
    "each of the {} dense models: {}, {}, {}, {} and {}; DAM: {}, {}, {}, {} and {}.": [
        *(12, len(lines), *FIXED.scores.values(), *DAM_AT_12),
    ],
    "DAM minus that mask is {} [{}, {}]; DAM is ahead on {} and behind on {}.": [
        *(BESIDE.value, BESIDE.low, BESIDE.high, *ahead("hand, fixed", 0.12)),
    ],
}
# as it is the search is ahead, trained on it is not; and a budget changes who is
DEPENDS = FEWER.low > 0 > minus("hand, longer", 0.2)[2] and longer_ahead[0.2] > longer_ahead[0.12]
BEFORE = re.search(r"alone, (\w+) any score that it governs", PLAN_TEXT)[1]
PAGE[f"[plan.toml](plan.toml) was committed {BEFORE} the first score that it governs."] = []
ADVICE = {
    "Where a model trains on under its mask, it "
    f"{'depends' if DEPENDS else 'does not depend'} on the budget "
    "([21](../experiments/21_recovered/README.md)).": [],
    "| one that trains on under a mask of {} % | hand-designed full heads in some layers, with "
    "{} training | measured; over both budgets no difference was shown | " + LINK: [
        *(20, LONGER),
    ],
    "| one that trains on under a mask of {} % | DAM: under hand-designed masks training takes "
    "off only on some models | measured; over both budgets no difference was shown | " + LINK: [
        12
    ],
}
CLAIMS = [
    *rows(HERE, {title: SCORES[title] for title in SCORES if title not in LEFT}, "## Scores"),
    *rows(HERE, {title: SCORES[title] for title in LEFT}, "## Other arms"),
    *rows(HERE, PRIMARY, after="## The planned test"),
    *rows(HERE, SINGLE, after="## Differences"),
    *sentences(HERE, PAGE),
    *sentences("README.md", FIRST_PAGE),
    *sentences("experiments/README.md", ALL_PAGES),
    *sentences("docs/does_search_pay.md", ADVICE),
]
HEADS = "20 %, as it is | 20 %, recovered | 12 %, as it is | 12 %, recovered |"
NO_CLAIM = [  # headings, settings that the plan says in words, what was not run
    (HERE, f"| arm | {HEADS}"),
    (HERE, f"| DAM minus | {HEADS}"),
    (HERE, "| contrast | mean over 20 and 12 %, Holm's interval | p | adjusted p |"),
    (HERE, "Question. Fine-tune a dense model,"),
    (HERE, "does the searched mask keep more than hand-designed masks of the same cost, and than "
     "random search?"),
    (HERE, "One budget at a time, single intervals, in no family; behind each, on how many of the "
     "five models DAM is ahead."),
    (HERE, 'Amendment (2026-11-28): "more full heads, every n-th layer" of 12 %, longer '
     "schedule."),
    (HERE, "It was named because it did best on models 1 and 4, before the other scores."),
    (HERE, "The planned mean mixes budgets whose spreads differ more than tenfold; a test for "
     "each would have been the better plan."),
    (HERE, "One task, one checkpoint, [CLS]'s read-out, pairs of sentences of 28 tokens."),
    (HERE, "hand-designed masks were chosen by recovered scores, and families from papers were "
     "not judged; experiment 22 judges all."),
    (HERE, "they chose DAM's settings in experiments 11, 12, 15 and 19."),
    (HERE, "more budgets, searches and schedules, transfer, a second task."),
    (HERE, "has the planned test in full, random keys, an optimistic bound and the pilot."),
    (HERE, "A dense model a seed: MiniLM (6 layers, 12 heads), one epoch of STS-B."),
    (HERE, "Each dense model gives one difference, paired over its rows too."),
    (HERE, "Holm over the two contrasts."),
    (HERE, "Judging rows choose the hand-designed mask of the first row, an optimistic bound."),
    (HERE, "One dense model that no run of the plan has,"),
    (HERE, "Dense models are transformers' own class, one epoch of STS-B's training rows. A "
     "recovery learns from the labels and the dense model's score in equal parts."),
    (HERE, "Budgets of 30 and 6 %, TPE, first-order effects, switches, transfer, a second task, "
     "schedules of 480 and 1,440 steps, and the least density that loses two points have not "
     "been run."),
]  # fmt: skip
