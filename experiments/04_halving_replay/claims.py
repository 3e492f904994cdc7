"""What pages say about this experiment, recomputed from results/: see experiments/verify.py."""

from pathlib import Path

import pandas as pd

from experiments.verify import Claim

RESULTS = Path(__file__).parent / "results"
HERE = "experiments/04_halving_replay/README.md"
ENDS = ["", " low", " high"]
LATE, GAINED = "125 250", "useful hv gained % at equal steps"

summary = pd.read_csv(RESULTS / "summary.csv")
one_slot = summary[summary.slots == 1].set_index(["study", "rungs", "ranking", "factor"])
signal = pd.read_csv(RESULTS / "signal.csv").set_index(["study", "step"]).tau


def cell(study: str, ranking: str, *names: str, factor: int = 2, rungs: str = "") -> list[float]:
    """Columns of the replay on one slot, each with the ends of its range."""
    if not rungs:
        rungs = "62 125 250" if "planted" in study else one_slot.loc[study].index[1][0]
    row = one_slot.loc[(study, rungs, ranking, factor)]
    return [row[f"{name}{end}"] for name in names for end in ENDS]


def gained(
    study: str, ranking: str, factor: int, name: str = GAINED, rungs: str = ""
) -> list[float]:
    """What was gained at equal steps: mean, half interval of the mean, range of the orders."""
    mean, low, high = cell(study, ranking, name, factor=factor, rungs=rungs)
    row = one_slot.loc[(study, rungs or "62 125 250", ranking, factor)]
    half = row[
        "useful hv gained % of its mean +-" if name == GAINED else "hv gained % of its mean +-"
    ]
    return [mean, half, low, high]


SEEDS = ["planted seed 0", "planted seed 1"]
COSTS = ["steps saved %", "hv lost %", "useful hv lost %", "sparse finished"]
ALL = "hv gained % at equal steps"
lost = {
    ranking: [cell(study, ranking, "hv lost %")[0] for study in SEEDS]
    for ranking in ("nondominated", "metric")
}
left = {
    ranking: [cell(study, ranking, "sparse finished")[0] for study in SEEDS]
    for ranking in ("nondominated", "metric")
}

blind = 17 * one_slot.loc[(SEEDS[0], "62 125 250", "metric", 2), "finished"] / 127

CLAIMS = [
    *(
        Claim(
            HERE,
            f"| {seed} | {ranking} |...",
            cell(study, ranking, *COSTS),
            "## Result: equal trials",
        )
        for seed, study in enumerate(SEEDS)
        for ranking in ("metric", "strata", "nondominated")
    ),
    Claim(
        HERE,
        "`nondominated` at factor 4 loses {} % [{}, {}] with seed 0 and {} % [{}, {}] with seed "
        "1, `metric` {} % [{}, {}] and {} % [{}, {}]",
        [
            number
            for ranking in ("nondominated", "metric")
            for study in SEEDS
            for number in cell(study, ranking, "useful hv lost %", factor=4)
        ],
    ),
    *(
        Claim(
            HERE,
            f"| {ranking} | {factor} |...",
            gained(SEEDS[0], ranking, factor) + gained(SEEDS[1], ranking, factor),
        )
        for ranking, factor in (
            ("metric", 2),
            ("strata", 2),
            ("nondominated", 2),
            ("nondominated", 4),
        )
    ),
    Claim(
        HERE,
        "`nondominated` gains {} +- {} and {} +- {} against {} +- {} and {} +- {} for",
        [
            number
            for ranking in ("nondominated", "metric")
            for study in SEEDS
            for number in gained(study, ranking, 2, ALL)[:2]
        ],
    ),
    Claim(
        HERE,
        "at 62 steps {} (seed 0) and {} (seed 1), at 125 steps {} and {}, at 250 steps {} and {}",
        [signal[study, step] for step in (62, 125, 250) for study in SEEDS],
    ),
    Claim(
        HERE,
        "loses {} % and {} %, still saves half of the steps, and gains {} +- {} and {} +- {}",
        [cell(study, "nondominated", "hv lost %", rungs=LATE)[0] for study in SEEDS]
        + [
            number
            for study in SEEDS
            for number in gained(study, "nondominated", 2, rungs=LATE)[:2]
        ],
    ),
    *(
        Claim(HERE, f"| {study} | {ranking} |...", cell(study, ranking, *COSTS[:2]))
        for study in ("text 400", "text 800")
        for ranking in ("metric", "strata", "nondominated")
    ),
    Claim(
        HERE,
        "{} (seed 0) and {} (seed 1) of 17 sparse masks are left, where a blind choice of as "
        "many finishers would leave {}",
        [*left["metric"], blind],
    ),
    Claim(
        HERE, "costs about {} % of the hypervolume on the average", [sum(lost["nondominated"]) / 2]
    ),
]

NO_CLAIM = [
    (HERE, "(3.5 s each)"),
    (HERE, "where only a score above 0.5 counts"),
    (HERE, "less than 3 % in 97.5 % of the orders"),
]
