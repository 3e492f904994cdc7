"""Pareto successive halving: ends trials early without losing the sparse end of the front.

    scheduler = ParetoHalving(rungs=(62, 125, 250), metric="loss")
    goes_on = scheduler.observe(7, Report(62, {"loss": 2.1}), {"sparsity": 0.95})

Asynchronous and stop-type: a trial is compared with those that reached the same rung before it,
so no trial ever waits for another.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from masksearch.analysis.pareto import SPARSITIES, crowding, nondominated_ranks
from masksearch.contracts import Report
from masksearch.errors import SearchError, check_name
from masksearch.files import own_numbers
from masksearch.masks.measure import MEASURES

RANKINGS = ("nondominated", "strata", "metric")
MORE_IS_BETTER = (*SPARSITIES, "sparsity_off_diagonal")  # of the measures; less of the others


@dataclass(frozen=True)
class RungEntry:
    """One trial at one rung."""

    gains: tuple[float, ...]  # the metric, then what it is weighed against; more is better
    stratum: int
    goes_on: bool


@dataclass(frozen=True)
class ParetoHalving:
    """Scheduler that lets the best 1/factor of the trials at each rung go on.

    A trial enters a rung with its first report at or after the rung's step, and is ranked among
    all that entered it so far, those that were stopped included; of n trials it goes on if fewer
    than n / factor are ranked before it. In an order of arrival without a trend a share of
    1/factor goes on (of the first few, more). A report that passes several rungs enters them all,
    and the trial has to go on at each.

    Ranking the loss alone stops sparse masks, which learn more slowly or end a little worse;
    sparsity is known exactly before the first step, so a ranking can respect it at no cost:

    - `"nondominated"`: non-dominated sorting of the metric and the measures of `against`, the
      trials of one front by crowding distance, then by the metric, then by arrival. A trial
      never goes on where one that dominates it would not. A trial that nothing dominates is
      stopped only where such trials are more than n / factor, rounded up; against one measure,
      the best of each kind (lowest loss, highest sparsity) is never among the stopped if n >
      factor.
    - `"strata"`: by the metric among the trials of its density stratum alone.
    - `"metric"`: by the metric alone (ASHA's rule), as a control.

    It is stateful: the arguments are frozen, and `observe` fills the rungs.
    `dataclasses.replace(it)` is the same scheduler without observations, and observing the same
    reports in the same order rebuilds its state. One-shot jobs have no mask to rank and are not
    to be observed.

    Args:
        rungs: Steps of the rungs, rising (>= 1); to save anything they lie well before the
            evaluator's last report.
        metric: Name of the reported value to rank by.
        goal: `"min"` or `"max"`, of the metric.
        factor: Of `factor` trials about one goes on (> 1).
        ranking: `"nondominated"`, `"strata"` or `"metric"`.
        against: Measures of the mask that `"nondominated"` weighs the metric against: sparsity is
            maximised, density, block density and hops are minimised; sparsity and density are
            those over the non-padding query-key pairs. Other rankings ignore it.
        strata: Ratio of a stratum's largest to its smallest density (> 1): 2 makes the strata
            (1/2, 1], (1/4, 1/2], ... Other rankings ignore it.
        grace: Number of trials in the comparison, the one that arrives included, below which
            every trial goes on; None = `factor`, rounded up.

    Raises:
        ValueError: If an argument is out of its range.
        UnknownNameError: If `ranking` or a name in `against` is unknown.

    Reference: ASHA, arXiv 1810.05934; with non-dominated sorting: MO-ASHA, arXiv 2106.12639;
    sorting and crowding distance: NSGA-II, IEEE TEC 6(2), 2002.

    >>> scheduler = ParetoHalving(rungs=(10,), factor=2)
    >>> [
    ...     scheduler.observe(number, Report(10, {"loss": loss}), {"sparsity": sparsity})
    ...     for number, (loss, sparsity) in enumerate([(2.0, 0.5), (1.0, 0.5), (3.0, 0.4)])
    ... ]
    [True, True, False]
    """

    rungs: tuple[int, ...] = (62, 125, 250)
    metric: str = "loss"
    goal: Literal["min", "max"] = "min"
    factor: float = 2
    ranking: Literal["nondominated", "strata", "metric"] = "nondominated"
    against: tuple[str, ...] = ("sparsity",)
    strata: float = 2
    grace: int | None = None
    entries: tuple[dict[int, RungEntry], ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for name in ("rungs", "against"):  # lists are taken, too
            value = getattr(self, name)
            if isinstance(value, str):
                raise ValueError(f"{name} is a list, got {value!r}; write ({value!r},)")
            object.__setattr__(self, name, tuple(value))
        own_numbers(self)
        rising = all(a < b for a, b in zip(self.rungs, self.rungs[1:], strict=False))
        if not self.rungs or not rising or self.rungs[0] < 1:
            raise ValueError(f"rungs are rising steps from 1 on, got {self.rungs}; say (62, 125)")
        if self.goal not in ("min", "max"):
            raise ValueError(f"goal must be 'min' or 'max', got {self.goal!r}")
        check_name("ranking", self.ranking, RANKINGS)
        for name in ("factor", "strata"):
            if not 1 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be above 1, got {getattr(self, name)}")
        if self.grace is not None and self.grace < 1:
            raise ValueError(f"grace must be at least 1, got {self.grace}")
        for name in self.against:
            check_name("measure", name, MEASURES)
        if self.ranking == "nondominated" and not self.against:
            raise ValueError(
                "ranking 'nondominated' needs a measure in `against`, got none; "
                "without one choose ranking='metric'"
            )
        object.__setattr__(self, "entries", tuple({} for _ in self.rungs))

    def observe(self, number: int, report: Report, measures: Mapping[str, float]) -> bool:
        """Takes one report of a trial and says whether it goes on.

        Args:
            number: Trial number in the study.
            report: What the evaluator has reported. A report before the first rung, or one that
                enters no new rung, changes nothing.
            measures: What is known of the mask without training.

        Returns:
            False = the trial ends here. A rung's answer is given once and kept: a trial that was
            stopped at a rung gets False at every later report, and again in a resumed search.

        Raises:
            SearchError: If the report lacks the metric, or the measures lack what the ranking
                needs.
        """
        goes_on = True
        for rung, entries in zip(self.rungs, self.entries, strict=True):
            if report.step < rung:
                break
            if number not in entries:
                entries[number] = self._enter_rung(
                    number, report, measures, list(entries.values())
                )
            goes_on = goes_on and entries[number].goes_on
        return goes_on

    def _enter_rung(
        self, number: int, report: Report, measures: Mapping[str, float], before: list[RungEntry]
    ) -> RungEntry:
        """The entry of a trial that arrives at a rung after those `before`."""
        value = _require_value(
            report.values, self.metric, f"report of trial {number} at {report.step}"
        )
        gains = [value if self.goal == "max" else -value]
        if (sparsity := measures.get("effective_sparsity")) is not None:
            measures = {**measures, "sparsity": sparsity, "density": 1 - sparsity}
        stratum = 0
        where = f"measures of trial {number}"
        if self.ranking == "nondominated":
            for name in self.against:
                measure = _require_value(measures, name, where)
                gains.append(measure if name in MORE_IS_BETTER else -measure)
        elif self.ranking == "strata":
            density = _require_value(
                measures, "density", where, 1 - measures.get("sparsity", math.nan)
            )
            stratum = _stratum_of(density, self.strata)
            before = [entry for entry in before if entry.stratum == stratum]
        among = [entry.gains for entry in before] + [tuple(gains)]
        least = math.ceil(self.factor) if self.grace is None else self.grace
        goes_on = len(among) < least or _count_ahead_of_last(among) * self.factor < len(among)
        return RungEntry(tuple(gains), stratum, goes_on)


def _require_value(
    values: Mapping[str, float], name: str, where: str, otherwise: float = math.nan
) -> float:
    """The value of that name, or `otherwise` where that is a number."""
    value = values.get(name, otherwise)
    if math.isnan(value):
        raise SearchError(
            f"ParetoHalving ranks by {name!r}, which the {where} does not hold as a number; "
            f"it holds {', '.join(values) or 'nothing'}: name one of these, or search without a "
            "scheduler"
        )
    return value


def _stratum_of(density: float, ratio: float) -> int:
    """Stratum of a density: 0 for (1/ratio, 1], 1 for (1/ratio^2, 1/ratio], ...

    >>> [_stratum_of(density, 2) for density in (1.0, 0.51, 0.5, 0.25, 0.1)]
    [0, 0, 1, 2, 3]
    """
    if not 0 < density <= 1:
        raise SearchError(f"a density lies in (0, 1], got {density}; was the mask measured?")
    return math.floor(-math.log(density) / math.log(ratio) + 1e-9)  # 1/ratio^k belongs to k


def _count_ahead_of_last(gains: Sequence[tuple[float, ...]]) -> int:
    """How many points are ranked before the last one; see `ParetoHalving`."""
    if len(gains[-1]) == 1:
        return sum(gain >= gains[-1] for gain in gains[:-1])
    front = nondominated_ranks(gains)
    rivals = [gain for gain, at in zip(gains, front, strict=True) if at == front[-1]]
    merits = [(far, gain[0]) for far, gain in zip(crowding(rivals), rivals, strict=True)]
    return int((front < front[-1]).sum()) + sum(merit >= merits[-1] for merit in merits[:-1])
