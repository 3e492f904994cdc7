"""What pages say about this experiment, recomputed from results/: see experiments/verify.py."""

from pathlib import Path

import pandas as pd

from experiments.verify import Claim, rows

RESULTS = Path(__file__).parent / "results"
HERE = "experiments/05_strategies/README.md"

summary = pd.read_csv(RESULTS / "summary.csv")  # the second "half interval" is that of the last
table = pd.read_csv(RESULTS / "table.csv")


def shares(strategy: str) -> list[float]:
    """Share and half interval at 20, 40 and 80 trials."""
    found = summary[summary.strategy == strategy].sort_values("trials")
    return found[["share", "half interval"]].to_numpy().ravel().tolist()


others = summary[summary.strategy != "random"]
assert (others["minus random"].abs() < others["half interval.1"]).all()  # "none is told from it"
best = summary[(summary.strategy == "evolution") & (summary.trials == 80)].iloc[0]

CLAIMS = [
    *rows(
        HERE,
        {
            name if name != "gp" else "gp (6 seeds)": shares(name)
            for name in summary.strategy.unique()
        },
    ),
    Claim(
        "docs/does_search_pay.md",
        "| a small space with many good masks | random search | one synthetic task: no "
        "difference at up to {} trials | [05](../experiments/05_strategies/README.md) |",
        [summary.trials.max()],
    ),
    Claim(
        "experiments/README.md",
        "no: up to {} trials show no difference |",
        [summary.trials.max()],
    ),
    Claim(HERE, "holds {} different masks", [len(table)]),
    Claim(HERE, "{} of them reach a score above .7", [(table.score > 0.7).sum()]),
    Claim(HERE, "evolution at 80: {} +- {})", [best["minus random"], best["half interval.1"]]),
    Claim(HERE, "with *every* seed ({} +- {})", [best.share, best["half interval"]]),
]

NO_CLAIM = [
    (HERE, "hypervolume of score above chance (.5)"),
    (HERE, "reach a score above .7"),
    (HERE, "it reaches .83 +- .10, .97 +- .05 and .94 +- .07 at 80 trials"),  # not kept
]
