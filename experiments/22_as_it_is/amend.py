"""Experiment 22 again: drawn masks that follow the words, and first-order effects with DAM's rows.

    python experiments/22_as_it_is/amend.py --data FOLDER --plan amendment.toml [--tasks QQP ..]

22's dense models are made anew and its DAM masks taken from its lines; QQP's, and the models that
stand for those that had not learned, are searched as there. What has ended is a line of
results/amended/.
"""

from __future__ import annotations

import argparse
import tomllib
from pathlib import Path
from typing import Any

import lines
import optuna
import run
import tables
import torch
import transformers

import masksearch as ms
from masksearch import masks

HERE = Path(__file__).parent
EARLIER = tables.all_lines()
Plan = dict[str, Any]


class Amended(run.Model):
    """A dense model of 22, or one more of the same recipe.

    Args:
        given: The command line.
        plan: amendment.toml.
        task: GLUE's name.
        seed: Of the fine-tuning.
    """

    def __init__(self, given: argparse.Namespace, plan: Plan, task: str, seed: int) -> None:
        super().__init__(given, task, seed)
        self.plan = plan

    def learned(self) -> bool:
        """Whether the dense model is as far above a constant answer as 22 asks; makes it where no
        line says so."""
        dense = tables.named(self.lines.lines, "choice", "dense")
        if dense is None:
            if not self.fine_tune():
                return False
            dense = tables.named(self.lines.lines, "choice", "dense")
        assert dense is not None
        return self.given.smoke or dense["score"] - dense["constant"] >= tables.ABOVE_CONSTANT

    def work(self) -> None:
        """Searches, chooses and judges, if that has not ended."""
        if self.lines.of(stage="ended"):
            return
        self.fine_tune()
        for budget in self.plan["models"]["budgets"]:
            self.search_all(budget)
            self.choose(budget)
        for budget in self.plan["models"]["budgets"]:
            self.judge(budget)
        self.lines.add({"stage": "ended"})

    def search_all(self, budget: float) -> None:
        """DAM's mask, and those of first-order effects with more rows."""
        self.take_dam(budget)
        for arm, how in self.plan["arms"].items():
            if self.task in how["tasks"] and budget in how["budgets"]:
                self.search(arm, budget)

    def take_dam(self, budget: float) -> None:
        """DAM's mask of 22's lines; where 22 has no such model, its search."""
        path = self.mask_file("dam", budget)
        own = EARLIER.get((self.task, self.seed), [])
        found = [
            line["mask"]
            for line in own
            if line["stage"] == "search" and line["arm"] == "dam" and line["budget"] == budget
        ]
        if found and not self.given.smoke and not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            ms.save_mask(lines.unpacked(found[0]), path)
        self.search("dam", budget)

    def hand_designed(self, budget: float) -> run.Named:
        """All drawn masks within a budget, or those that follow the words."""
        drawn, which = super().hand_designed(budget), self.plan["tasks"][self.task]["drawn"]
        return {name: mask for name, mask in drawn.items() if which == "all" or which in name}

    def judge(self, budget: float) -> None:
        """Scores on judging rows what the plan compares, once all is chosen."""
        hand, named = self.hand_designed(budget), self.found(budget) | {"dense": masks.full()}
        for prefix in ("", "same token"):
            scored = tables.scored(self.lines.lines, "choice", f"hand {budget}: {prefix}")
            if scored:
                name = tables.best(scored)["name"]
                named[name] = hand[name]
        self.score(named, "judge")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="holds glue/")
    parser.add_argument("--plan", type=Path, default=HERE / "amendment.toml")
    parser.add_argument("--weights", help="a checkpoint; default: the offline extra's")
    parser.add_argument("--tasks", nargs="+", help="some of the plan's")
    parser.add_argument("--models", type=int, help="of each task; default: the plan's")
    parser.add_argument("--runs", type=Path, default=Path("runs/22_amended"))
    parser.add_argument("--results", type=Path, default=HERE / "results" / "amended")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, to see that it runs")
    given = parser.parse_args()
    given.runs = given.runs.resolve()
    plan = tomllib.loads(given.plan.read_text(encoding="utf-8"))
    run.PLAN["arms"] |= plan["arms"]
    given.arms = ["dam", *plan["arms"]]
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    for task in given.tasks or plan["tasks"]:
        models: list[Amended] = []
        for seed in range(plan["models"]["tried"]):  # all are chosen before any mask
            if len(models) == (given.models or plan["models"]["each"]):
                break
            model = Amended(given, plan, task, seed)
            models += [model] if model.learned() else []
        for model in models:
            model.work()


if __name__ == "__main__":
    main()
