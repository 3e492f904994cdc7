"""What pages say about this experiment, recomputed from results/: see experiments/verify.py."""

from pathlib import Path

import pandas as pd
from scipy import stats

from experiments.verify import Claim, interval, rows
from masksearch.analysis.stats import holm

HERE = "experiments/13_random_text/README.md"
scores = pd.read_csv(Path(__file__).parent / "results" / "scores.csv")
losses = scores.pivot(index="seed", columns="mask", values="loss")
FOUND = {
    other: losses[[name for name in losses if name.endswith(f", as {other}")]].mean(axis=1)
    for other in ("TPE", "DAM")
}
gaps = {other: losses[other] - random for other, random in FOUND.items()}
tested = holm([float(stats.ttest_1samp(gap, 0).pvalue) for gap in gaps.values()])

differences = {
    other: [*interval(gap), p] for (other, gap), p in zip(gaps.items(), tested, strict=True)
}
by_mask = {
    name: [*losses[name], *interval(losses[name]), 100 * own.sparsity.iloc[0]]
    for name, own in scores.groupby("mask")
    if name not in ("random 100, as DAM", "random 101, as DAM")  # the same masks as TPE's
}
CLAIMS = [
    *rows(HERE, by_mask, after="### Test loss"),
    *rows(HERE, differences, after="### Primary comparison"),
    Claim(
        "experiments/README.md",
        "TPE's is {} and DAM's {} nats better on test text",
        [-gap.mean() for gap in gaps.values()],
    ),
]
NO_CLAIM = [(HERE, "Mean differences of .04 nats after 400 steps")]
