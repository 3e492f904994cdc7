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


def lost(arm: str, *budgets: float) -> list[float]:
    """What an arm loses on STS-B within each budget."""
    return [cell("STS-B", arm, budget)[2] for budget in budgets]


def behind(arm: str) -> float:
    """By how much an arm's area on STS-B lies below DAM's."""
    (line,) = areas[(areas.task == "STS-B") & (areas.arm == arm)].itertuples()
    return float(-line.minus_dam)


ALL = tuple(BUDGETS)
GUIDED = {
    "It loses {} at 50 % of the pairs, {} at 30 % and {} at 15 %": lost("dam", *ALL),
    "prune.rounds=5`: {}, {} and {}": lost("fisher_rounds", *ALL),
    "columns(1)`: {}, {} and, as few heads fit, {} at 15 %": lost("gates", *ALL),
    "with a star {} at 30 %, with": lost("restore_star", 0.3),
    "the diagonal\n  {}. A star": lost("restore", 0.3),
    "over heads loses {} at 30 %": lost("random", 0.3),
    "that keep [CLS] ({})": lost("random keys and [CLS]", 0.3),
}
CLAIMS = [
    Claim(HERE, "what it loses to dense attention ({})", [dense("STS-B")]),
    *table("STS-B", "STS-B: scores"),
    *primary("STS-B", "STS-B: areas"),
    Claim(HERE, "plan: by {} of area of edges", [behind("fisher_rounds")]),
    Claim(HERE, "five rounds, by {}\n  of whole heads", [behind("gates")]),
    *sentences(GUIDE, GUIDED),
]
