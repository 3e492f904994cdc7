"""What pages say about this experiment, recomputed from results/: see experiments/verify.py."""

import math
from pathlib import Path

import pandas as pd

from experiments.verify import Claim, interval

HERE = "experiments/09_minilm_glue/README.md"

scores = pd.read_csv(Path(__file__).parent / "results" / "scores.csv").sort_values("seed")
tasks = {task: found for task, found in scores.groupby("task")}


def metric(task: str, name: str) -> list[float]:
    """Seeds, mean and interval of a metric."""
    found = tasks[task].metrics.str.extract(rf"{name}=(\S+)")[0].astype(float)
    return [*found, *interval(found)]


def primary(task: str) -> list[float]:
    """Majority, seeds, mean and interval of the task's score, and its minutes."""
    found = tasks[task]
    ends = [found.minutes.min(), found.minutes.max()]
    return [found.majority.iloc[0], *found.score, *interval(found.score), *ends]


CLAIMS = [
    Claim(HERE, "| SST-2 (8,000 rows) | accuracy |...", primary("SST-2")),
    Claim(HERE, "| MRPC | accuracy |...", primary("MRPC")),
    Claim(HERE, "| | F1 | |...", metric("MRPC", "f1")),
    Claim(HERE, "| STS-B | Pearson |...", primary("STS-B")),
    Claim(HERE, "| | Spearman | |...", metric("STS-B", "spearman")),
    Claim(HERE, "| RTE | accuracy |...", primary("RTE")),
    Claim(
        HERE,
        "277 development rows one standard error is {}",
        [math.sqrt(tasks["RTE"].score.mean() * (1 - tasks["RTE"].score.mean()) / 277)],
    ),
]
