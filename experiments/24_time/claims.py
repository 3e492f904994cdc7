"""What the pages say of this experiment, from its plan and from results/: see
experiments/verify.py."""

from pathlib import Path

import pandas as pd

from experiments.verify import rows

HERE = "experiments/24_time/README.md"
RESULTS = Path(__file__).parent / "results"
judge = pd.read_csv(RESULTS / "tokens.csv").set_index(["rows", "task"]).loc["judge"]
CLAIMS = rows(HERE, {task: [*counts] for task, counts in judge.iterrows()})
