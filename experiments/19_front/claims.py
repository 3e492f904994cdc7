"""What the pages say of this experiment, recomputed from results/: see experiments/verify.py."""

import runpy
from functools import partial
from pathlib import Path
from statistics import fmean
from types import SimpleNamespace

import pandas as pd

from experiments.verify import interval, rows, sentences

FOLDER = Path(__file__).parent
RESULTS = FOLDER / "results"
HERE = "experiments/19_front/README.md"
NAMES = {"dam": "DAM", "tpe": "TPE", "random": "random"}
front = SimpleNamespace(**runpy.run_path(str(FOLDER / "tables.py")))
BUDGETS = front.PLAN["budgets"]["densities"]

cards = front.card(front.read(RESULTS / "card.jsonl")).dropna()  # masks with both seeds
picked, scores = front.chosen(RESULTS, BUDGETS), front.judged(RESULTS, "STS-B")
on_card = front.judged(RESULTS, "STS-B_card")
means, secondary = front.by_search(picked, scores), front.secondary(RESULTS, BUDGETS)
of_arm = means.groupby("arm")["score"]
tested = front.contrasts(means).set_index("contrast")
again = front.contrasts(front.by_search(picked, on_card)).set_index("contrast")
by_layer = pd.read_csv(RESULTS / "layers.csv")
families = front.above_families(RESULTS, BUDGETS).set_index(["measure", "arm"])
tokens = front.costs(RESULTS).groupby("arm")["tokens"].max() / 1e6
lines = {path.stem: front.read(path) for path in RESULTS.glob("*.jsonl")}
of_card = [line for name, own in lines.items() if name.endswith("_card") for line in own]
of_cpu = [line for name, own in lines.items() if not name.endswith("_card") for line in own]
by_hand = sum(line["where"] == "drawn" for line in of_card) / 2  # of STS-B, and of MRPC
own = [line for line in of_cpu if line.get("where") not in ("drawn", "heads")]
hours = sum(line["seconds"] for line in own) / 3600
whole = front.judged(RESULTS, "heads").set_index(["arm", "budget"])


def figure(measure: str, arm: str) -> list[float]:
    """A figure of secondary.csv with its interval."""
    (row,) = secondary[(secondary["measure"] == measure) & (secondary["arm"] == arm)].itertuples()
    return [row.value, row.low, row.high]


def mean(arm: str, budget: float) -> float:
    """An arm's judged score at a budget, over its searches."""
    return scores[(scores["arm"] == arm) & (scores["budget"] == budget)]["score"].mean()


def alone(arm: str, budget: float) -> list[float]:
    """An arm's judged score over the searches whose mask is none of a smaller budget."""
    least = max((each for each in BUDGETS if each < budget), default=0) * (1 + front.ROUNDING)
    at = (scores["arm"] == arm) & (scores["budget"] == budget) & (scores["density"] > 1.01 * least)
    return [scores[at]["score"].mean(), at.sum()]


def layers(budget: float) -> list[float]:
    """The range over DAM's searches of what its last layer keeps, and of what the others keep."""
    own = by_layer[by_layer["budget"] == budget]
    last = own["layer"] == by_layer["layer"].max()
    return [end for part in (own[last], own[~last])
            for end in (part["share"].min(), part["share"].max())]  # fmt: skip


def sparse(budget: float, most: float) -> int:
    """Searches of the samplers that chose a mask of at most that density."""
    own = picked[(picked["arm"] != "dam") & (picked["budget"] == budget)]
    return int((own["density"] < most).sum())


score = partial(figure, "score")
gain, p = score("dam - random"), tested.loc["dam - random", "adjusted_p"]
DRAWN = "the drawn, by search rows"
minus = {arm: score(f"{arm} - {DRAWN}") for arm in NAMES}
found = on_card[on_card["budget"] == 0.2].set_index("arm")
shifts, best = found.loc["signed shifts"], found.loc[[*NAMES], "score"].max()
dense = on_card.set_index("arm").loc["dense", "score"]
mrpc = front.judged(RESULTS, "MRPC_card").set_index("arm")["score"]
of_mrpc = mrpc.drop(["dense", "random keys"])
taus = secondary[secondary["measure"].str.startswith("tau-b")]["value"]  # all, .12, .2, ..
beats = "beat" if max(low for _, low, _ in minus.values()) <= 0 else "?"
top = "above" if of_arm.max()["tpe"] > of_arm.max()["dam"] else "below"

ARMS = {
    title: [*score(arm), of_arm.std()[arm], *figure("hypervolume", arm)]
    for arm, title in (NAMES | {"random": "random search"}).items()
}
PRINTED = ["p", "adjusted_p", "welch_p", "adjusted_welch_p", "low", "high"]
CONTRASTS = {
    f"{NAMES[one]} - {NAMES[other]}": [
        *score(f"{one} - {other}"),
        *tested.loc[f"{one} - {other}", PRINTED],
    ]
    for one, other in front.CONTRASTS
}
BY_BUDGET = {f"{budget:g}": [mean(arm, budget) for arm in NAMES] for budget in BUDGETS}
for budget, cells in BY_BUDGET.items():
    cells += figure(f"score at {budget}", "dam - random")
    cells += figure(f"score at {budget}", "dam - tpe")
FAMILIES = {
    at: [end for arm in NAMES for end in families.loc[(at, arm), ["value", "low", "high"]]]
    for at in ("mean", *(f"{budget:g}" for budget in BUDGETS))
}
chosen = front.rivals(RESULTS, on_card, BUDGETS)
among_all = front.rivals(RESULTS, on_card, BUDGETS, heads=True)
all_by_search = front.by_search(picked, on_card).set_index("arm")["score"]
BEHIND_ALL = {arm: interval(all_by_search[arm] - among_all["judged"].mean()) for arm in NAMES}
assert [*among_all["mask"].str.rsplit(" ", n=1).str[0]] == [
    *("heads each way", "full heads", "signed shifts", "signed shifts"),
]
BY_HAND = {"mean |": [chosen["judged"].mean(), *(end for arm in NAMES for end in minus[arm])]}
for rival in chosen.itertuples():
    cells = BY_HAND[f"{rival.budget:g} | {rival.mask.rsplit(' ', 1)[0]}"] = [rival.judged]
    for arm in NAMES:
        cells += figure(f"score at {rival.budget:g}", f"{arm} - {DRAWN}")

HEADS = {
    f"{arm} {budget:g}": [100 * line["density"], line["score"]]
    for (arm, budget), line in whole.iterrows()
}
BEHIND = {  # what searches have, minus full heads of that budget
    f"{arm} - full heads": [
        end
        for budget in (0.3, 0.2)
        for end in interval(
            scores[(scores["arm"] == key) & (scores["budget"] == budget)]["score"]
            - whole.loc[("full heads", budget), "score"]
        )
    ]
    for key, arm in NAMES.items()
}
by_seed = pd.DataFrame(filter(front.scored, lines["judged_heads"]))
by_seed = by_seed.pivot(index="name", columns="seed", values="score")
EACH_WAY = {  # of as many pairs, paired over the judging seeds
    f"each way - full, {100 * budget:g} %": interval(
        by_seed.loc[f"heads each way {budget}"] - by_seed.loc[f"full heads {budget}"]
    )
    for budget in (0.5, 0.3)
}
TWO = whole.loc[("full heads", 0.3)]
TWO_FULL = [TWO["score"], 100 * TWO["density"], scores[scores["budget"] == 0.3]["score"].max(), 30]
SHIFTS = [shifts["score"], 100 * shifts["density"], dense, mean("dam", 0.2), 20]
MRPC = [mrpc["dense"], of_mrpc.min(), of_mrpc.max()]
RUNS = [by_hand, len(of_card) - 2 * by_hand, by_hand]
BY_NOW = [  # of each budget the best hand-designed mask that is judged, whole heads among them
    max(
        each["score"]
        for each in (*on_card.to_dict("records"), *whole.reset_index().to_dict("records"))
        if each["where"] in ("drawn", "heads") and each["arm"] not in front.CONTROLS
        and each["density"] <= budget
    )
    for budget in BUDGETS
]  # fmt: skip
of_card_dam = front.by_search(picked, on_card).set_index("arm").loc["dam", "score"]
WELCH = tested.loc["dam - random", "adjusted_welch_p"]
BEAT = "beat" if families.loc["mean", "low"].min() > 0 else "?"
assert (families.loc["0.12", "low"] <= 0).all()  # "none is shown to"
assert tested.loc["dam - random", "p"] == 2 / 252  # "the least"
PAGE = {
    "All three {} the six families from papers in the mean over the budgets, DAM by {} [{}, {}]; "
    "at 12 % none is shown to.": [BEAT, *FAMILIES["mean"][:3]],
    "a narrower space: {} [{}, {}], adjusted p {} by permutation, {} by Welch's test. TPE's are "
    "not told from either": [*gain, p, WELCH],
    "heads among them (listed after they had been judged), DAM's are {} [{}, {}].": [
        *BEHIND_ALL["dam"],
    ],
    "without full heads, DAM's are {} [{}, {}], and none of the three is shown to {} it.": [
        *(*minus["dam"], beats),
    ],
    "signed shifts at 20 and 12 %: in the mean {}. DAM minus these is {} [{}, {}], TPE {} [{}, "
    "{}], random search {} [{}, {}].": [
        among_all["judged"].mean(),
        *(end for arm in NAMES for end in BEHIND_ALL[arm]),
    ],
    "has {} with {} % of the pairs (dense attention {}), where DAM has {} with {} %": SHIFTS,
    "judged last, {} with {} %, where the best of the fifteen searches has {} with {} %": TWO_FULL,
    "at the edge: {} after Holm, {} by the card": [
        WELCH,
        again.loc["dam - random", "adjusted_welch_p"],
    ],
    "TPE's best search, {}, is {} every search of DAM": [of_arm.max()["tpe"], top],
    "At {} % {} of ten searches chose a mask of {} %": [20, sparse(0.2, 0.15), 12],
    "at {} % {} one of at most {} %": [30, sparse(0.3, 0.21), 20],
    "Masks of the budget alone have {} (DAM, {} searches), {} (TPE, {}) and {} (random, {}) at "
    "{} %": [*(end for arm in NAMES for end in alone(arm, 0.3)), 30],
    "is {} over all 60 masks, and {}, {}, {} and {} within 12, 20, 30 and 50 %": [*taus],
    "at {} % the last layer keeps {} to {} of its pairs, the others {} to {}; at {} % {} to {} "
    "and {} to {} (of {} tokens)": [
        *(30, *layers(0.3), 20, *layers(0.2)),
        front.PLAN["budgets"]["tokens_a_row"],
    ],
    "At {} % the best of the fifteen searches keeps {}": [20, best],
    "DAM is {} [{}, {}] from the best hand-designed masks": interval(of_card_dam - fmean(BY_NOW)),
    "{} [{}, {}] from random keys": score("dam - random keys"),
    "mean over the {} masks: {} [{}, {}]": [len(scores), *score("card - CPU, of masks")],
    "One full head a layer has {}, one each way, of as many pairs, {}": [
        whole.loc[("full heads", 0.2), "score"],
        shifts["score"],
    ],
    "one judging seed of three has {}.": [by_seed.loc["heads each way 0.3"].min()],
    "deviation of {} of one mask over seeds, without what a seed's masks share, and of {} of": (
        front.noise_and_spread(cards)
    ),
    "Correlations are low, {} to {}": [cards["mean"].min(), cards["mean"].max()],
    "searches, {} million tokens each (DAM {})": [*tokens[["tpe", "dam"]]],
    "({} runs), on shared CPUs: {} core-hours": [scores["seeds"].sum(), hours],
    "attention ({} runs), the searches' masks ({}), MRPC under hand-designed masks ({})": RUNS,
    "tells nothing: dense {}, these {} to {}": MRPC,
}
ALL_PAGES = {
    "hand-designed masks keep {}, by {} in the mean over {} budgets": [
        *(*2 * [tuple(-BEHIND_ALL["dam"][at] for at in (0, 2, 1))], len(BUDGETS)),
    ],
}
assert BEHIND["TPE - full heads"][2] > 0 < BEHIND["random - full heads"][2]  # "not shown"
low, lower, *_, highest = sorted(
    scores[(scores["arm"] == "random") & (scores["budget"] == 0.5)]["score"]
)
APART = highest - low > abs(figure("score at 0.5", "dam - tpe")[0])  # one strategy's searches
PAGE["At 50 % two of the five random searches keep {} and {}."] = [low, lower]
LINK = "[19](../experiments/19_front/README.md) |"
ADVICE = {
    "| a checkpoint that learns its task under a mask of {} % | {} hand-designed full heads in "
    "each layer | afterwards | " + LINK: [
        TWO_FULL[1],
        2,
    ],
    "| a checkpoint that would learn its task under a mask of {} % | no such training: fine-tune "
    "it dense first | measured | "
    + LINK.replace(" |", ", [21](../experiments/21_recovered/README.md) |"): [12],
    f"and repeat the search: one search says {'little' if APART else 'enough'}.": [],
    "| a checkpoint that learns its task under half of the pairs | {} full heads in each layer, "
    "or TPE | measured | " + LINK: [5],
}
CLAIMS = [
    *rows(HERE, ARMS | CONTRASTS, after="## Primary"),
    *rows(HERE, BY_BUDGET, after="## By budget"),
    *rows(HERE, FAMILIES, after="## Against the families from papers"),
    *rows(HERE, BY_HAND, after="## Against hand-designed masks"),
    *rows(HERE, HEADS | BEHIND, after="## Whole heads"),
    *rows(HERE, EACH_WAY),
    *sentences(HERE, PAGE),
    *sentences("experiments/README.md", ALL_PAGES),
    *sentences("docs/does_search_pay.md", ADVICE),
]  # fmt: skip
