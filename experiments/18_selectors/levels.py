"""Does `allocate` find the best of all choices where units have several windows?

    python experiments/18_selectors/levels.py --checkpoints FOLDER

FOLDER has `recall-1` and so on, as in masksearch-bench. See [windows] in plan.toml. Results go to
results/levels.csv as they come; about 12 core-minutes.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
import warnings
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pandas as pd
import torch
from page import several_windows
from run import HERE, PLAN, row_losses
from tables import narrow_windows
from train import task_of

import masksearch as ms
from masksearch import masks
from masksearch.gates.units import Allocation
from masksearch_bench.tree import tree_values
from masksearch_decoders import allocate
from masksearch_decoders.causal import CausalEvaluator

SAID = PLAN["windows"]
OUT = HERE / "results" / "levels.csv"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoints", type=Path, required=True)
    parser.add_argument("--tables", nargs="*", default=SAID["tables"], help="recall-N")
    given = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", category=UserWarning)
    rows = pd.read_csv(OUT, dtype=str).to_dict("records") if OUT.is_file() else []
    done = {(row["table"], float(row["budget"])) for row in rows}
    for budget, name in itertools.product(SAID["budgets"], given.tables):
        if (name, budget) not in done:
            rows.append(judged(name, given.checkpoints / name, budget))
            pd.DataFrame(rows).to_csv(OUT, index=False, float_format="%.6g")
    print(several_windows())


def judged(name: str, weights: Path, budget: float) -> dict[str, object]:
    """What was found, the best of all, and all units alike, on test sequences.

    A unit is a pair of neighbouring heads, as if they shared keys."""
    task = task_of(int(name.rpartition("-")[2]))
    windows = narrow_windows(task.length)
    with (
        patch.object(CausalEvaluator, "kv_head_count", SAID["units"] // 3),
        tempfile.TemporaryDirectory() as run,
    ):
        plan = allocate(
            *(weights, task, budget),  # type: ignore[arg-type]
            unit="kv_head",
            local=windows,
            length=task.length,
            sequences=SAID["search"],
            check=False,
            run=run,
            device="cpu",
            progress=None,
        )
        trials = len(ms.open_study(run).records())
    search, test = (
        CausalEvaluator(task, weights=weights, held_out_sequences=SAID[split], device="cpu")
        for split in ("search", "test")
    )
    test = test.on("test")
    units = ms.Units(search.shape, (*windows, masks.full()), "kv_head", SAID["units"] // 3)
    costs = np.array([1, 2, 4, 8]) / 8
    every = itertools.product(range(4), repeat=SAID["units"])
    inside = [choice for choice in every if costs[[*choice]].mean() <= budget]
    on_search = {choice: values["nll"] for choice, values in tree_values(search, units, inside)}
    alike = [choice for choice in inside if len({*choice}) == 1]
    picks: dict[str, Allocation] = {
        "found": tuple(plan.units.values()),
        "best": min(inside, key=on_search.__getitem__),
        "uniform": min(alike, key=on_search.__getitem__),
    }
    if plan.levels != units.levels or picks["found"] not in inside:
        raise ValueError(f"{name}: {plan} is no choice within {budget}")
    losses = {
        pick: row_losses(test, units.mask(choice), test.rows) for pick, choice in picks.items()
    }
    row: dict[str, object] = {"table": name, "budget": budget, "judged": trials}
    row |= {"choices": len(inside)}
    row |= {pick: "".join(map(str, choice)) for pick, choice in picks.items()}
    row |= {f"search_{pick}": on_search[choice] for pick, choice in picks.items()}
    row |= {f"test_{pick}": each.mean() for pick, each in losses.items()}
    for one, other in (("found", "best"), ("uniform", "found"), ("uniform", "best")):
        row[f"{one}_{other}"] = (losses[one] - losses[other]).mean()
        row[f"{one}_{other}_noise"] = resampled(losses[one] - losses[other])
    print(row, flush=True)
    return row


def resampled(apart: np.ndarray) -> float:
    """Standard error of a mean, by resampled test sequences."""
    draw = np.random.default_rng(0).integers(len(apart), size=(SAID["resampled"], len(apart)))
    return float(apart[draw].mean(1).std(ddof=1))


if __name__ == "__main__":
    main()
