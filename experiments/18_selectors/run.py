"""Which selector of heads should a user take, where the best choice is known?

    python experiments/18_selectors/run.py build judge table --numbers 1 2 3 [--runs FOLDER]
    python experiments/18_selectors/run.py confirm --numbers 10 11

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
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import selectors_of_heads as selectors
import tables
import torch
from scipy.stats import wilcoxon

import masksearch as ms
from masksearch.analysis.stats import holm
from masksearch.bench import build, judge, load, summary

HERE = Path(__file__).parent
PLAN = tomllib.loads((HERE / "plan.toml").read_text(encoding="utf-8"))
WHERE: dict[str, Any] = {"account": PLAN["account"], "length": PLAN["length"]}
LEARNT = 0.99  # share of the calibration questions that a checkpoint answers without a mask
LEAST_NOISE = 0.002  # nats


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stages", nargs="+", choices=list(STAGES))
    parser.add_argument("--runs", type=Path, default=Path("runs/18_selectors"))
    parser.add_argument("--numbers", type=int, nargs="*", default=[], help="of checkpoints")
    parser.add_argument("--only", nargs="*", help="selectors; all of them")
    given = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", category=UserWarning)
    for stage in given.stages:
        STAGES[stage](given)


def built(given: argparse.Namespace) -> None:
    """The tables of the checkpoints."""
    for number in given.numbers:
        spec = tables.recall_of(number)
        *_, last = spec.judge(spec.units.levels[-1], seed=0, workdir=given.runs)
        if last.values["recall"] < LEARNT:
            print(f"{spec.name} answers {last.values['recall']:.3f}: no table", flush=True)
        elif not (given.runs / "tables" / f"{spec.name}.parquet").is_file():
            print(build(spec, given.runs / "tables"), flush=True)


def judged(given: argparse.Namespace) -> None:
    """What every selector chooses on each table."""
    found = selectors.every(lambda name: tables.recall_of(int(name.split("-")[1])).judge)
    (given.runs / "judged").mkdir(parents=True, exist_ok=True)
    for number in given.numbers:
        path = given.runs / "tables" / f"recall-{number}.parquet"
        table = load(path)
        for name, (selector, draws) in found.items():
            out = given.runs / "judged" / f"{number} {name}.csv"
            if out.is_file() or (given.only and name not in given.only):
                continue
            seeds, begun = range(PLAN["search_seeds"] if draws else 1), time.process_time()
            rows = judge(selector, [table], PLAN["budgets"], seeds=seeds, name=name, **WHERE)
            rows["seconds"] = round((time.process_time() - begun) / len(seeds), 2)
            rows.to_csv(out, index=False)
            print(f"{path.stem} {name}: {rows.regret.mean():.4f}", flush=True)


def confirmed(given: argparse.Namespace) -> None:
    """The package's own selectors on checkpoints that no choice has seen, and the noise of the
    cells; from `build` on, results go to disk as they come."""
    own = {f"allocate {name}" for name in selectors.ALLOCATIONS}
    found = selectors.every(lambda name: tables.recall_of(int(name.split("-")[1])).judge)
    rows = []
    for number in given.numbers:
        table = load(given.runs / "tables" / f"recall-{number}.parquet")
        for name in sorted(own):
            told = judge(found[name][0], [table], PLAN["budgets"], name=name, **WHERE)
            for row in told.to_dict("records"):
                pick = table.optimum(row["budget"], **WHERE).choice
                rows.append(row | {"noise": noise(number, table, row["choice"], pick)})
        frame = pd.DataFrame(rows)
        frame["within"] = frame.regret <= 2 * frame.noise
        frame.to_csv(HERE / "results" / "confirmed.csv", index=False, float_format="%.5g")
    print(frame.groupby(["selector", "budget"]).within.sum().unstack(), flush=True)


def noise(number: int, table: Any, one: str, other: str) -> float:
    """Standard error, over test sequences, of the difference of two choices in nats a token."""
    test = tables.recall_of(number).judge.on("test")
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
    each = pd.concat(pd.read_csv(path) for path in sorted((given.runs / "judged").glob("*.csv")))
    each = each.sort_values(["selector", "table", "seed", "budget"], key=natural)
    each.drop(columns="seconds").to_csv(out / "judged.csv", index=False, float_format="%.5g")
    seconds = each.groupby("selector").seconds.mean().round(1)
    whole = summary(each)
    whole.to_csv(out / "summary.csv", index=False, float_format="%.5g")
    compared(each).assign(seconds=lambda t: t.selector.map(seconds)).to_csv(
        out / "compared.csv", index=False, float_format="%.5g"
    )
    own = each[each.selector.isin([f"allocate {name}" for name in selectors.ALLOCATIONS])]
    compared(own).to_csv(out / "own.csv", index=False, float_format="%.5g")
    sheets = {
        path.stem: json.loads((path / "learnt.json").read_text())
        for path in sorted(tables.CHECKPOINTS.glob("recall-*"))
    }
    (out / "checkpoints.json").write_text(json.dumps(sheets, indent=1) + "\n")
    print(whole.to_string(), flush=True)


def natural(column: pd.Series[Any]) -> pd.Series[Any]:
    """A key that sorts recall-10 behind recall-9."""
    if column.name != "table":
        return column
    return column.str.split("-").str[1].astype(int)


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
    adjusted = dict(zip(others, holm(tests), strict=True))
    return pd.DataFrame(
        {
            "selector": means.index,
            "regret": means.mean(axis=1).to_numpy(),
            "evaluations": cost[means.index].to_numpy(),
            "p": [adjusted.get(name, np.nan) for name in means.index],
        }
    ).sort_values("regret", kind="stable")


STAGES = {"build": built, "judge": judged, "confirm": confirmed, "table": tabled}

if __name__ == "__main__":
    main()
