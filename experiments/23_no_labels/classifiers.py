"""Gates that see no label beside gates that do, on experiment 22's dense models.

    python experiments/23_no_labels/classifiers.py --data FOLDER [--tasks SST-2 ..] [--seeds 0 ..]

From a worktree at the plan's `commit`, whose rows and dense models are 22's. A search of each arm
and budget on each model; nothing is chosen, so all rows that judge are read at once. What has
ended is a line of results/.
"""

from __future__ import annotations

import argparse
import sys
import tomllib
from pathlib import Path
from typing import Any

import optuna
import torch
import transformers

import masksearch as ms

HERE = Path(__file__).parent
sys.path.append(str(Path(ms.__file__).parents[1] / "experiments" / "22_as_it_is"))
import run  # noqa: E402

from masksearch import masks  # noqa: E402
from masksearch.evaluators.glue import GlueEvaluator  # noqa: E402

PLAN = tomllib.loads((HERE / "plan.toml").read_text(encoding="utf-8"))["classifiers"]


class Classifier(run.Model):
    """One of 22's dense models, made anew."""

    learns_from = "labels"

    def evaluator(self, read: str, **settings: Any) -> GlueEvaluator:
        """As 22's; gates learn what the arm says."""
        return super().evaluator(read, gates_learn_from=self.learns_from, **settings)

    def work(self) -> None:
        """Searches and judges, if that has not ended."""
        if self.lines.of(stage="ended") or not self.fine_tune():
            return
        for arm, how in PLAN["arms"].items():
            self.learns_from = how["learns_from"]
            for budget in PLAN["budgets"]:
                run.PLAN["arms"][arm] = planned(how["steps"], budget)
                self.search(arm, budget)
        for budget in PLAN["budgets"]:
            self.score(self.found(budget) | {"dense": masks.full()}, "judge")
        self.lines.add({"stage": "ended"})


def planned(steps: int, budget: float) -> dict[str, Any]:
    """An arm as 22's plan has DAM's."""
    config = {"steps": steps, "gate_lr": 0.1, "density": budget}
    options = {"gates": {"structure": "free"}, "config": config}
    return {"strategy": "dam", "space": False, "trials": 2, "options": options}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="holds glue/")
    parser.add_argument("--weights", help="a checkpoint; default: the offline extra's")
    parser.add_argument("--tasks", nargs="+", choices=PLAN["tasks"], default=[*PLAN["tasks"]])
    parser.add_argument("--seeds", type=int, nargs="+", help="of models; default: the plan's")
    parser.add_argument("--runs", type=Path, default=Path("runs/23_no_labels"))
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, to see that it runs")
    given = parser.parse_args()
    given.runs = given.runs.resolve()
    given.arms = [*PLAN["arms"]]
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    for task in given.tasks:
        for seed in PLAN["tasks"][task] if given.seeds is None else given.seeds:
            Classifier(given, task, seed).work()


if __name__ == "__main__":
    main()
