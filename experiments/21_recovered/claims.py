"""What the pages say of this experiment, recomputed from results/: see experiments/verify.py."""

import runpy
from pathlib import Path
from types import SimpleNamespace

from experiments.verify import rows, sentences

FOLDER = Path(__file__).parent
HERE = "experiments/21_recovered/README.md"
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
    "hand, longer": "the same, trained for the longer schedule",
    "hand, best": "hand-designed, best on judging rows",
    "random keys": "random keys",
}
PAIRS = {
    "hand, longer": "DAM - hand-designed, longer schedule",
    "hand": "DAM - hand-designed, same steps",
    "random": "DAM - random search",
    "dense": "DAM - dense",
}


def cell(table: object, arm: str, budget: float) -> list[float]:
    """An arm's mean score and its interval."""
    return [*table.loc[(arm, budget), ["score", "low", "high"]]]


def minus(other: str, budget: float, steps: str = "full") -> list[float]:
    """DAM minus another arm, and the interval."""
    return [*differences.loc[(f"dam - {other}", budget, steps), ["difference", "low", "high"]]]


def ends(arm: str, budget: float) -> list[float]:
    """The least and the greatest score over dense models."""
    own = ours.by_seed(lines, arm, budget)
    return [min(own), max(own)]


SCORES = {
    title: [
        end
        for budget in (0.2, 0.12)
        for table in ((after,) if arm == "hand, longer" else (before, after))
        for end in cell(table, arm, budget)
    ]
    for arm, title in NAMES.items()
}
SCORES["dense attention, all pairs"] = [*cell(before, "dense", 1.0), *cell(after, "dense", 1.0)]
PRIMARY = {
    title: [*tested.loc[name, ["difference", "low", "high", "p", "adjusted_p"]]]
    for name, title in (
        ("dam - hand, longer", PAIRS["hand, longer"]),
        ("dam - random", PAIRS["random"]),
    )
}
SINGLE = {
    title: [
        end
        for budget in (0.2, 0.12)
        for steps in (("full",) if other == "hand, longer" else ("none", "full"))
        for end in minus(other, budget, steps)
    ]
    for other, title in PAIRS.items()
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
PAGE = {
    "trained longer by what DAM's search costs, is {} [{}, {}], minus random search {} [{}, "
    "{}].": [
        *PRIMARY[PAIRS["hand, longer"]][:3],
        *PRIMARY[PAIRS["random"]][:3],
    ],
    "At {} % DAM is {} that mask, by {} [{}, {}].": [20, side, *minus("hand, longer", 0.2)],
    "At {} % DAM keeps {} to {} on the five dense models, dense attention {}; the hand-designed "
    "masks keep {} to {}, random search's {} to {}": [
        *(12, *ends("dam", 0.12), dense, *ends("hand, longer", 0.12), *ends("random", 0.12)),
    ],
    "DAM's masks keep {} [{}, {}] and {} [{}, {}] more.": [
        *minus("hand", 0.2, "none"),
        *minus("hand", 0.12, "none"),
    ],
    "The plan's floor and that headline took {} hours of runs": [ours.hours(lines)],
    "DAM at {} % minus the hand-designed mask within {} %, after the same steps, is {} [{}, {}]; "
    "that DAM loses at most {} there is not shown": [
        *(12, 25, *HEADLINE[["difference", "low", "high"]], MARGIN),
    ],
}
LONGER = ours.PLAN["steps"]["longer"] - ours.PLAN["steps"]["full"]
AHEAD = -minus("hand, longer", 0.2)[0]  # of the hand-designed mask, at 20 %
PLANNED = PRIMARY[PAIRS["hand, longer"]][:3]
AS_IS = {arm: [cell(before, arm, at)[0] for at in (0.2, 0.12)] for arm in ("dam", "hand")}
ahead = {
    budget: sum(
        score > other
        for score, other in zip(
            ours.by_seed(lines, "hand, longer", budget),
            ours.by_seed(lines, "dam", budget),
            strict=True,
        )
    )
    for budget in (0.2, 0.12)
}  # models on which the hand-designed mask, trained longer, is ahead of DAM's
MOST = max(  # of all hand-designed masks of 12 % that were judged as they are
    line["score"]
    for own in lines.values()
    for name, line in ours.judged(own, "none", "test").items()
    if name in ours.by_score(ours.judged(own, "none", "test"), 0.12)
)
FIRST_PAGE = {
    "scores as they are put on and after {} steps under them. As they are put on, DAM's keep {} "
    "of dense attention's {}, the hand-designed ones {}; after these steps {} and {}.": [
        *(ours.PLAN["steps"]["full"], AS_IS["dam"][1], cell(before, "dense", 1.0)[0]),
        *(AS_IS["hand"][1], cell(after, "dam", 0.12)[0], cell(after, "hand", 0.12)[0]),
    ],
    "With {} % of the pairs DAM's masks keep {} [{}, {}], where dense attention keeps {}; no "
    "hand-designed mask that was judged keeps {} | At {} %, DAM minus the hand-designed mask: {} "
    "[{}, {}], minus dense: {} [{}, {}] |": [
        *(12, *cell(before, "dam", 0.12), cell(before, "dense", 1.0)[0], MOST, 12),
        *(*minus("hand", 0.12, "none"), *minus("dense", 0.12, "none")),
    ],
    "| Whole heads are level at equal cost: with the search's steps on top of those {}, "
    "hand-designed ones are {} of DAM at {} % on {} of {} models, at {} % on {} | DAM minus "
    "these, at {} %: {} [{}, {}]; mean over both budgets (the test planned beforehand): {} [{}, "
    "{}], not shown |": [
        *(ours.PLAN["steps"]["full"], AHEAD, 20, ahead[0.2], len(lines), 12, ahead[0.12]),
        *(20, *minus("hand, longer", 0.2), *PLANNED),
    ],
}
ALL_PAGES = {
    "not shown by the planned test, the mean over {} and {} %: DAM minus the hand-designed mask, "
    "trained {}, is {} [{}, {}]; at {} % that mask is {}, by {} [{}, {}]; at {} % DAM keeps {} to "
    "{} on {} models, hand-designed masks {} to {}; put on without further training DAM's keep "
    "{} [{}, {}] and {} [{}, {}] {}": [
        *(
            20,
            12,
            LONGER,
            *PLANNED,
            20,
            AHEAD,
            *(-minus("hand, longer", 0.2)[at] for at in (0, 2, 1)),
        ),
        *(12, *ends("dam", 0.12), len(lines), *ends("hand, longer", 0.12)),
        *(
            *minus("hand", 0.2, "none"),
            *minus("hand", 0.12, "none"),
            minus("hand", 0.2, "none")[1],
        ),
    ],
}
LINK = "([21](../experiments/21_recovered/README.md)) |"
ahead_of = {  # models on which DAM is ahead of another arm
    (other, budget, steps): sum(
        ours.over_budgets(lines, "dam", [budget], steps).scores[seed] > score
        for seed, score in ours.over_budgets(lines, other, [budget], steps).scores.items()
    )
    for other, steps in (("hand, longer", ""), ("hand", ""), ("hand", "none"))
    for budget in (0.12, 0.2)
}
FEWER = ours.minus(
    ours.over_budgets(lines, "dam", [0.12], "none"),
    ours.over_budgets(lines, "hand", [0.2], "none"),
)
PAGE |= {
    "at {} % DAM is ahead of the hand-designed mask trained longer on {} models and behind on {}, "
    "at {} % behind on {}; after the same steps it is ahead on {} and on {}; as masks are put on, "
    "on {} and on {}.": [
        *(12, ahead_of["hand, longer", 0.12, ""], ahead[0.12], 20, ahead[0.2]),
        *(ahead_of[each] for each in (("hand", 0.12, ""), ("hand", 0.2, ""))),
        *(ahead_of[each] for each in (("hand", 0.12, "none"), ("hand", 0.2, "none"))),
    ],
    "none keeps more than {} at {} %. As it is, DAM's mask of {} % is also {} [{}, {}] ahead of "
    "the hand-designed masks of {} %.": [
        *(MOST, 12, 12, FEWER.value, FEWER.low, FEWER.high, 20),
    ],
    "After a trial's {} steps hardly any of these masks has begun to learn, so which one is "
    "preferred is luck: {} to {} describes": [
        *(ours.PLAN["steps"]["trial"], *ends("hand, longer", 0.12)),
    ],
}
ADVICE = {
    "| a fine-tuned encoder that trains on under its mask, at {} % of the pairs | hand-designed "
    "full heads in some of the layers, and the search's tokens spent on training | DAM minus "
    "these is {} [{}, {}] on STS-B, at equal steps {} [{}, {}] " + LINK: [
        *(20, *minus("hand, longer", 0.2), *minus("hand", 0.2)),
    ],
    "| the same at {} % | DAM; or full heads, if training starts under them | DAM keeps {} "
    "to {} on {} models, the hand-designed mask that search rows prefer, trained {}, {} "
    "to {}: it is {} of "
    "DAM on {} of {} models. Random search keeps {} to {}; DAM minus the hand-designed masks of "
    "twice the pairs is {} "
    "[{}, {}]. In the mean over both budgets, the planned test, no difference is shown " + LINK: [
        *(12, *ends("dam", 0.12), len(lines), LONGER, *ends("hand, longer", 0.12)),
        *(ahead[0.12], ahead[0.12], len(lines), *ends("random", 0.12)),
        *HEADLINE[["difference", "low", "high"]],
    ],
    "After a dense fine-tuning DAM keeps {} [{}, {}] of {} " + LINK: [
        *cell(after, "dam", 0.12),
        dense,
    ],
    "| the same without further training | DAM | at {} and {} % it keeps {} and {}, the "
    "hand-designed mask {} and {} " + LINK: [20, 12, *AS_IS["dam"], *AS_IS["hand"]],
}
CLAIMS = [
    *rows(HERE, SCORES, after="## Scores"),
    *rows(HERE, PRIMARY, after="## Primary"),
    *rows(HERE, SINGLE, after="## By budget"),
    *sentences(HERE, PAGE),
    *sentences("README.md", FIRST_PAGE),
    *sentences("experiments/README.md", ALL_PAGES),
    *sentences("docs/does_search_pay.md", ADVICE),
]
