"""What the pages say of this experiment, from its plan and from results/: see
experiments/verify.py."""

import tomllib
from pathlib import Path

import pandas as pd

from experiments.verify import rows, sentences

HERE = "experiments/24_time/README.md"
RESULTS = Path(__file__).parent / "results"
PLAN = tomllib.loads((Path(__file__).parent / "plan.toml").read_text(encoding="utf-8"))
judge = pd.read_csv(RESULTS / "tokens.csv").set_index(["rows", "task"]).loc["judge"]
limits = pd.read_csv(RESULTS / "limits.csv")
LIMITS = {
    f"{layers} layers, width {width}, {heads} heads, {tokens:,} tokens": [
        *own[["median", "low", "high"]].to_numpy().ravel()
    ]
    for (layers, width, heads, tokens), own in limits.groupby(
        ["layers", "width", "heads", "tokens"], sort=False
    )
}
assert limits.loc[limits["tokens"] == 512, "high"].max() < PLAN["target"]["times"]
CLAIMS = [
    *rows(HERE, {task: [*counts] for task, counts in judge.iterrows()}),
    *rows(HERE, LIMITS),
    *sentences(
        HERE,
        {
            "tiles drawn at random beside those of the diagonal, which are {} % of all at {} "
            "tokens.": [100 * limits.loc[2, "kept"], limits.loc[2, "tokens"]],
            "A target of {} is not to be had by MiniLM at {} tokens.": [
                PLAN["target"]["times"],
                limits.loc[2, "tokens"],
            ],
        },
    ),
]
