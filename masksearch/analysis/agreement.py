"""How far a masked model answers, or ranks texts, as its dense model does; no label is looked at.

found = agreement(dense.predictions["reviews"], masked.predictions["reviews"])
str(found)      # "answers .950 of 843 rows as the dense model does [.933, .963]"
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

SLOPES = 0.9, 1.1  # of answers over the dense model's: what lies outside is said


@dataclass(frozen=True)
class Agreement:
    """The share of rows with the dense model's class, or the correlation of two scores or ranks.

    Args:
        value: In [0, 1], or in [-1, 1].
        low: Lower end of its 95 % interval over rows (Wilson's, or Fisher's of a correlation).
        high: Upper end.
        rows: How many.
        slope: Of the masked model's scores over the dense model's; None of classes.
        shift: Mean of the former minus that of the latter, in deviations of the latter; None of
            classes.
        random_pairs: Of ranks, the correlation of random pairs; `value` is then of near texts.
    """

    value: float
    low: float
    high: float
    rows: int
    slope: float | None = None
    shift: float | None = None
    random_pairs: float | None = None

    def __str__(self) -> str:
        figure = f"{self.value:.3f}", f"[{self.low:.3f}, {self.high:.3f}]"
        if self.random_pairs is not None:
            said = f"ranks near texts as the dense model does: Spearman {' '.join(figure)}"
            return f"{said}, {self.rows:,} query texts (random pairs {self.random_pairs:.3f})"
        if self.slope is None or self.shift is None:
            share, ends = figure
            return f"answers {share} of {self.rows:,} rows as the dense model does {ends}"
        moved = f"; its scores lie {abs(self.shift):.2f} deviations "
        moved += "higher" if self.shift > 0 else "lower"
        if not SLOPES[0] <= self.slope <= SLOPES[1]:
            moved += f", and move by {self.slope:.2f} where the dense model's move by 1"
        return f"has a correlation of {' '.join(figure)} with the dense model{moved}"


def agreement(dense: NDArray[Any], masked: NDArray[Any]) -> Agreement:
    """How far two models agree on the same rows.

    Args:
        dense: Answers of the dense model, `[rows]`: class numbers (integers) or scores.
        masked: Those of the masked one.

    >>> str(agreement(np.array([0, 1, 1, 0]), np.array([0, 1, 1, 1])))
    'answers 0.750 of 4 rows as the dense model does [0.301, 0.954]'
    """
    from scipy import stats

    if np.issubdtype(dense.dtype, np.integer):
        same = int((dense == masked).sum())
        low, high = stats.binomtest(same, len(dense)).proportion_ci(method="wilson")
        return Agreement(same / len(dense), low, high, len(dense))
    spread = dense.std()
    shift = float((masked.mean() - dense.mean()) / spread)
    if np.ptp(masked) == 0:
        return Agreement(0.0, 0.0, 0.0, len(dense), 0.0, shift)
    found = stats.pearsonr(dense, masked)
    (low, high), value = found.confidence_interval(), float(found.statistic)
    slope = value * float(masked.std() / spread)
    return Agreement(value, float(low), float(high), len(dense), slope, shift)
