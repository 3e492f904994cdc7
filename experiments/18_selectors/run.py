"""Which selector of heads should a user take, where the best choice is known?

    python experiments/18_selectors/run.py build judge table --tables recall-1 novels-0 smollm2-1
    python experiments/18_selectors/run.py confirm --tables recall-10 recall-11

`train.py` makes the checkpoints. `build` judges every choice of each; `judge` lets every selector
choose; `confirm` does so with the default of `allocate` alone, and says how much noise a cell has;
`again` judges what was confirmed on sequences that no table has used, and `window` one window in
every unit; `table` writes what has ended into results/. Every stage goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import json
import time
import tomllib
import warnings
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pandas as pd
import selectors_of_heads as selectors
import tables
import torch
from numpy.typing import NDArray
from scipy.stats import wilcoxon
from transformers import PreTrainedConfig

import masksearch as ms
from masksearch.analysis.stats import holm
from masksearch.contracts import generator
from masksearch.masks.baselines import widest_window
from masksearch.masks.core import Mask
from masksearch_bench import Table, build, judge, load, summary
from masksearch_bench.table import family_of, natural
from masksearch_decoders import CausalEvaluator
from masksearch_decoders.cache.kv_cache import kv_bytes
from masksearch_decoders.next_tokens import score_tokens
from masksearch_decoders.tasks.next_token import NextTokenRows

HERE = Path(__file__).parent
PLAN = tomllib.loads((HERE / "plan.toml").read_text(encoding="utf-8"))
WHERE: dict[str, Any] = {"cost": f"{PLAN['account']}/{PLAN['length']}"}
LEARNT = 0.99  # share of the calibration questions that a checkpoint answers without a mask
LEAST_NOISE = 0.002  # nats
NEAR = 1e-4  # nats between a cell of a table and the same loss judged again
FRESH = 93  # a stream of random numbers: sequences that no table has used


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

    def judge() -> CausalEvaluator:
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
    return noise_of(*(row_losses(test, table.mask(each), test.rows) for each in (one, other)))


def noise_of(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """Standard error of the mean difference of two choices, from their losses in sequences."""
    apart = one - other
    return max(LEAST_NOISE, float(apart.std(ddof=1) / len(apart) ** 0.5))


def row_losses(decoder: Any, mask: Mask, rows: NextTokenRows) -> NDArray[np.float64]:
    """What the decoder of an evaluator loses in each sequence, in nats a token."""
    model = decoder.dense_decoder(0).model
    ms.attach(model, mask)
    try:
        scores = score_tokens(model, rows.tokens).nll
    finally:
        ms.detach(model)
    scored = rows.labels != -100
    return np.array([float(row[own].mean()) for row, own in zip(scores, scored, strict=True)])


def missing(given: argparse.Namespace, out: Path) -> Iterator[tuple[Table, Any, pd.DataFrame]]:
    """The tables that a file of results lacks, with their evaluators and the rows of that file.

    Raises:
        ValueError: If an evaluator has other weights or another text than the table.
    """
    for name in given.tables:
        known = pd.read_csv(out, dtype={"choice": str}) if out.is_file() else pd.DataFrame()
        if not known.empty and name in set(known.table):
            continue
        path = given.runs / "tables" / f"{name}.parquet"
        table, decoder = load(path if path.is_file() else name), tables.spec_of(name).judge
        if (own := dict(decoder.data_hashes())) != table.sheet.checkpoint:
            raise ValueError(f"{name} was judged on {table.sheet.checkpoint}, and here is {own}")
        yield table, decoder, known


def judged_again(given: argparse.Namespace) -> None:
    """The choices of `confirm` on sequences that no table has used, another draw for each
    checkpoint: see [new_tokens] in plan.toml."""
    out = HERE / "results" / "new_tokens.csv"
    confirmed = pd.read_csv(HERE / "results" / "confirmed.csv", dtype={"choice": str})
    for table, decoder, known in missing(given, out):
        rows = new_rows(table.sheet.name)
        own = confirmed[confirmed.table == table.sheet.name]
        picks = {budget: table.optimum(budget, **WHERE).choice for budget in PLAN["budgets"]}
        losses = {
            choice: row_losses(decoder, table.mask(choice), rows)
            for choice in sorted({*own.choice, *picks.values()})
        }
        found = own[["selector", "table", "budget", "choice"]].copy()
        pairs = [(losses[row.choice], losses[picks[row.budget]]) for row in own.itertuples()]
        found["loss"] = [one.mean() for one, _ in pairs]
        found["regret"] = [(one - other).mean() for one, other in pairs]
        found["noise"] = [noise_of(*pair) for pair in pairs]
        found["within"] = found.regret <= 2 * found.noise
        pd.concat([known, found]).to_csv(out, index=False, float_format="%.5g")
        print(table.sheet.name, found.groupby("selector").regret.mean().to_dict(), flush=True)


def new_rows(name: str) -> NextTokenRows:
    """Sequences for a checkpoint of planted recall that no table and no training has used."""
    number = int(name.rpartition("-")[2])
    return tables.task_of(number).rows(PLAN["rows"], generator(FRESH, number))


def windowed(given: argparse.Namespace) -> None:
    """One window in every unit, the widest within each budget, on test tokens, above the choice of
    exhaustive search: see [one_window] in plan.toml."""
    out = HERE / "results" / "one_window.csv"
    for table, decoder, known in missing(given, out):
        test, rows = decoder.on("test"), []
        for budget in (PLAN | PLAN.get(family_of(table.sheet.name), {}))["budgets"]:
            pick = table.optimum(budget, **WHERE).choice
            full = max(each.count("1") for each in table.affordable(budget, **WHERE).choice)
            best = row_losses(test, table.mask(pick), test.rows).mean()
            if abs(best - table.query(pick, "test")["nll"]) > NEAR:
                raise ValueError(f"{table} {pick}: {best} here, and another loss in the table")
            for at in (PLAN["length"], table.units.shape.length):
                share = partial(share_of, decoder.config, at)
                some = table.mask("1" * full + "0" * (len(pick) - full))
                limit = budget if at == PLAN["length"] else share(some)
                window = widest_window(limit, share, at, table.units.levels[0])
                loss = row_losses(test, window, test.rows).mean()
                row = {"table": table.sheet.name, "budget": budget, "full": full, "at": at}
                row |= {"limit": limit, "share": share(window), "mask": str(window)}
                rows.append({**row, "loss": loss, "best": best, "regret": loss - best})
        pd.concat([known, pd.DataFrame(rows)]).to_csv(out, index=False, float_format="%.6g")
        print(pd.DataFrame(rows).to_string(), flush=True)


def share_of(config: PreTrainedConfig, length: int, mask: Mask) -> float:
    """Bytes of the cache under a mask, by the plan's account, as a share of the dense cache."""
    return kv_bytes(mask, config, length, cache_layout=PLAN["account"]).share


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


STAGES = {
    "build": built,
    "judge": judged,
    "confirm": confirmed,
    "again": judged_again,
    "window": windowed,
    "table": tabled,
}

if __name__ == "__main__":
    main()
