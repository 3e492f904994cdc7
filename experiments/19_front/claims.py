"""What the page says of this experiment, recomputed from results/: see experiments/verify.py."""

import runpy
from pathlib import Path

from experiments.verify import Claim, rows

FOLDER = Path(__file__).parent
HERE = "experiments/19_front/README.md"
TABLES = runpy.run_path(str(FOLDER / "tables.py"))
lines = TABLES["read"](FOLDER / "results" / "card.jsonl")
table = TABLES["card"](lines).dropna()  # masks with both seeds
found = TABLES["noise_and_spread"](table)

CARD = {str(row.mask): [row.density, *row[3:-1], row.mean] for row in table.itertuples()}
CLAIMS = [
    *rows(HERE, CARD, after="## The proxy card"),
    Claim(
        HERE,
        "one mask over seeds has a standard deviation of {}, masks of {}",
        [found["noise"], found["spread"]],
    ),
]
NO_CLAIM = [
    (HERE, "are written less 2.5"),
    (HERE, "[arXiv 2502.13251]"),
    (HERE, "[2602.03681]"),
]
