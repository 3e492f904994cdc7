"""What pages say about this experiment, recomputed from results/: see experiments/verify.py."""

import json
from pathlib import Path

import numpy as np
import pandas as pd

from experiments.verify import Claim, rows

RESULTS = Path(__file__).parent / "results"
HERE, TABLE, DOCS = (
    "experiments/08_shared_weights/README.md",
    "experiments/README.md",
    "docs/proxy.md",
)

table = pd.read_csv(RESULTS / "table.csv")
graded = pd.read_csv(RESULTS / "graded.csv")
recorded = json.loads((RESULTS / "speed.json").read_text(encoding="utf-8"))
seconds = {name: float(np.mean(found)) for name, found in recorded["seconds"].items()}
passes = [
    recorded["judging, by positions of a pass"][size] for size in ("512", "2048", "8192", "32768")
]
judging, net = seconds["judging"], 500 * seconds["super-net step"]
shared = {masks: judging + net / masks for masks in (300, 100)}
FIGURES = [
    f"{what}{end}"
    for what in ("across", "share across", "within", "share within")
    for end in ("", " low", " high")
]
share, within = table["share within"], table["within"]
first = table.iloc[0]
ceiling = [first[f"ceiling within{end}"] for end in ("", " low", " high")]


def times(each: float) -> list[float]:
    """Seconds a mask, and how many times as many masks as by training."""
    return [each, seconds["training"] / each]


CLAIMS = [
    *(
        Claim(HERE, f"| {row.variant} | {row['net seed']} |...", [row[name] for name in FIGURES])
        for _, row in table.iterrows()
    ),
    Claim(
        HERE,
        "share of the ceiling ({}) | tau-b within bands | share of the ceiling ({})",
        [first["ceiling across"], ceiling[0]],
    ),
    Claim(
        HERE,
        "The ceilings are {} [{}, {}] across and {} [{}, {}] within bands.",
        [first[f"ceiling across{end}"] for end in ("", " low", " high")] + ceiling,
    ),
    *rows(
        HERE,
        {
            "training (pre-training and downstream)": times(seconds["training"]),
            "judged, the super-net not counted": times(judging),
            "judged, the super-net's 500 steps shared by 300 masks": times(shared[300]),
            "the same, by 100 masks": times(shared[100]),
            "judged after 20 steps under the mask, the super-net not counted": times(
                seconds["judging after 20 steps"]
            ),
        },
    ),
    Claim(
        HERE,
        "{} s a mask with passes of 512 positions, {} with 2,048 (the default), {} with "
        "8,192, {} with 32,768",
        passes,
    ),
    Claim(
        HERE, "held-out losses lie between {} and {} nats", [graded.loss.min(), graded.loss.max()]
    ),
    Claim(
        HERE,
        "A training takes {} s, a super-net {} ms a step ({} s for 500)",
        [seconds["training"], 1000 * seconds["super-net step"], net],
    ),
    Claim(HERE, "{} of them (15, 10 and 11 in the bands", [(graded.seed == 1).sum()]),
    Claim(HERE, "{} to {} of the ceiling within bands, in all five", [share.min(), share.max()]),
    Claim(
        TABLE,
        "as a second training does: {} of that agreement at least,",
        [share.min()],
    ),
    Claim(DOCS, "{} to {} of the noise ceiling", [share.min(), share.max()]),
]

NO_CLAIM = [
    (HERE, "goal: .9 of the ceiling's"),
    (HERE, "bands [.1, .3), [.3, .55) and [.55, .85)"),
    (HERE, "at or above the goal of .9. None of them can be told from .9"),
    (HERE, "two seeds' own tau-b is .11 across and .13 within"),
]
