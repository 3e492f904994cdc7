"""Tables of attention masks with a known optimum, as a problem of OptunaHub."""

from __future__ import annotations

from typing import Any

import optunahub
from optuna import Study
from optuna.distributions import BaseDistribution, IntDistribution
from optuna.study import StudyDirection

from masksearch_bench import load

__all__ = ["Problem"]


class Problem(optunahub.benchmarks.BaseProblem):
    """Which heads or layers of a decoder see everything: what it loses, and what the mask costs.

    Args:
        table: Name of a table that is installed, see `masksearch-bench`, or a file.
        cost: How it is counted: `"pairs"` of tokens, or bytes of a cache, `"head/8192"`.
    """

    def __init__(self, table: str = "recall-1", cost: str = "pairs") -> None:
        self.table, self.cost = load(table), cost

    @property
    def search_space(self) -> dict[str, BaseDistribution]:
        """One level a unit."""
        top = len(self.table.sheet.levels) - 1
        return {name: IntDistribution(0, top) for name in self.table.sheet.free}

    @property
    def directions(self) -> list[StudyDirection]:
        """Of the score on calibration tokens, and of the cost."""
        return [StudyDirection[name.upper()] for name in self.table.directions]

    def evaluate(self, params: dict[str, Any]) -> tuple[float, float]:
        """The score on calibration tokens, and the cost as a share of the dense model's."""
        cell = self.table.query([params[name] for name in self.table.sheet.free], cost=self.cost)
        return cell[self.table.name], cell.share

    def regret(self, study: Study, budget: float) -> float:
        """The test loss of the study's best choice within a budget, minus that of the choice that
        exhaustive search picks.

        Raises:
            ValueError: If no trial of the study is as cheap.
        """
        paid = [each for each in study.trials if each.values and each.values[1] <= budget]
        if not paid:
            raise ValueError(f"no trial costs at most {budget:g}; give more trials or budget")
        best = min(paid, key=lambda each: self.table.sign * each.values[0])
        choice = [best.params[name] for name in self.table.sheet.free]
        return self.table.regret(choice, budget, self.cost)
