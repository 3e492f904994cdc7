"""What pages say about this experiment, recomputed from results/: see experiments/verify.py."""

from pathlib import Path

import pandas as pd

from experiments.verify import Claim, interval

HERE = "experiments/12_sparsebert_table/README.md"

earlier = pd.read_csv(Path(__file__).parents[1] / "09_minilm_glue" / "results" / "scores.csv")
rte = earlier[earlier.task == "RTE"]

CLAIMS = [
    Claim(
        HERE,
        "the dense model of 3 epochs is at {} [{}, {}], a constant answer at {}",
        [*interval(rte.score), rte.majority.iloc[0]],
    ),
]
