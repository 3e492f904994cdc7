"""Figures that the scripts of these pages print, in results/: see experiments/verify.py."""

import re
from pathlib import Path

from experiments.verify import NUMBER, Claim, rows

RESULTS = Path(__file__).parent / "results"
IMPORTANCE = "docs/importance.md"


def printed(name: str) -> dict[str, list[float]]:
    """The rows of a table that a script has printed: first cell -> numbers of the others."""
    found = {}
    for line in (RESULTS / f"{name}.txt").read_text(encoding="utf-8").splitlines():
        if line.startswith("| "):
            first, *cells = line.strip("| ").split(" | ")
            found[first] = [float(number) for cell in cells for number in re.findall(NUMBER, cell)]
    return found


measured = printed("importance")
first, second = (measured[f"drop, offset number {rank}"] for rank in (1, 2))
third = measured["drop, offset number 3"]
keys = [measured[f"drop, key number {rank}"] for rank in (1, 2)]


def side_by_side(*ranks: list[float]) -> list[float]:
    """Place and effect of each rank, seed after seed."""
    return [ranks[rank][at + i] for at in (0, 2, 4) for rank in range(len(ranks)) for i in (0, 1)]


CLAIMS = [
    Claim(IMPORTANCE, "| held-out accuracy (ceiling 0.87) | {} | {} | {} |", measured["accuracy"]),
    *rows(
        IMPORTANCE,
        {
            "attention map": measured["attention map"],
            "gradient": measured["gradient, signed"],
            "gradient, `signed=False`": measured["gradient, signed=False"],
            "flip": measured["flip, signed"],
            "flip, `signed=False`": measured["flip, signed=False"],
            "learned, 400 steps from the start": measured["learned, 400 steps"],
            "learned, 1,000 steps": measured["learned, 1000 steps"],
            "drop: the three largest offsets (nats)": side_by_side(first, second, third),
            "drop: the two largest key positions": side_by_side(*keys),
            "drop: the diagonal, 95% interval": measured["drop, diagonal"],
        },
        "## On a process",
    ),
    Claim(
        IMPORTANCE, "dropping offset -11 costs {} to {} nats", [min(first[1::2]), max(first[1::2])]
    ),
]
