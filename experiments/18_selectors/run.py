"""Which selector of heads should a user take, where the best choice is known?

    python experiments/18_selectors/run.py build judge table --tables recall-1 novels-0 smollm2-1
    python experiments/18_selectors/run.py confirm --tables recall-10 recall-11

`train.py` makes the checkpoints. `build` judges every choice of each; `judge` lets every selector
choose; `confirm` does so with the default of `allocate` alone, and says how much noise a cell has;
`table` writes what has ended into results/. Every stage goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import json
import time
import tomllib
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pandas as pd
import selectors_of_heads as selectors
import tables
import torch
from scipy.stats import wilcoxon

import masksearch as ms
from masksearch.analysis.stats import holm
from masksearch.bench import Table, build, judge, load, summary
from masksearch.bench.table import family_of, natural

HERE = Path(__file__).parent
PLAN = tomllib.loads((HERE / "plan.toml").read_text(encoding="utf-8"))
WHERE: dict[str, Any] = {"account": f"{PLAN['account']}/{PLAN['length']}"}
LEARNT = 0.99  # share of the calibration questions that a checkpoint answers without a mask
LEAST_NOISE = 0.002  # nats


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stages", nargs="+", choices=list(STAGES))
    parser.add_argument("--runs", type=Path, default=Path("runs/18_selectors"))
    parser.add_argument("--tables", nargs="*", default=[], help="recall-N, novels-N, smollm2-1")
    parser.add_argument("--only", nargs="*", help="selectors; all of them")
    given = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", category=UserWarning)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    for stage in given.stages:
        STAGES[stage](given)


def built(given: argparse.Namespace) -> None:
    """The tables of the checkpoints."""
    for name in given.tables:
        spec = tables.spec_of(name)
        *_, last = spec.judge(spec.units.levels[-1], seed=0, workdir=given.runs)
        if last.values.get("recall", 1.0) < LEARNT:
            print(f"{name} answers {last.values['recall']:.3f}: no table", flush=True)
        elif not (given.runs / "tables" / f"{name}.parquet").is_file():
            print(build(spec, given.runs / "tables"), flush=True)


def judged(given: argparse.Namespace) -> None:
    """What every selector chooses on each table."""
    (given.runs / "judged").mkdir(parents=True, exist_ok=True)
    for table in (load(given.runs / "tables" / f"{name}.parquet") for name in given.tables):
        budgets = (PLAN | PLAN.get(family_of(table.sheet.name), {}))["budgets"]
        found = selectors_of(table, budgets)
        for name, (selector, draws) in found.items():
            out = given.runs / "judged" / f"{table.sheet.name} {name}.csv"
            if out.is_file() or (given.only and name not in given.only):
                continue
            seeds, begun = range(PLAN["search_seeds"] if draws else 1), time.process_time()
            rows = judge(selector, [table], budgets, seeds=seeds, name=name, **WHERE)
            rows["seconds"] = round((time.process_time() - begun) / len(seeds), 2)
            rows.to_csv(out, index=False)
            print(f"{table.sheet.name} {name}: {rows.regret.mean():.4f}", flush=True)


def selectors_of(table: Table, budgets: Sequence[float]) -> dict[str, tuple[Any, bool]]:
    """Name -> selector of a table, and whether it draws at random."""

    def judge() -> ms.CausalEvaluator:
        return tables.spec_of(table.sheet.name).judge

    if table.whole:
        return selectors.every(table, judge, budgets, **WHERE)
    return selectors.of_some_layers(table, judge)


def confirmed(given: argparse.Namespace) -> None:
    """The package's own selectors on checkpoints that no choice has seen, and the noise of the
    cells; from `build` on, results go to disk as they come."""
    own = {f"allocate {name}" for name in selectors.ALLOCATIONS}
    rows = []
    for table in (load(given.runs / "tables" / f"{name}.parquet") for name in given.tables):
        found = selectors_of(table, PLAN["budgets"])
        for name in sorted(own):
            told = judge(found[name][0], [table], PLAN["budgets"], name=name, **WHERE)
            for row in told.to_dict("records"):
                pick = table.optimum(row["budget"], **WHERE).choice
                rows.append(row | {"noise": noise(table, row["choice"], pick)})
        frame = pd.DataFrame(rows)
        frame["within"] = frame.regret <= 2 * frame.noise
        frame.to_csv(HERE / "results" / "confirmed.csv", index=False, float_format="%.5g")
    print(frame.groupby(["selector", "budget"]).within.sum().unstack(), flush=True)


def noise(table: Table, one: str, other: str) -> float:
    """Standard error, over test sequences, of the difference of two choices in nats a token."""
    test = tables.spec_of(table.sheet.name).judge.on("test")
    losses = []
    for choice in (one, other):
        model = test.shared(0).model
        ms.attach(model, table.mask(choice))
        try:
            scores = test.judge(model).nll
        finally:
            ms.detach(model)
        scored = test.rows.labels != -100
        losses.append([float(row[kept].mean()) for row, kept in zip(scores, scored, strict=True)])
    apart = np.subtract(*losses)
    return max(LEAST_NOISE, float(apart.std(ddof=1) / len(apart) ** 0.5))


def tabled(given: argparse.Namespace) -> None:
    """results/: every choice, the summary, and the comparison with the best selector."""
    out = HERE / "results"
    out.mkdir(exist_ok=True)
    paths = sorted((given.runs / "judged").glob("*.csv"))
    each = pd.concat(pd.read_csv(path, dtype={"choice": str}) for path in paths)
    each = each.sort_values(
        ["selector", "table", "seed", "budget"],
        key=lambda column: column.map(natural) if column.name == "table" else column,
    )
    each.drop(columns="seconds").to_csv(out / "judged.csv", index=False, float_format="%.5g")
    whole = summary(each)
    whole.to_csv(out / "summary.csv", index=False, float_format="%.5g")
    families = each.groupby(each.table.map(family_of), sort=False)
    parts = [compared(part).assign(family=family) for family, part in families]
    pd.concat(parts).to_csv(out / "compared.csv", index=False, float_format="%.5g")
    own = [f"allocate {name}" for name in selectors.ALLOCATIONS]
    of_recall = each[each.selector.isin(own) & (each.table.map(family_of) == "recall")]
    compared(of_recall).to_csv(out / "own.csv", index=False, float_format="%.5g")
    sheets = {
        path.name: json.loads((path / "learnt.json").read_text())
        for path in sorted(tables.CHECKPOINTS.glob("*-*"))
    }
    (out / "checkpoints.json").write_text(json.dumps(sheets, indent=1) + "\n")
    print(whole.to_string(), flush=True)


def compared(each: pd.DataFrame) -> pd.DataFrame:
    """Mean regret over the budgets, and the difference from the best selector that judges fewer
    than all choices: Wilcoxon's signed ranks over checkpoints, Holm over selectors."""
    means = each.groupby(["selector", "table"]).regret.mean().unstack()
    cost = each.groupby("selector").evaluations.mean()
    best = means.drop(index="exact", errors="ignore").mean(axis=1).idxmin()
    others = [name for name in means.index if name not in (best, "exact")]
    tests = []
    for name in others:
        apart = (means.loc[name] - means.loc[best]).to_numpy()
        tests.append(wilcoxon(apart).pvalue if np.any(apart) else 1.0)
    adjusted = dict(zip(others, holm(tests), strict=True)) if means.shape[1] > 1 else {}
    return pd.DataFrame(
        {
            "selector": means.index,
            "regret": means.mean(axis=1).to_numpy(),
            "evaluations": cost[means.index].to_numpy(),
            "seconds": each.groupby("selector").seconds.mean()[means.index].round(1).to_numpy(),
            "p": [adjusted.get(name, np.nan) for name in means.index],
        }
    ).sort_values("regret", kind="stable")


STAGES = {"build": built, "judge": judged, "confirm": confirmed, "table": tabled}

if __name__ == "__main__":
    main()
