"""How a run has answered every row of its evaluation data, in a file beside its reports."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

ROWS = "rows.safetensors"  # in the trial's folder


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
