"""What a selector of masks is worth: regret on tables whose best choice is known, with intervals.

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

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pandas as pd

from masksearch.analysis.stats import estimate
from masksearch.bench.table import PAIRS, Choice, Table, family_of
from masksearch.errors import SearchError

BUDGETS = (0.3, 0.4, 0.5, 0.6)
SELECTED, ORACLE, LEAST = "regret", "oracle", "least"


class Judged:
    """What a selector is told of a table: costs, budgets, and losses on calibration tokens, of
    which it is counted how many it asks for.

    Args:
        table: The table.
        budgets: Largest shares of the dense cost.
        seed: For a selector that draws.
        account: How costs are counted, see `Table.shares`.
    """

    def __init__(
        self, table: Table, budgets: Sequence[float] = BUDGETS, seed: int = 0, account: str = PAIRS
    ) -> None:
        self.table, self.budgets = table, tuple(sorted(budgets))
        self.seed, self.account = seed, account
        self.asked: dict[str, float] = {}
        self.shares = table.shares(account).to_dict()
        self.losses = (table.cells[f"calibration/{table.name}"] * table.sign).to_dict()

    @property
    def units(self) -> int:
        """Number of units."""
        return len(self.table.sheet.free)

    @property
    def levels(self) -> int:
        """Masks of a unit."""
        return len(self.table.sheet.levels)

    @property
    def evaluations(self) -> int:
        """Distinct choices whose loss was asked for."""
        return len(self.asked)

    def share(self, choice: Choice) -> float:
        """What a choice costs, as a share of the dense model; free of charge."""
        return float(self.shares[self.table.read_choice(choice)])

    def loss(self, choice: Choice) -> float:
        """What a choice loses on calibration tokens; of a score, less it."""
        name = self.table.read_choice(choice)
        if name not in self.losses:
            self.table.query(name)  # says that it is missing
        return self.asked.setdefault(name, self.losses[name])

    def best(self, budget: float) -> str:
        """The best of the choices asked for within a budget; the first level everywhere, where
        there is none."""
        known = [each for each in self.asked if self.share(each) <= budget * (1 + 1e-9)]
        return min(known, key=self.asked.__getitem__, default="0" * self.units)


Selector = Callable[[Judged], Iterable[tuple[float, Choice]]]


def strategy(name: Any, trials: int = 60, **options: Any) -> Selector:
    """A strategy of the package as a selector: the best that it finds within each budget.

    Args:
        name: As of `ms.search`.
        trials: Of the search.
        options: What else `ms.search` takes.
    """

    def selector(known: Judged) -> Iterable[tuple[float, Choice]]:
        how = {"trials": trials, "seeds": [known.seed], **options}
        if known.account == PAIRS:
            how.setdefault("budget", known.budgets)
        for choice in known.table.simulate(name, **how).choice:
            known.loss(choice)
        return [(budget, known.best(budget)) for budget in known.budgets]

    selector.__name__ = str(name)
    return selector


def judge(
    selector: Selector,
    tables: Iterable[Table],
    budgets: Sequence[float] = BUDGETS,
    *,
    seeds: Sequence[int] = (0,),
    account: str = PAIRS,
    name: str | None = None,
) -> pd.DataFrame:
    """Lets a selector choose on each table, and reads what it chose on test tokens.

    Args:
        selector: A function of `Judged` that gives a choice for each budget.
        tables: Complete ones.
        budgets: Largest shares of the dense cost.
        seeds: Of selectors that draw.
        account: How costs are counted, see `Table.shares`.
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
    name = name or getattr(selector, "__name__", type(selector).__name__)
    for table in tables:
        for seed in seeds:
            known = Judged(table, budgets, seed, account)
            chosen = dict(selector(known))
            for budget in known.budgets:
                if budget not in chosen:
                    raise SearchError(f"selector {name} gave no choice for the budget {budget:g}")
                pick = table.query(table.optimum(budget, account).choice, "test")
                least = table.optimum(budget, account, "test")
                oracle = table.sign * (pick[table.name] - least[table.name])
                rows.append(
                    {
                        "selector": name,
                        "table": table.sheet.name,
                        "seed": seed,
                        "budget": budget,
                        "choice": table.read_choice(chosen[budget]),
                        "evaluations": known.evaluations,
                        SELECTED: table.regret(chosen[budget], budget, account),
                        ORACLE: oracle,
                    }
                )
    return pd.DataFrame(rows)


def summary(rows: pd.DataFrame) -> pd.DataFrame:
    """Means over the tables of a family (`recall-1`, `recall-2`, ..) of what `judge` gives, with
    95 % intervals by Student's t; the table (its checkpoint) is the unit, and seeds are averaged
    in it. Of one table there is no interval.

    Returns:
        One row a selector, family and budget: `tables`, `evaluations` (mean), `regret`, `low`,
        `high`, `oracle`.
    """
    found = []
    families = rows.table.map(family_of)
    for (name, family, budget), part in rows.groupby(["selector", families, "budget"], sort=False):
        each = part.groupby("table")[[SELECTED, ORACLE, "evaluations"]].mean()
        told = {"selector": name, "family": family, "budget": budget, "tables": len(each)}
        told |= {"evaluations": each.evaluations.mean(), SELECTED: each.regret.mean()}
        if len(each) > 1:
            interval = estimate(each.regret.tolist())
            told |= {"low": interval.low, "high": interval.high}
        found.append({**told, ORACLE: each.oracle.mean()})
    return pd.DataFrame(found)
