"""What pages say about this experiment, recomputed from results/: see experiments/verify.py."""

import json
import runpy
from pathlib import Path

import numpy as np
import pandas as pd

from experiments.verify import Claim, interval, rows

FOLDER = Path(__file__).parent
HERE = "experiments/14_planted_recall/README.md"
REGRET = runpy.run_path(str(FOLDER / "regret.py"))


def stored(name: str) -> dict:
    """A file of results/."""
    return json.loads((FOLDER / "results" / f"{name}.json").read_text(encoding="utf-8"))


judged, dense, seconds = stored("judged"), stored("dense"), stored("seconds")
with np.load(FOLDER / "results" / "losses.npz") as found:
    losses = {name: found[name] for name in judged}
whole = REGRET["summary"](REGRET["regrets"](losses, judged))
CLAIMS: list[Claim] = []
for heading, table in REGRET["tables"](whole).items():
    in_rows = {name: [v for cell in cells for v in cell] for name, cells in table.items()}
    CLAIMS += rows(HERE, in_rows, after=heading)
ON_PAGE = ["middle heads", "dam switches", "allocate restore", "allocate mass", "random", "tpe"]
ON_PAGE += ["allocate greedy addition", "allocate greedy addition, 3 tries", "evolution"]
ON_PAGE += ["allocate greedy removal, 3 tries"]
above, of_ten = (
    {name: cells for name, cells in table.items() if name in ON_PAGE}
    for table in REGRET["tables"](whole).values()
)
CLAIMS += rows(
    HERE,
    {
        name: [*(cell[0] for cell in of_ten[name]), *above[name][1], *above[name][3]]
        for name in ON_PAGE
    },
    after="## Scores\n",
)
reached = whole.set_index("method").evaluations
spans = [reached[name] for name in
         ("allocate greedy addition", "allocate greedy removal, 3 tries")]  # fmt: skip
ends = [float(end) for each in spans for end in (each.min(), each.max())]
most = whole[whole.method == "allocate greedy removal, 3 tries"].reached
least = min(whole[whole.method == "allocate greedy addition"].reached.min(), most.min())
text = "greedy allocation, on at least {} of 10 checkpoints at each size"
CLAIMS.append(Claim("experiments/README.md", text, [least]))
text = "three tries, removal finds it on {}, {}, {} and {} of them, as many, in {} to {} masks"
CLAIMS.append(Claim(HERE, text, [*most, *ends[2:]]))
windows = pd.read_csv(FOLDER / "results" / "one_window.csv")
for of, text in (
    ("bytes", "at the length of the sequences, loses {}, {}, {} and {} nats more"),
    ("pairs", "of no more pairs of tokens {}, {}, {} and {} nats more than"),
):
    each = windows[windows.of == of].groupby("budget")
    ends = [end for _, part in each for end in interval(part.loss - part.best)]
    CLAIMS.append(Claim(HERE, text.replace("{}", "{} [{}, {}]"), ends))
NO_CLAIM = [(HERE, "within .01 nats"), (HERE, ".99 of the questions")]
NO_CLAIM += [(HERE, "within .01 nats, as the plan asks")]
