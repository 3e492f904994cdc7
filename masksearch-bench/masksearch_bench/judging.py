"""The worth of a selector of masks: regret on tables whose best choice is known, with intervals.

def last_layers(known):                            # a selector, ten lines of one's own
    for budget in known.budgets:
        choice = [0] * known.units
        for unit in reversed(range(known.units)):
            if known.share([*choice[:unit], 1, *choice[unit + 1 :]]) <= budget:
                choice[unit] = 1
        yield budget, choice

rows = judge(last_layers, [load(f"recall-{n}") for n in range(10)], budgets=(0.4, 0.6))
print(summary(rows))
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, NoReturn

import pandas as pd

from masksearch.analysis.stats import estimate
from masksearch.errors import SearchError
from masksearch.masks.measure import ROUNDING
from masksearch_bench.table import PAIRS, Choice, Table, family_of

BUDGETS = (0.3, 0.4, 0.5, 0.6)
SELECTED, ORACLE = "regret", "oracle"


@dataclass(frozen=True, slots=True)
class Judged:
    """A table as a selector may read it; `judge` keeps the answers. It is no lock: Python lets
    whoever inspects closures or opens the table's file read them.

    Args:
        units: Number of units that a choice is about.
        levels: Number of masks that a unit may have.
        budgets: Largest shares of the dense cost, ascending.
        seed: For a selector that draws.
        share: Cost of a choice, as a share of the dense model; free of charge.
        loss: Loss of a choice on calibration tokens (of a score, its negative); each choice that
            is asked for counts once.
        best: The best of the choices asked for within a budget; where there is none, the first
            level everywhere.
    """

    units: int
    levels: int
    budgets: tuple[float, ...]
    seed: int
    share: Callable[[Choice], float]
    loss: Callable[[Choice], float]
    best: Callable[[float], str]

    def __getattr__(self, name: str) -> NoReturn:
        raise AttributeError(
            f"a selector may use {', '.join(each.name for each in fields(self))}, got {name!r}: "
            "the table and its other tokens stay with judge(); what else it needs, a model for "
            "example, its own code opens"
        )


Selector = Callable[[Judged], Iterable[tuple[float, Choice]]]


def seal(
    table: Table, budgets: Sequence[float] = BUDGETS, seed: int = 0, cost: str = PAIRS
) -> tuple[Judged, dict[str, float]]:
    """The view of a table for a selector, and the losses that it has asked for, which grow.

    Args:
        table: The table.
        budgets: Largest shares of the dense cost.
        seed: For a selector that draws.
        cost: How it is counted, see `Table.shares`.
    """
    asked: dict[str, float] = {}
    shares = table.shares(cost).to_dict()
    losses = (table.cells[f"calibration/{table.name}"] * table.sign).to_dict()

    def name_of(choice: Choice) -> str:
        name = table.read_choice(choice)
        if name not in losses:
            table.query(name)  # says that it is missing
        return name

    def share(choice: Choice) -> float:
        return float(shares[name_of(choice)])

    def loss(choice: Choice) -> float:
        return asked.setdefault(name := name_of(choice), losses[name])

    def best(budget: float) -> str:
        table.refuse_less(budget, cost)
        within = [each for each in asked if shares[each] <= budget * (1 + ROUNDING)]
        return min(within, key=asked.__getitem__, default="0" * len(table.free))

    sizes = len(table.free), len(table.sheet.levels)
    return Judged(*sizes, tuple(sorted(budgets)), seed, share, loss, best), asked


@dataclass(frozen=True)
class StrategySelector:
    """A strategy of the package as a selector: `judge` runs its search, see `strategy`.

    Args:
        name: As of `ms.search`.
        options: What else `ms.search` takes.
    """

    name: Any
    options: Mapping[str, Any]

    def choices(self, table: Table, judged: Judged, cost: str) -> dict[float, str]:
        """The best that it finds within each budget; what it judges is charged."""
        limits = {"budget": judged.budgets} if cost == PAIRS else {}
        options = {"seeds": [judged.seed], **limits, **self.options}
        for choice in table.simulate(self.name, **options).choice:
            judged.loss(choice)
        return {budget: judged.best(budget) for budget in judged.budgets}


def strategy(name: Any, trials: int = 60, **options: Any) -> StrategySelector:
    """A strategy of the package as a selector: the best that it finds within each budget.

    Args:
        name: As of `ms.search`.
        trials: Of the search.
        options: What else `ms.search` takes.
    """
    return StrategySelector(name, {"trials": trials, **options})


def judge(
    selector: Selector | StrategySelector,
    tables: Iterable[Table],
    budgets: Sequence[float] = BUDGETS,
    *,
    seeds: Sequence[int] = (0,),
    cost: str = PAIRS,
    name: str | None = None,
) -> pd.DataFrame:
    """Lets a selector choose on each table, and reads what it chose on test tokens.

    Args:
        selector: A function of `Judged` that gives a choice for each budget, or a `strategy`.
        tables: Complete ones.
        budgets: Largest shares of the dense cost.
        seeds: Of selectors that draw.
        cost: How it is counted, see `Table.shares`.
        name: Of the selector in the rows; None = the function's.

    Returns:
        One row a table, seed and budget: `choice`; `evaluations`, losses asked for; `regret`, the
        choice minus what exhaustive search picks on the same calibration tokens, both on test
        tokens; `oracle`, that pick minus the least of all choices on test tokens.

    Raises:
        SearchError: If the selector gives no choice for a budget.
        ValueError: If a choice costs more than its budget.
    """
    rows: list[dict[str, Any]] = []
    attribute = "name" if isinstance(selector, StrategySelector) else "__name__"
    name = name or str(getattr(selector, attribute, type(selector).__name__))
    for table in tables:
        for seed in seeds:
            judged, asked = seal(table, budgets, seed, cost)
            if isinstance(selector, StrategySelector):
                chosen: Mapping[float, Choice] = selector.choices(table, judged, cost)
            else:
                chosen = dict(selector(judged))
            for budget in judged.budgets:
                if budget not in chosen:
                    raise SearchError(f"selector {name} gave no choice for the budget {budget:g}")
                choice = table.read_choice(chosen[budget])
                pick = table.query(table.optimum(budget, cost).choice, "test")
                least = table.optimum(budget, cost, "test")
                oracle = table.sign * (pick[table.name] - least[table.name])
                row = {"selector": name, "table": table.sheet.name, "seed": seed, "budget": budget}
                row |= {"choice": choice, "evaluations": len(asked)}
                row |= {SELECTED: table.regret(choice, budget, cost), ORACLE: oracle}
                rows.append(row)
    return pd.DataFrame(rows)


def summary(rows: pd.DataFrame) -> pd.DataFrame:
    """Means over the tables of a family (`recall-1`, `recall-2`, ..) of what `judge` gives, with
    95 % intervals by Student's t; the table (its checkpoint) is the unit, and seeds are averaged
    in it. Of one table there is no interval.

    Returns:
        One row a selector, family and budget: `tables`, `evaluations` (mean), `regret`, `low`,
        `high`, `oracle`.
    """
    lines = []
    families = rows.table.map(family_of)
    for (name, family, budget), part in rows.groupby(["selector", families, "budget"], sort=False):
        each = part.groupby("table")[[SELECTED, ORACLE, "evaluations"]].mean()
        row = {"selector": name, "family": family, "budget": budget, "tables": len(each)}
        row |= {"evaluations": each.evaluations.mean(), SELECTED: each.regret.mean()}
        if len(each) > 1:
            interval = estimate(each.regret.tolist())
            row |= {"low": interval.low, "high": interval.high}
        lines.append({**row, ORACLE: each.oracle.mean()})
    return pd.DataFrame(lines)
