"""What pages say about this experiment, recomputed from results/: see experiments/verify.py."""

from pathlib import Path

import pandas as pd

from experiments.verify import Claim, rows

FOLDER = Path(__file__).parent
HERE = "experiments/20_long/README.md"
CLAIMS: list[Claim] = []
if (FOLDER / "results" / "differences.csv").is_file():
    found = pd.read_csv(FOLDER / "results" / "differences.csv")
    told = found[(found.stage == "judge") & (found.decoders == "planted")]
    for budget, part in told.groupby("budget"):
        cells = {}
        for arm, each in part.groupby("arm", sort=False):
            by = each.set_index("value")
            ends = [by.loc[value, end] for value in ("tasks", "text")
                    for end in ("difference", "low", "high")]  # fmt: skip
            cells[arm] = ends
        CLAIMS += rows(HERE, cells, after=f"### {budget:g} of the bytes")
NO_CLAIM = [(HERE, "The pilot")]
