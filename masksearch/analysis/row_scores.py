"""How a run has answered every row of its evaluation data, in a file beside its reports."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

ROWS = "rows.safetensors"  # in the trial's folder
LEVEL = 0.95  # of the interval whose lower end `lower_bound` gives


def lower_bound(scores: NDArray[np.floating], least: float = 0.0) -> float:
    """Lower end of the 95% interval over rows of a mean of row scores.

    Wilson's interval where every row is right or wrong (0 or 1), Student's otherwise, which over
    pseudo-values is that of the jackknife.

    Args:
        scores: float `[rows]`.
        least: Smallest value of the metric; never below it, and the bound of a single row.

    Reference: Wilson, JASA 22, 209 (1927); Tukey, Annals of Mathematical Statistics 29, 614
        (1958).

    >>> round(lower_bound(np.array([1.0] * 8 + [0.0] * 2)), 3)
    0.49
    """
    from scipy.stats import norm, t

    n, mean, tail = len(scores), float(np.mean(scores)), (1 + LEVEL) / 2
    if np.isin(scores, (0, 1)).all():
        z = float(norm.ppf(tail))
        middle = mean + z * z / (2 * n)
        spread = z * math.sqrt(mean * (1 - mean) / n + (z / (2 * n)) ** 2)
        return max(least, (middle - spread) / (1 + z * z / n))
    if n == 1:
        return least
    error = float(np.std(scores, ddof=1)) / math.sqrt(n)
    return max(least, mean - float(t.ppf(tail, n - 1)) * error)


def pseudo_values(metric: float, without: NDArray[np.floating]) -> NDArray[np.float64]:
    """Each row's part of a metric that is no mean over rows, moved so that their mean is it.

    Args:
        metric: Over all rows.
        without: float `[rows]`: the metric over all rows but one.
    """
    n = len(without)
    raw = n * metric - (n - 1) * np.asarray(without, np.float64)
    moved: NDArray[np.float64] = raw + (metric - raw.mean())
    return moved


@dataclass(frozen=True, eq=False)
class RowScores:
    """The score of a run, row by row.

    `score == sum(weights[part] * scores[part].mean() for part in weights)`. Where a metric is no
    mean over rows (a correlation, F1), the rows hold its jackknife pseudo-values, moved so that
    their mean is the metric.

    Args:
        scores: Part of the data (a development set) -> float `[rows]`.
        weights: Part -> its weight in the first objective.
        digests: Part -> hash of its rows; scores are paired row by row where these are equal.
        predictions: Part -> what was predicted, `[rows, ..]`: a class, a score, two positions.

    Reference: pseudo-values, Tukey, Annals of Mathematical Statistics 29, 614 (1958).
    """

    scores: Mapping[str, NDArray[np.floating]] = field(repr=False)
    weights: Mapping[str, float]
    digests: Mapping[str, str]
    predictions: Mapping[str, NDArray[np.generic]] = field(default_factory=dict, repr=False)

    @property
    def tick(self) -> float:
        """By how much one row changes the score: the largest of weight / rows."""
        return max(abs(weight) / len(self.scores[part]) for part, weight in self.weights.items())

    @property
    def score(self) -> float:
        """The weighted mean."""
        return math.fsum(w * float(self.scores[part].mean()) for part, w in self.weights.items())

    def save(self, folder: Path) -> None:
        """Writes `rows.safetensors` into a folder, in one move."""
        from safetensors.numpy import save_file

        folder.mkdir(parents=True, exist_ok=True)
        arrays = {f"score/{part}": np.asarray(a, np.float32) for part, a in self.scores.items()}
        arrays |= {f"prediction/{part}": np.asarray(a) for part, a in self.predictions.items()}
        about = {
            "weights": json.dumps(dict(self.weights)),
            "digests": json.dumps(dict(self.digests)),
        }
        partial = folder / f"{ROWS}.partial"
        save_file({name: np.ascontiguousarray(a) for name, a in arrays.items()}, partial, about)
        partial.replace(folder / ROWS)

    @classmethod
    def joined(cls, several: Sequence[RowScores]) -> RowScores:
        """The parts of several, which have no part in common, as one."""
        names = ("scores", "weights", "digests", "predictions")
        return cls(*({k: v for one in several for k, v in getattr(one, n).items()} for n in names))

    @classmethod
    def mean(cls, runs: Sequence[RowScores]) -> RowScores:
        """Mean scores of several runs on the same rows; predictions are `[rows, runs, ..]`."""
        first, *more = runs
        if not more:
            return first
        return replace(
            first,
            scores={p: np.mean([run.scores[p] for run in runs], axis=0) for p in first.scores},
            predictions={
                p: np.stack([run.predictions[p] for run in runs], 1) for p in first.predictions
            },
        )

    @classmethod
    def load(cls, path: Path) -> RowScores:
        """Reads what `save` has written.

        Args:
            path: The file.

        Raises:
            OSError, safetensors.SafetensorError: If there is none, or it is damaged.
        """
        from safetensors import safe_open

        with safe_open(path, framework="np") as file:
            about = file.metadata()
            arrays = {name: file.get_tensor(name) for name in file.keys()}
        by_kind: dict[str, dict[str, NDArray[np.generic]]] = {"score": {}, "prediction": {}}
        for name, array in arrays.items():
            kind, part = name.split("/", 1)
            by_kind[kind][part] = array
        scores = {part: a.astype(np.float64) for part, a in by_kind["score"].items()}
        weights, digests = json.loads(about["weights"]), json.loads(about["digests"])
        return cls(scores, weights, digests, by_kind["prediction"])
