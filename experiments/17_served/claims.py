"""What pages say about this experiment, recomputed from results/: see experiments/verify.py."""

import json
from pathlib import Path

import numpy as np
import pandas as pd

from experiments.verify import Claim, rows
from masksearch.analysis.stats import estimate

HERE = "experiments/17_served/README.md"
RESULTS = Path(__file__).parent / "results"
BANDS = pd.read_csv(RESULTS / "bands.csv")
SHARES = json.loads((RESULTS / "shares.json").read_text())
SPEED = {
    (each["length"], each["file"]): each
    for each in json.loads((RESULTS / "speed.json").read_text())
    if (RESULTS / "speed.json").is_file()
}
WINDOW = 128


def losses(stage: str, form: str, low: int = 0, high: int = 10**9) -> np.ndarray:
    """Nats a token of each novel over a range of positions, `[novels]`."""
    chosen = BANDS[(BANDS.stage == stage) & (BANDS.form == form)]
    chosen = chosen[(chosen["from"] >= low) & (chosen["to"] <= high)]
    weights = chosen["to"] - chosen["from"]
    sums = (chosen.nats * weights).groupby(chosen.novel).sum()
    return (sums / weights.groupby(chosen.novel).sum()).to_numpy()


def apart(stage: str, form: str, other: str, low: int = 0, high: int = 10**9) -> list[float]:
    """How much more a form loses than another: mean, 95 % interval over novels."""
    one, two = losses(stage, form, low, high), losses(stage, other, low, high)
    found = estimate((one - two).tolist(), 0.95)
    return [found.value, found.low, found.high]


def by_band(stage: str, form: str) -> list[float]:
    """Mean nats in each band, and over all positions."""
    chosen = BANDS[(BANDS.stage == stage) & (BANDS.form == form)]
    bands = [losses(stage, form, low, high).mean() for low, high in edges(chosen)]
    return [*bands, losses(stage, form).mean()]


def edges(chosen: pd.DataFrame) -> list[tuple[int, int]]:
    """The bands, in their order."""
    return sorted({(int(a), int(b)) for a, b in zip(chosen["from"], chosen["to"], strict=True)})


def forms(stage: str) -> list[str]:
    """What was judged."""
    return sorted(BANDS[BANDS.stage == stage].form.unique())


if __name__ == "__main__":
    for stage in ("longest", "judged", "gguf"):
        for form in forms(stage):
            print(stage, form, [round(x, 3) for x in by_band(stage, form)], end=" ")
            if form != "dense":
                against = "dense" if stage != "gguf" else "dense f16"
                print("minus dense", [round(x, 3) for x in apart(stage, form, against)], end=" ")
                if stage != "gguf":
                    mask = " ".join(form.split()[:2]) + " attached"
                    if mask in forms(stage):
                        found = apart(stage, form, mask, WINDOW)
                        print("minus attached", [round(x, 3) for x in found], end="")
            print()
    print(SHARES, SPEED)
