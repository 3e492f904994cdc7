"""What the pages say of this experiment, recomputed from results/: see experiments/verify.py."""

import runpy
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pandas as pd

from experiments.verify import Claim, interval, rows, sentences

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
families = mrpc.drop(["dense", "random keys"])
taus = secondary[secondary["measure"].str.startswith("tau-b")]["value"]  # all, .12, .2, ..
beats = "beat" if max(low for _, low, _ in minus.values()) <= 0 else "?"
above = "above" if of_arm.min()["dam"] > of_arm.max()["random"] else "below"
top = "above" if of_arm.max()["tpe"] > of_arm.max()["dam"] else "below"

ARMS = {
    title: [*score(arm), *figure("hypervolume", arm)]
    for arm, title in (NAMES | {"random": "random search"}).items()
}
CONTRASTS = {
    f"{NAMES[one]} - {NAMES[other]}": [
        *score(f"{one} - {other}"),
        *tested.loc[f"{one} - {other}", ["p", "adjusted_p"]],
    ]
    for one, other in front.CONTRASTS
}
BY_BUDGET = {f"{budget:g}": [mean(arm, budget) for arm in NAMES] for budget in BUDGETS}
for budget, cells in BY_BUDGET.items():
    cells += figure(f"score at {budget}", "dam - random")
    cells += figure(f"score at {budget}", "dam - tpe")
BY_HAND = {}
for rival in front.rivals(RESULTS, on_card, BUDGETS).itertuples():
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
MEANS = [*of_arm.mean()[["dam", "random"]], *gain, p, of_arm.mean()["tpe"]]
SHIFTS = [shifts["score"], 100 * shifts["density"], dense, mean("dam", 0.2), 20]
MRPC = [mrpc["dense"], families.min(), families.max()]
RUNS = [by_hand, len(of_card) - 2 * by_hand, by_hand]
PAGE = {
    "random search: {} against {} of correlation, mean over the four budgets, {} [{}, {}] (five "
    "searches a side, adjusted p {}). TPE's {} is not told": MEANS,
    "minus those that search rows prefer, DAM's are {} [{}, {}], TPE's {} [{}, {}], those of "
    "random search {} [{}, {}]": [*minus["dam"], *minus["tpe"], *minus["random"]],
    "has {} with {} % of the pairs (dense attention {}), where DAM has {} with {} %": SHIFTS,
    "judged last, have {} with {} %; the best of the fifteen searches has {} with {} %": TWO_FULL,
    "One full head a layer has {} and one each way, of as many pairs, {}": [
        whole.loc[("full heads", 0.2), "score"],
        shifts["score"],
    ],
    "within 30 % one judging seed of three has {}.": [by_seed.loc["heads each way 0.3"].min()],
    "DAM's {} searches lie {} all five": ["five", above],
    "DAM minus random is {} (p {})": [*again.loc["dam - random", ["difference", "p"]]],
    "deviations of {} (DAM), {} (random) and {} (TPE)": [*of_arm.std()[["dam", "random", "tpe"]]],
    "TPE's best search, {}, is {} every search of DAM": [of_arm.max()["tpe"], top],
    "at {} % {} of ten searches chose a mask of {} %": [20, sparse(0.2, 0.15), 12],
    "at {} % {} chose one of at most {} %": [30, sparse(0.3, 0.21), 20],
    "is {} over all 60 masks, and {}, {}, {} and {} within budgets of 12, 20, 30": [*taus],
    "{} million tokens a search of random search and TPE, {} of DAM": [*tokens[["tpe", "dam"]]],
    "deviation of {} without what a seed's masks share, masks of {}": front.noise_and_spread(
        cards
    ),
    "Correlations are low, {} to {}": [cards["mean"].min(), cards["mean"].max()],
    "({} runs), on shared 2-core CPUs: {} core-hours": [scores["seeds"].sum(), hours],
    "At {} % the best of the fifteen searches keeps {}": [20, best],
    "TPE is {} above these, too": [mean("tpe", 0.5) - shifts["score"]],
    "DAM is {} [{}, {}] from the drawn masks": score("dam - the drawn, by judged rows"),
    "{} [{}, {}] from random keys": score("dam - random keys"),
    "mean over the {} masks, {} [{}, {}]": [len(scores), *score("card - CPU, of masks")],
    "dense attention reaches {}, the drawn masks {} to {}": MRPC,
    "attention ({} runs), the searches' masks ({}), and MRPC under the drawn masks ({})": RUNS,
}
ALL_PAGES = {
    "| {}'s masks are {} [{}, {}] of STS-B's correlation {} those of random search in the mean "
    "over four budgets (five searches a side, adjusted p {}), {}'s are not told": [
        *("DAM", *gain, gain[0], p, "TPE")
    ],
    "at half of the pairs TPE's are {} DAM's": [-figure("score at 0.5", "dam - tpe")[2]],
    "minus those that search rows prefer, DAM's are {} [{}, {}], those of random search {} "
    "[{}, {}]; a head each way a layer keeps {} with {} % of the pairs, where the best search "
    "keeps {} with {} %; {} full heads a layer, judged last, keep {} with {} %, five {} with "
    "{} %": [
        *(*minus["dam"], *minus["random"], *SHIFTS[:2], best, 20, 2, *TWO_FULL[:2]),
        *(
            whole.loc[("full heads", 0.5), "score"],
            100 * whole.loc[("full heads", 0.5), "density"],
        ),
    ],
}
FIRST_PAGE = {
    "within 30 %, DAM minus two full heads a layer, drawn by hand: {} [{}, {}]": (
        BEHIND["DAM - full heads"][:3]
    ),
    "DAM's masks keep {} of STS-B's score than those of random search; TPE's are not told": [
        gain[1]
    ],
    "mean over four budgets, DAM minus random: {} [{}, {}], minus drawn: {} [{}, {}], five "
    "searches a side": [*gain, *minus["dam"]],
    "One mask drawn {}, in each layer one head that sees earlier tokens and one that sees later "
    "ones, keeps {} there, {} attention {}, {}'s searches {} in the mean; at half of the pairs "
    "{}'s keep {}": [
        *("by hand", shifts["score"], "dense", dense),
        *("DAM", mean("dam", 0.2), "TPE", mean("tpe", 0.5)),
    ],
}
CLAIMS = [
    *rows(HERE, ARMS | CONTRASTS, after="## Primary"),
    *rows(HERE, BY_BUDGET, after="## By budget"),
    *rows(HERE, BY_HAND, after="## Against masks drawn by hand"),
    *rows(HERE, HEADS | BEHIND | EACH_WAY, after="## Whole heads"),
    *sentences(HERE, PAGE),
    *sentences("experiments/README.md", ALL_PAGES),
    *sentences("README.md", FIRST_PAGE),
    *(Claim(page, "None is shown to {} masks drawn {}", [beats, "by hand"])
      for page in (HERE, "README.md")),
]  # fmt: skip
