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


DAM, HEALTH = "docs/dam.md", "docs/dam_health.md"
said = (RESULTS / "dam.txt").read_text(encoding="utf-8")


def dam(pattern: str) -> list[float]:
    """Numbers that `draw_dam.py` has printed."""
    return [float(number) for number in re.search(pattern, said).groups()]


def run(name: str, seed: int = 0) -> list[float]:
    """AUROC, precision, density, held-out loss and undecided share of a run."""
    found = re.search(rf"^\| {re.escape(name)} \| {seed} \| (.*) \|", said, re.M)[1]
    return [float(number) for number in re.findall(NUMBER, found)]


losses = dict(re.findall(r"'(\w+)': ([\d.]+)", said))
layers = [run("warm-up 0.5, two layers", seed)[1] for seed in range(3)]
overlap, overlap_in_two = (
    dam(rf"^{name}: .* matched (\S+) ".replace("^", "(?m:^)"))[0]
    for name in ("warm-up 0.5", "warm-up 0.5, two layers")
)
merged = dam(r"cut at .08: iou (\S+)")[0]
measured = printed("importance")
first, second = (measured[f"drop, offset number {rank}"] for rank in (1, 2))
third = measured["drop, offset number 3"]
keys = [measured[f"drop, key number {rank}"] for rank in (1, 2)]


def side_by_side(*ranks: list[float]) -> list[float]:
    """Place and effect of each rank, seed after seed."""
    return [ranks[rank][at + i] for at in (0, 2, 4) for rank in range(len(ranks)) for i in (0, 1)]


searches = (RESULTS / "first_search.txt").read_text(encoding="utf-8").splitlines()
alike = [line for line in searches if "better than star, not distinguishable from planted" in line]

CLAIMS = [
    Claim(
        "docs/search.md",
        "{} search seeds gave [these masks](results/first_search.txt), {} times not "
        "distinguishable from the planted one",
        [len(searches), len(alike)],
    ),
    *rows(
        HEALTH,
        {
            "healthy |": run("healthy"),
            "no warm-up | `dense_warmup=0`": run("no warm-up"),
            "all pruned | a penalty of 1000 x density": run("all pruned"),
            "not pruned | `gate_lr=5e-4`": run("not pruned"),
            "undecided | `density=0.4`": run("undecided"),
        },
    ),
    *rows(
        DAM,
        {
            "relaxed | at their probability": [float(losses["relaxed"])],
            "sampled | drawn": [float(losses["sampled"])],
            "rounded | at 1/2": [float(losses["rounded"])],
            "discretised | cut at the target": [float(losses["discretised"])],
            "retrained | fresh weights under that mask": [float(losses["retrained"])],
        },
    ),
    Claim(
        HEALTH,
        "of {} edges of the healthy run {} are planted ({} different)",
        dam(r"edges (\d+), planted (\d+), different (\d+)"),
    ),
    Claim(HEALTH, "all three seeds (IoU {}; {} at .1 by heads)", [merged, overlap]),
    Claim(
        HEALTH,
        "precision {} to {} (heads and layers pooled), but seeds overlap less ({} against {})",
        [min(layers), max(layers), overlap_in_two, overlap],
    ),
    Claim(IMPORTANCE, "| held-out accuracy (ceiling 0.87) | {} | {} | {} |", measured["accuracy"]),
    *rows(
        IMPORTANCE,
        {
            "attention map": measured["attention map"],
            "gradient": measured["gradient, signed"],
            "gradient, `signed=False`": measured["gradient, signed=False"],
            "flip": measured["flip, signed"],
            "flip, `signed=False`": measured["flip, signed=False"],
            "fisher": measured["fisher"],
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
NO_CLAIM = [
    (IMPORTANCE, "these measures show at most 0.011"),  # not kept
    (IMPORTANCE, "1 - P as at least 0.1,"),  # how "flip" is defined
]
