"""What pages say about this experiment, recomputed from results/: see experiments/verify.py."""

import runpy
from pathlib import Path
from statistics import fmean

import pandas as pd

from experiments.verify import Claim, sentences

FOLDER = Path(__file__).parent
HERE, GUIDE = "experiments/15_referee/README.md", "docs/trained_encoders.md"
RESULTS = FOLDER / "results"
TABLES = runpy.run_path(str(FOLDER / "tables.py"))
BUDGETS = TABLES["BUDGETS"]
CONTROLS = ("random keys", "random keys and [CLS]")

scores = pd.read_csv(RESULTS / "scores.csv")
areas, margins = TABLES["verdict"](RESULTS)


def cell(task: str, arm: str, budget: float) -> list[float]:
    """Mean score and mean judged density of a mask, and what it loses with its interval."""
    found = scores[(scores.task == task) & (scores.arm == arm) & (scores.budget == budget)]
    lost = margins[(margins.task == task) & (margins.arm == arm) & (margins.budget == budget)]
    (line,) = lost.itertuples()
    return [found.score.mean(), found.judged_density.mean(), line.lost, line.low, line.high]


def table(task: str, after: str) -> list[Claim]:
    """The rows of a task's table of scores."""
    arms = dict.fromkeys(margins[margins.task == task].arm)
    return [
        Claim(
            HERE,
            f"| {arm} |...",
            [x for budget in BUDGETS for x in cell(task, arm, budget)],
            after,
        )
        for arm in arms
    ]


def primary(task: str, after: str) -> list[Claim]:
    """The rows of a task's table of areas."""
    return [
        Claim(
            HERE,
            f"| {line.arm} |...",
            [line.area, line.minus_dam, line.low, line.high, line.adjusted_p],
            after,
        )
        for line in areas[areas.task == task].itertuples()
    ]


def dense(task: str) -> float:
    """Mean score of the dense models that judge."""
    return fmean(scores[(scores.task == task) & (scores.arm == "dense")].score)


def lost(arm: str, *budgets: float, task: str = "STS-B") -> list[float]:
    """What an arm loses within each budget."""
    return [cell(task, arm, budget)[2] for budget in budgets]


def minus_dam(arm: str, task: str) -> list[float]:
    """An arm's area minus DAM's, with the interval of their difference."""
    (line,) = areas[(areas.task == task) & (areas.arm == arm)].itertuples()
    return [line.minus_dam, line.low, line.high]


def behind(arm: str, task: str = "STS-B") -> list[float]:
    """By how much an arm's area lies below DAM's, and the interval of their difference."""
    (line,) = areas[(areas.task == task) & (areas.arm == arm)].itertuples()
    return [-line.minus_dam, line.low, line.high]


ALL = tuple(BUDGETS)
NAMES = {"fisher": "First-order effects", "fisher_rounds": "First-order effects"}
NEAREST = {
    NAMES.get(by_task.loc[by_task.minus_dam.idxmax()].arm, "")
    for _, by_task in areas.groupby("task")
}
GUIDED = {
    "It loses {}, {} and {} at 50, 30 and 15 %": lost("dam", *ALL),
    "the pairs on STS-B, {}, {} and {} on QNLI": lost("dam", *ALL, task="QNLI"),
    "prune.rounds=5`: {}, {} and {} on STS-B,": lost("fisher_rounds", *ALL),
    "STS-B, {}, {} and\n  {} on QNLI. Nothing": lost("fisher_rounds", *ALL, task="QNLI"),
    "columns(1)`: {}, {} and,": lost("gates", *ALL[:2]),
    "as few heads fit, {};": lost("gates", ALL[2]),
    "on QNLI {}, {} and {}.": lost("gates", *ALL, task="QNLI"),
    "with a star {} at 30 % on STS-B,": lost("restore_star", 0.3),
    "and the diagonal {};": lost("restore", 0.3),
    "Random search over heads loses {} at 30 %, {} than random keys that keep [CLS] ({})": [
        *lost("random", 0.3),
        lost("random", 0.3)[0] - lost(CONTROLS[1], 0.3)[0],
        *lost(CONTROLS[1], 0.3),
    ],
}
FRONT = {
    "for {} selectors and random keys on STS-B and QNLI": [1 + len({*areas.arm})],
    "DAM on a trained MiniLM, nothing trained under the mask. At 50, 30 and 15 % of the pairs it "
    "loses {}, {} and {} of STS-B's correlation": lost("dam", *ALL),
    "and {}, {} and {} of QNLI's accuracy": lost("dam", *ALL, task="QNLI"),
    "*Whole heads* chosen by gates at the same budgets, minus DAM: {} [{}, {}] of area on STS-B, "
    "five pairs of models, and {} [{}, {}] on QNLI": [
        number for task in ("STS-B", "QNLI") for number in minus_dam("gates", task)
    ],
    "{} of edges, without any training, come nearest": [*NEAREST],
}
CLAIMS = [
    Claim(HERE, "what it loses to dense attention ({})", [dense("STS-B")]),
    *table("STS-B", "STS-B: scores"),
    *primary("STS-B", "STS-B: areas"),
    Claim(HERE, "as above; dense attention has {},", [dense("QNLI")]),
    *table("QNLI", "QNLI: scores"),
    *primary("QNLI", "QNLI: areas"),
    Claim(HERE, "plan: by {} of area of effects", behind("fisher_rounds")[:1]),
    Claim(HERE, "by {} of whole heads chosen", behind("gates")[:1]),
    Claim(HERE, "rounds are {} behind DAM [{}, {}]", behind("fisher_rounds", "QNLI")),
    Claim(HERE, "on QNLI DAM ({})", lost("dam", 0.15, task="QNLI")),
    Claim(HERE, "effects in rounds ({})", lost("fisher_rounds", 0.15, task="QNLI")),
    Claim(HERE, "and {}, {} and {} below dense", lost("gates", *ALL, task="QNLI")),
    *sentences(GUIDE, GUIDED),
    *sentences("README.md", FRONT),
]
