"""Where units have four windows: is the best choice of a budget in that of the next one, and which
strategy finds it? See [window_tables] in plan.toml.

    python experiments/18_selectors/windows.py FOLDER

FOLDER has the tables that `masksearch-bench build tables.py:windows` writes.
"""

from __future__ import annotations

import argparse
import warnings
from itertools import pairwise
from pathlib import Path

import optuna
import pandas as pd
import torch
from run import HERE, PLAN
from selectors_of_heads import as_strategy

from masksearch_bench import Table, judge, load, strategy

SAID = PLAN["window_tables"]
EXCHANGE = {"strategy_options": {"method": "exchange"}}
DRAWN = ("evolution", "tpe", "random")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", category=UserWarning)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    tables = [load(given.folder / f"{name}.parquet") for name in SAID["tables"]]
    best = pd.DataFrame(row for table in tables for row in best_choices(table))
    best.to_csv(HERE / "results" / "windows_best.csv", index=False)
    judged = []
    for name, trials in (
        ("exchange", 60),
        ("exchange, to its end", 1_000),
    ):  # see [said_of_windows]
        selector = strategy("allocate", trials, **EXCHANGE)
        judged.append(judge(selector, tables, SAID["budgets"], name=name))
    for name in DRAWN:
        judged.append(
            judge(
                strategy(as_strategy(name), 60), tables, SAID["budgets"], seeds=range(3), name=name
            )
        )
    rows = pd.concat(judged)
    rows.to_csv(HERE / "results" / "windows_judged.csv", index=False, float_format="%.6g")
    print(best.to_string(), rows.groupby(["selector", "budget"]).regret.mean().unstack(), sep="\n")


def best_choices(table: Table) -> list[dict[str, object]]:
    """The best choice within each budget by two sets of tokens, and whether it is in the next."""
    rows: list[dict[str, object]] = []
    for tokens in ("calibration", "validation"):
        picks = [table.optimum(budget, tokens=tokens).choice for budget in SAID["budgets"]]
        inside = [
            all(one <= more for one, more in zip(*steps, strict=True)) for steps in pairwise(picks)
        ]
        about = {"table": table.sheet.name, "tokens": tokens}
        rows += [
            {**about, "budget": budget, "choice": f"c{pick}", "nested": nested}
            for budget, pick, nested in zip(SAID["budgets"], picks, [*inside, None], strict=True)
        ]
    return rows


if __name__ == "__main__":
    main()
