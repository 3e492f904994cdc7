"""What the pages say of this experiment, recomputed from results/: see experiments/verify.py."""

import runpy
import sys
from pathlib import Path

import numpy as np

from experiments.verify import Claim, rows, sentences

FOLDER = Path(__file__).parent
RESULTS = FOLDER / "results"
HERE = "experiments/19_front/README.md"
sys.path.insert(0, str(FOLDER))  # secondary.py imports tables.py by its name
TABLES = runpy.run_path(str(FOLDER / "tables.py"))
FIGURES = runpy.run_path(str(FOLDER / "secondary.py"))
sys.path.remove(str(FOLDER))
BUDGETS = TABLES["PLAN"]["budgets"]["densities"]
NAMES = {"dam": "DAM", "tpe": "TPE", "random": "random"}

cards = TABLES["card"](TABLES["read"](RESULTS / "card.jsonl")).dropna()  # masks with both seeds
noise = TABLES["noise_and_spread"](cards)
picked, scores = TABLES["chosen"](RESULTS, BUDGETS), TABLES["judged"](RESULTS, "STS-B")
searches = TABLES["by_search"](picked, scores)
of_arm = {arm: searches.loc[searches["arm"] == arm, "score"].to_numpy() for arm in NAMES}
found = FIGURES["secondary"](RESULTS, BUDGETS)
tested = TABLES["contrasts"](searches).set_index("contrast")
costs = TABLES["costs"](RESULTS).groupby("arm")[["tokens", "trials"]].max()
lines = [
    line
    for path in RESULTS.glob("*.jsonl")
    if "_card" not in path.name
    for line in TABLES["read"](path)
]
of_cards = [line for path in RESULTS.glob("*_card.jsonl") for line in TABLES["read"](path)]
on_card = TABLES["judged"](RESULTS, "STS-B_card")
mrpc = TABLES["judged"](RESULTS, "MRPC_card").set_index("arm")["score"]
cpu_hours = sum(line["seconds"] for line in lines if line.get("where") != "drawn") / 3600


def figure(measure: str, arm: str) -> list[float]:
    """A figure of secondary.csv with its interval."""
    (row,) = found[(found["measure"] == measure) & (found["arm"] == arm)].itertuples()
    return [row.value, row.low, row.high]


def mean(arm: str, budget: float) -> float:
    """An arm's judged score at a budget, over its searches."""
    return scores[(scores["arm"] == arm) & (scores["budget"] == budget)]["score"].mean()


def denser(budget: float, most: float) -> int:
    """Searches of the samplers that chose a mask of at most that density."""
    own = picked[(picked["arm"] != "dam") & (picked["budget"] == budget)]
    return int((own["density"] < most).sum())


gain = figure("score", "dam - random")
p = tested.loc["dam - random", "adjusted_p"]
ARMS = {
    name: [*figure("score", arm), *figure("hypervolume", arm)]
    for arm, name in {"dam": "DAM", "tpe": "TPE", "random": "random search"}.items()
}
CONTRASTS = {
    f"{NAMES[one]} - {NAMES[other]}": [
        *figure("score", f"{one} - {other}"),
        *tested.loc[f"{one} - {other}", ["p", "adjusted_p"]],
    ]
    for one, other in TABLES["CONTRASTS"]
}
BY_BUDGET = {
    f"{budget:g}": [
        *(mean(arm, budget) for arm in NAMES),
        *figure(f"score at {budget:g}", "dam - random"),
        *figure(f"score at {budget:g}", "dam - tpe"),
    ]
    for budget in BUDGETS
}
tau = {
    row.arm: row.value
    for row in found[found["measure"] == "tau-b of proxy and judged"].itertuples()
}
again = TABLES["contrasts"](TABLES["by_search"](picked, on_card)).set_index("contrast")
opponents = FIGURES["rivals"](RESULTS, on_card, BUDGETS)
DRAWN = "the drawn, by search rows"
BY_HAND = {
    f"{rival.budget:g} | {rival.mask.rsplit(' ', 1)[0]}": [
        rival.judged,
        *(
            end
            for arm in NAMES
            for end in figure(f"score at {rival.budget:g}", f"{arm} - {DRAWN}")
        ),
    ]
    for rival in opponents.itertuples()
}
shifts = on_card[(on_card["arm"] == "signed shifts") & (on_card["budget"] == 0.2)].iloc[0]
dense = on_card.loc[on_card["arm"] == "dense", "score"].item()
searched = on_card[(on_card["where"] != "drawn") & (on_card["budget"] == 0.2)]["score"].max()
drawn = mrpc[~mrpc.index.isin(["dense", "random keys"])]
beats = "beat" if max(figure("score", f"{arm} - {DRAWN}")[1] for arm in NAMES) <= 0 else "?"
above = of_arm["dam"].min() > of_arm["random"].max()
spread = [np.std(of_arm[arm], ddof=1) for arm in ("dam", "random", "tpe")]
ANSWER = [of_arm["dam"].mean(), of_arm["random"].mean(), *gain, p, of_arm["tpe"].mean()]
CLAIMS = [
    *rows(HERE, ARMS, after="## Primary"),
    *rows(HERE, CONTRASTS, after="## Primary"),
    *rows(HERE, BY_BUDGET, after="## By budget"),
    *rows(HERE, BY_HAND, after="## Against masks drawn by hand"),
    *sentences(
        HERE,
        {
            "random search: {} against {} of correlation, mean over the four budgets, {} [{}, {}] "
            "(five searches a side, adjusted p {}). TPE's {} is not told": ANSWER,
            "standard deviations of {} (DAM), {} (random) and {} (TPE). TPE's best search, {},": [
                *spread,
                of_arm["tpe"].max(),
            ],
            "at {} % {} of their ten searches chose a mask of {} %, at {} % {} chose one": [
                20,
                denser(0.2, 0.15),
                12,
                30,
                denser(0.3, 0.21),
            ],
            "is {} over all 60 masks, and {}, {}, {} and {} within budgets of 12, 20, 30": [
                tau["all budgets"],
                *(tau[f"{budget:g}"] for budget in reversed(BUDGETS)),
            ],
            "{} million tokens a search of random search and TPE, {} of DAM": [
                costs.loc["tpe", "tokens"] / 1e6,
                costs.loc["dam", "tokens"] / 1e6,
            ],
            "deviation of {}, masks of {}": [noise["noise"], noise["spread"]],
            "Correlations are low, {} to {},": [cards["mean"].min(), cards["mean"].max()],
            "(180 runs), on shared 2-core CPUs: {} core-hours": [cpu_hours],
            "minus those that search rows prefer, DAM's are {} [{}, {}], TPE's {} [{}, {}], those "
            "of random search {} [{}, {}]": [
                *figure("score", f"dam - {DRAWN}"),
                *figure("score", f"tpe - {DRAWN}"),
                *figure("score", f"random - {DRAWN}"),
            ],
            "has {} with {} % of the pairs (dense attention {}), where DAM has {} with {} %": [
                shifts["score"],
                100 * shifts["density"],
                dense,
                mean("dam", 0.2),
                20,
            ],
            "DAM minus random is {} (p {})": [*again.loc["dam - random", ["difference", "p"]]],
            "At {} % the best of the fifteen searches keeps {}": [20, searched],
            "TPE is {} above these, too": [mean("tpe", 0.5) - shifts["score"]],
            "DAM is {} [{}, {}] from them in the mean": [
                *figure("score", "dam - the drawn, by judged rows")
            ],
            "it leaves behind by {} [{}, {}]": [*figure("score", "dam - random keys")],
            "card minus CPU, mean over the {} masks, {} [{}, {}]": [
                60,
                *figure("score", "card - CPU, of masks"),
            ],
            "dense attention reaches {}, the drawn masks {} to {}": [
                mrpc["dense"],
                drawn.min(),
                drawn.max(),
            ],
            "dense attention ({} runs), the searches' masks anew ({}), and MRPC under the drawn "
            "masks ({})": [
                sum(line["where"] == "drawn" for line in of_cards) / 2,
                sum(line["where"] != "drawn" for line in of_cards),
                sum(line["where"] == "drawn" for line in of_cards) / 2,
            ],
        },
    ),
    *sentences(
        "experiments/README.md",
        {
            "| {}'s masks are {} [{}, {}] of STS-B's correlation {} those of random search in the "
            "mean over four budgets (five searches a side, adjusted p {}), {}'s are not told": [
                "DAM",
                *gain,
                gain[0],
                p,
                "TPE",
            ],
            "at half of the pairs TPE's are {} DAM's": [-figure("score at 0.5", "dam - tpe")[2]],
            "minus those that search rows prefer, DAM's are {} [{}, {}], those of random search "
            "{} [{}, {}]; signed shifts keep {} with {} % of the pairs, where the best search "
            "keeps {} with {} %": [
                *figure("score", f"dam - {DRAWN}"),
                *figure("score", f"random - {DRAWN}"),
                shifts["score"],
                100 * shifts["density"],
                searched,
                20,
            ],
        },
    ),
    Claim(
        "README.md",
        "DAM's masks keep {} of STS-B's score than those of random search; TPE's are not told",
        [gain[1]],
    ),
    Claim(
        "README.md",
        "mean over four budgets, DAM minus random: {} [{}, {}], minus drawn: {} [{}, {}], five "
        "searches a side",
        [*gain, *figure("score", f"dam - {DRAWN}")],
    ),
    *(
        Claim(page, "None is shown to {} masks drawn {}", [beats, "by hand"])
        for page in (HERE, "README.md")
    ),
    Claim(
        "README.md",
        "One mask drawn {}, signed shifts, keeps {} there, {} attention {}, {}'s searches {} in "
        "the mean; at half of the pairs {}'s keep {}",
        [
            *("by hand", shifts["score"], "dense", dense),
            *("DAM", mean("dam", 0.2), "TPE", mean("tpe", 0.5)),
        ],
    ),
    Claim(HERE, "DAM's {} searches lie {} all five", ["five", "above" if above else "below"]),
]
NO_CLAIM = [
    (HERE, "are written less 2.5"),
    (HERE, "[arXiv 2502.13251]"),
    (HERE, "[2602.03681]"),
]
