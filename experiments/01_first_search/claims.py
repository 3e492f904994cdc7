"""What pages say about this experiment, recomputed from results/: see experiments/verify.py."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

from experiments.verify import Claim, interval, rows

RESULTS = Path(__file__).parent / "results"
HERE = "experiments/01_first_search/README.md"
HEADS = ["density", "loss", "SST-2", "QQP", "MNLI", "MNLI-mm", "glue"]
NAMES = {  # in compare.csv -> in the README
    "shifts by hand": "one signed offset a head, by hand",
    "tpe shifts": "TPE, head_shifts",
    "dam": "DAM",
    "tpe band": "TPE, band_global",
}
FAMILIES = ["star", "bigbird", "log_sparse", "fixed", "strided", "longformer"]

compared = pd.read_csv(RESULTS / "compare.csv").rename(columns={"params.mask": "name"})
first_dam = compared[compared.number == 12].iloc[0]
compared = compared[compared.number != 12].sort_values("seed")  # an earlier DAM run, see there
by_name = {name: found for name, found in compared.groupby("name")}


def cells(name: str, heads: list[str]) -> list[float]:
    """Both seeds of some columns; the density once."""
    mask = by_name[name]
    values = [[mask.density.iloc[0]] if head == "density" else mask[head] for head in heads]
    return [float(value) for column in values for value in column]


def minus(name: str, other: str, measure: str = "loss", level: float = 0.95) -> list[float]:
    """Paired difference over the two seeds, with its interval."""
    gap = by_name[name][measure].to_numpy() - by_name[other][measure].to_numpy()
    return list(interval(gap, level))


def holm(opponents: list[str]) -> dict[tuple[str, str], float]:
    """Adjusted p of both searched masks against some opponents, as if declared together."""
    pairs = [(name, other) for name in ("tpe shifts", "dam") for other in opponents]
    raw = {
        (name, other): stats.ttest_rel(by_name[name].loss, by_name[other].loss).pvalue
        for name, other in pairs
    }
    adjusted, worst = {}, 0.0
    for left, pair in zip(range(len(raw), 0, -1), sorted(raw, key=raw.__getitem__), strict=False):
        worst = max(worst, min(1.0, left * raw[pair]))
        adjusted[pair] = worst
    return adjusted


def loss_of(file: str) -> list[float]:
    """Loss of dense, star and TPE's mask with seed 0."""
    return pd.read_csv(RESULTS / file).loss.tolist()


at_800 = [by_name[name].loss.iloc[0] for name in ("dense", "star", "tpe shifts")]
long = loss_of("long.csv")
early_gates = pd.read_csv(RESULTS / "dam_first.csv").iloc[0]
dam, early = (pd.read_csv(RESULTS / f"{name}.csv").loss.tolist() for name in ("dam", "dam_first"))
minutes = [
    pd.read_csv(RESULTS / f"{name}.csv").seconds.sum() / 60
    for name in ("head_shifts", "band_global", "dam")
]
gates = pd.read_csv(RESULTS / "dam.csv").seconds.iloc[0] / 60
majority = [by_name["dense"][f"{task}/majority"].iloc[0] for task in HEADS[2:6]]
glue = [by_name[name].MNLI.mean() for name in ("tpe shifts", "star", "dense")]
verdict = (RESULTS / "verdict.txt").read_text(encoding="utf-8").split("Tasks")[0]


def judged(name: str, other: str = "star") -> list[float]:
    """Difference of the loss from another mask's, level in percent and interval: the verdict's."""
    said = verdict[verdict.index(f"{name}: ") :]
    found = re.search(
        rf"{other} \([^)]*\)[^\n]*? difference (\S+), (\S+)% interval \[(\S+), (\S+)\]", said
    )
    return [float(number) for number in found.groups()]


all_six = holm(FAMILIES)


def ends(*families: str) -> tuple[float, float]:
    """Smallest and largest adjusted p against some families."""
    found = [p for (_, family), p in all_six.items() if family in families]
    return min(found), max(found)


mean_scores = np.array([mask.glue.to_numpy() for mask in by_name.values()])
seed_sd = (np.diff(mean_scores, axis=1).std(ddof=1) / np.sqrt(2)).item()  # masks and seeds crossed

CLAIMS = [
    Claim("docs/statistics.md", '"sd {}" is that of the mean GLUE score', [seed_sd]),
    *rows(HERE, {NAMES.get(name, name): cells(name, HEADS) for name in by_name}, "## Result: 800"),
    *rows(HERE, {"*majority class*": majority}),
    Claim(HERE, "signed shifts: {} against star, {} % interval [{}, {}]", judged("tpe shifts")),
    Claim(HERE, "DAM at density .022: {}, {} % [{}, {}]", judged("dam")),
    Claim(
        HERE,
        "both beat dense by {} nats",
        [-max(minus("tpe shifts", "dense")[0], minus("dam", "dense")[0])],
    ),
    Claim(HERE, "hand-designed ({} better than star)", [-judged("shifts by hand")[0]]),
    Claim(
        HERE,
        "not distinguishable from star ({}, [{}, {}])",
        judged("tpe band")[:1] + judged("tpe band")[2:],
    ),
    Claim(HERE, "on MNLI ({} against {} for star and {} for dense)", glue),
    *rows(
        HERE,
        {
            "800 steps, lr 1e-3": loss_of("rate_0.001.csv"),
            "800 steps, lr 2e-3": at_800,
            "800 steps, lr 4e-3": loss_of("rate_0.004.csv"),
            "1,600 steps, lr 2e-3": long,
        },
    ),
    Claim(HERE, "star shrinks from {} to {}", [at_800[1] - at_800[2], long[1] - long[2]]),
    Claim(
        HERE,
        "cut at .022 did better in the 400-step judgement ({}) than the one at .031 ({})",
        [dam[2], dam[1]],
    ),
    Claim(HERE, "masks of {} (.031), {} (.040) and {} (.022) at 400 steps", early[1:]),
    Claim(
        HERE,
        "for 800 steps (seed 0), reached {} and {} on the tasks",
        [first_dam.loss, first_dam.glue],
    ),
    Claim(HERE, "dropping the diagonal gains {} over star", [-minus("tpe band", "star")[0]]),
    Claim(
        HERE,
        "The trials took {} minutes (head_shifts), {} (band_global) and {} (DAM: {} for",
        [*minutes, gates],
    ),
    Claim(
        HERE,
        "(12 comparisons, Holm), the adjusted p would be {} to {} for longformer, bigbird and "
        "strided, {} for star and fixed, and {} for log_sparse: {} of 12 hold",
        [
            *ends("longformer", "bigbird", "strided"),
            *ends("star", "fixed")[:1],
            *ends("log_sparse")[:1],
            sum(p <= 0.05 for p in all_six.values()),
        ],
    ),
    Claim(HERE, "a gap of {} nats in pre-training", [-judged("dam", "dense")[0]]),
    Claim(HERE, "lacked) ended at density {}", [early_gates.density]),
]

BY_HAND = [-minus("shifts by hand", other)[0] for other in ("tpe shifts", "dam")]
CLAIMS.append(
    Claim(
        HERE,
        "Minus TPE's mask it is {} nats, minus DAM's {}.",
        [-lead for lead in BY_HAND],
    )
)
NO_CLAIM = [
    ("docs/statistics.md", "standard error .0016"),  # of 20,000 draws
    (HERE, "standard deviation of 0.049"),
    (HERE, "target density .031, cut at .031 and .022"),
    (HERE, "multiplier control at .04"),
    (HERE, ".8 % of its gates' mass"),  # not kept
]
