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


def drawn(other: str) -> list[str]:
    """The random searches' best masks at the compute of the other search."""
    return [name for name in losses if name.endswith(f", as {other}")]


def one_search(other: str) -> float:
    """p of one search's mean loss among those of the random searches: searches are the unit."""
    means = losses[drawn(other)].mean()
    spread = means.std() * (1 + 1 / len(means)) ** 0.5
    t = abs(losses[other].mean() - means.mean()) / spread
    return float(2 * stats.t.sf(t, len(means) - 1))


def best_random(other: str) -> str:
    """The random search with the least mean loss at the compute of the other search."""
    return str(losses[drawn(other)].mean().idxmin())


def minus(one: str, other: str) -> tuple[float, float, float]:
    """Mean difference of two masks over training seeds, with its single interval."""
    return interval(losses[one] - losses[other])


differences = {
    other: [*interval(gap), p] for (other, gap), p in zip(gaps.items(), tested, strict=True)
}
by_mask = {
    name: [*losses[name], *interval(losses[name]), 100 * own.sparsity.iloc[0]]
    for name, own in scores.groupby("mask")
    if name not in ("random 100, as DAM", "random 101, as DAM")  # the same masks as TPE's
}
assert all(minus("shifts by hand", other)[0] <= 0 for other in FOUND)  # nats: "as good as"
CLAIMS = [
    *rows(HERE, by_mask, after="### Test loss"),
    *rows(HERE, differences, after="### Primary comparison"),
    Claim(
        HERE,
        "three random ones have p {} for TPE and {} for DAM",
        [one_search(other) for other in FOUND],
    ),
    Claim(
        HERE,
        "DAM minus the best of the three is {} [{}, {}] at its compute, and {} [{}, {}] at TPE's",
        [value for other in ("DAM", "TPE") for value in minus("DAM", best_random(other))],
    ),
    Claim(
        HERE,
        "minus TPE's mask {} [{}, {}], minus DAM's {} [{}, {}]",
        [value for other in FOUND for value in minus("shifts by hand", other)],
    ),
]
assert min(one_search(other) for other in FOUND) > 0.05  # "neither is told"
CLAIMS.append(
    Claim(
        "docs/does_search_pay.md",
        "| a model of {} layers from scratch, its first 800 steps | hand-designed: each head "
        "attends to one offset | measured on one model | "
        "[13](../experiments/13_random_text/README.md), "
        "[01](../experiments/01_first_search/README.md) |",
        [2],
    )
)
NO_CLAIM = [(HERE, "Mean differences of .04 nats after 400 steps")]
